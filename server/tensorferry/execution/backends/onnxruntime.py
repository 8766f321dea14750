"""ONNX models (``model.onnx``), run by onnxruntime, which releases the GIL for the whole of a run.

Copies of a tensor on the CPU: none on the way in where a batch is one request whose bytes are
aligned, else one; none on the way out.

Inputs and outputs meet the configuration by name; where the names aren't the model's, by ``__<n>``
or in order, as for every other format.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.signature import (
    Signature,
    SignatureTensor,
    check_output,
    check_output_count,
    checked,
    from_signature,
    input_order,
    positions,
)
from tensorferry.execution.backends.untuned import refuse_tuning
from tensorferry.model import BatchInput, ModelSpec, RunResult
from tensorferry.tensors import DATATYPES, Buffer, Tensor

__all__ = ["OnnxModel", "open_model", "open_session", "session_signature"]

#: onnxruntime's name of a type -> the protocol's.
_TYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
_NUMPY_NAMES: Final = {each.numpy: each.name for each in DATATYPES.values() if each.numpy is not None}
#: TensorProto.BFLOAT16, which numpy has no type for.
_BFLOAT16: Final = 16
_ERRORS_ONLY: Final = 3
_HOW_TO_EXPORT: Final = (
    "export it with a dynamic first dimension (dynamic_shapes, or dynamic_axes, of torch.onnx.export)"
)


def open_model(spec: ModelSpec, device: str) -> OnnxModel:
    """Load ``spec.path`` onto ``device``.

    Raises:
        ModelLoadError: the file doesn't load, the device isn't there, or the model's inputs aren't
            what the configuration says.
    """
    where = f"model {spec.name!r} version {spec.version}"
    refuse_tuning(spec, where, "an ONNX model", "convert the file itself, or serve model.pt or model.pt2")
    threads = spec.intra_op_threads or max(1, len(os.sched_getaffinity(0)) // len(spec.devices))
    session = open_session(str(spec.path), threads, device, where)
    signature = session_signature(session, where)
    if spec.from_signature:
        spec = from_signature(spec, signature)
    order = input_order(spec, [each.name for each in signature.inputs], where, "the model takes")
    check_output_count(spec, signature, where, "the model returns")
    checked(spec, signature, order, where, _HOW_TO_EXPORT)
    return OnnxModel(session, spec, device, signature, order, threads)


def open_session(path: str, threads: int, device: str, where: str) -> onnxruntime.InferenceSession:
    """Load a file with ``threads`` inside an operation; ``where`` begins the errors.

    Raises:
        ModelLoadError: the file doesn't load, or onnxruntime can't use the device.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A thread that has done its part would else burn its core until the next run.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=_providers(device, where))
    except ModelLoadError:
        raise
    except Exception as error:  # onnxruntime's own have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"{where}: {path} is not an ONNX model that this onnxruntime ({onnxruntime.__version__}) can"
            f" load: {reason.rpartition('failed:')[2]}"
        ) from error


def session_signature(session: onnxruntime.InferenceSession, where: str) -> Signature:
    """Return the names, datatypes and shapes of a model's inputs and outputs.

    Raises:
        ModelLoadError: it has none, or one that isn't a tensor of a datatype of the protocol.
    """
    sides = []
    for kind, arguments in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for each in arguments:
            if each.type not in _TYPES:
                raise ModelLoadError(
                    f"{where}: {kind} {each.name!r} is a {each.type}, which can't be sent here; a model has"
                    f" tensors of {', '.join(_TYPES.values())}"
                )
        if not arguments:
            raise ModelLoadError(f"{where}: the model has no {kind}; a model that is served has at least one")
        sides.append(tuple(SignatureTensor(each.name, _TYPES[each.type], _shape(each)) for each in arguments))
    return Signature(sides[0], sides[1])


class OnnxModel:
    """An onnxruntime session on one device.

    The threads inside an operation are the session's: a first ``attach`` with another number opens
    it anew; later ones keep it, as opening takes longer than the loop thread may.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        spec: ModelSpec,
        device: str,
        signature: Signature,
        order: Sequence[int],
        threads: int,
    ) -> None:
        self.spec = spec
        self._session = session
        self._device = device
        self._threads = threads
        self._is_attached = False
        self._input_names = [each.name for each in signature.inputs]
        self._order = list(order)
        own = [each.name for each in signature.outputs]
        names = [each.name for each in spec.outputs]
        by_name = set(names) <= set(own)
        self._output_names = names if by_name else [own[index] for index in positions(spec.outputs)]
        # numpy has no BF16, and onnxruntime hands such a tensor out by its address alone.
        self._has_bf16 = any(each.datatype == "BF16" for each in (*signature.inputs, *signature.outputs))

    def attach(self, intra_op_threads: int) -> None:
        """Prepare for this many threads inside an operation; see the class."""
        if not self._is_attached and intra_op_threads != self._threads:
            where = f"model {self.spec.name!r} version {self.spec.version}"
            self._session = open_session(str(self.spec.path), intra_op_threads, self._device, where)
            self._threads = intra_op_threads
        self._is_attached = True

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch; see the protocol."""
        start = time.perf_counter_ns()
        arrays = [_array(inputs[index]) for index in self._order]
        formed = time.perf_counter_ns()
        if self._has_bf16:
            returned = self._run_values(arrays, inputs)
        else:
            returned = self._session.run(
                self._output_names, dict(zip(self._input_names, arrays, strict=True))
            )
        ran = time.perf_counter_ns()
        outputs = [_output(self.spec, index, value) for index, value in enumerate(returned)]
        return RunResult(outputs, formed - start, ran - formed, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        del self._session

    def _run_values(self, arrays: list[np.ndarray[Any, Any]], inputs: Sequence[BatchInput]) -> list[Any]:
        values = {}
        for name, index, array in zip(self._input_names, self._order, arrays, strict=True):
            of = onnxruntime.OrtValue
            is_bf16 = inputs[index].datatype == "BF16"
            values[name] = (
                of.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
                if is_bf16
                else of.ortvalue_from_numpy(array)
            )
        returned = self._session.run_with_ort_values(self._output_names, values)
        return [each if _TYPES.get(each.data_type()) == "BF16" else each.numpy() for each in returned]


def _providers(device: str, where: str) -> list[Any]:
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise ModelLoadError(
            f"{where}: instance_group asks for {device}, and this onnxruntime has no CUDA; install"
            " onnxruntime-gpu in its place, or set kind: KIND_CPU"
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _shape(argument: Any) -> tuple[int, ...]:  # noqa: ANN401 - onnxruntime has no name for the type
    return tuple(size if isinstance(size, int) else -1 for size in argument.shape)


def _array(item: BatchInput) -> np.ndarray[Any, Any]:
    numpy_type = DATATYPES[item.datatype].numpy or np.dtype(np.uint16)
    joined = item.parts[0] if len(item.parts) == 1 else bytearray().join(item.parts)
    array = np.frombuffer(joined, numpy_type)
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(item.shape)


def _output(spec: ModelSpec, index: int, value: Any) -> Tensor:  # noqa: ANN401 - array, OrtValue, or neither
    expected = spec.outputs[index]
    data: Buffer
    if isinstance(value, np.ndarray):
        datatype, shape = _NUMPY_NAMES.get(value.dtype, ""), value.shape
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if datatype else b""
    elif isinstance(value, onnxruntime.OrtValue):
        datatype, shape = "BF16", tuple(value.shape())
        data = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    else:
        raise ModelFailed(
            f"model {spec.name!r}: output {expected.name!r} is a {type(value).__name__}, not a tensor"
        )
    check_output(spec, expected, datatype, shape)
    return Tensor(expected.name, datatype, shape, data)
