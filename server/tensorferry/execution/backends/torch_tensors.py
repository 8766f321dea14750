"""What the torch formats share: tensors in, a call, tensors out. Says nothing of any file.

Copies of a tensor on the CPU: one from the requests' bytes into the batch's buffer, none on the
way out (the outputs are viewed in place). A model on a GPU is a ``torch_device.DeviceModel``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends import torch_gpu
from tensorferry.execution.backends.signature import check_output, positions
from tensorferry.execution.outcomes import reason_of
from tensorferry.model import BatchInput, Model, ModelSpec, RunResult, TensorSpec
from tensorferry.tensors import Tensor

__all__ = [
    "DTYPES",
    "DTYPE_NAMES",
    "TorchModel",
    "check_device",
    "check_value",
    "first_line",
    "open_torch",
    "ordered_outputs",
    "refuse_foreign_datatypes",
]

DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def open_torch(
    call: Callable[..., object],
    spec: ModelSpec,
    device: str,
    order: Sequence[int],
    owned: Iterable[torch.Tensor] = (),
) -> Model:
    """Return the model that runs ``call`` on ``device``; the arguments are those of ``TorchModel``.

    Raises:
        ModelLoadError: the device has no memory for it.
    """
    if device == "cpu":
        return TorchModel(call, spec, order, owned)
    from tensorferry.execution.backends.torch_device import DeviceModel

    return DeviceModel(call, spec, device, order, owned)


class TorchModel:
    """A function of tensors on the CPU.

    Args:
        call: Takes the tensors in the model's order; returns a tensor, a sequence of them, or a
            dict by name.
        spec: The completed specification.
        order: For each argument of ``call``, the index of the input that it takes.
        owned: The model's own memory (parameters, buffers). An output that is a view of it would
            change under the reader at the next run, which starts before the replies of this one
            are encoded, so such an output is copied.
    """

    def __init__(
        self,
        call: Callable[..., object],
        spec: ModelSpec,
        order: Sequence[int],
        owned: Iterable[torch.Tensor] = (),
    ) -> None:
        self.spec = spec
        self._call = call
        self._argument_order = list(order)
        self._output_order = positions(spec.outputs)
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self._inference_mode = torch.inference_mode()  # made once: entering it is all that a run pays

    def attach(self, intra_op_threads: int) -> None:
        """Set the calling thread's intra-op threads: with OpenMP the number is the thread's own."""
        torch.set_num_threads(intra_op_threads)

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch; see the protocol."""
        with self._inference_mode:
            start = time.perf_counter_ns()
            tensors = [_joined(item) for item in inputs]
            formed = time.perf_counter_ns()
            returned = self._call(*[tensors[index] for index in self._argument_order])
            ran = time.perf_counter_ns()
            values = ordered_outputs(self.spec, self._output_order, returned)
            outputs = [
                self._output(each, value) for each, value in zip(self.spec.outputs, values, strict=True)
            ]
            return RunResult(outputs, formed - start, ran - formed, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Drop the model; its memory goes with it."""
        del self._call

    def _output(self, expected: TensorSpec, value: Any) -> Tensor:  # noqa: ANN401
        check_value(self.spec, expected, value)
        tensor: torch.Tensor = value
        if tensor.untyped_storage().data_ptr() in self._owned:
            tensor = tensor.clone()
        return Tensor(expected.name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), _bytes_of(tensor))


def ordered_outputs(spec: ModelSpec, order: Sequence[int], returned: object) -> list[Any]:
    """Return what a call returned in the order of ``spec.outputs``, unchecked.

    ``order`` is the position of each output in what isn't a dict.

    Raises:
        ModelFailed: an output isn't there.
    """
    if isinstance(returned, torch.Tensor):
        values: list[Any] = [returned]
    elif isinstance(returned, dict):
        missing = [each.name for each in spec.outputs if each.name not in returned]
        if missing:
            raise ModelFailed(
                f"model {spec.name!r}: returned the outputs {sorted(returned)},"
                f" and {missing[0]!r} isn't among them"
            )
        return [returned[each.name] for each in spec.outputs]
    else:
        values = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if len(values) <= max(order):
        raise ModelFailed(
            f"model {spec.name!r}: returned {len(values)} outputs, and its configuration names"
            f" {[each.name for each in spec.outputs]}"
        )
    return [values[index] for index in order]


def check_value(spec: ModelSpec, expected: TensorSpec, value: object) -> None:
    """Check an output of a run.

    Raises:
        ModelFailed: says what the configuration wants and what came.
    """
    # One look where the configuration is fixed: this is made at every run.
    if expected.is_fixed and isinstance(value, torch.Tensor):
        row_shape = value.shape[1:] if spec.has_batch_dimension else value.shape
        datatype = expected.datatype.name if expected.datatype else ""
        if row_shape == expected.dims and DTYPE_NAMES.get(value.dtype) == datatype:
            return
    _check_output(spec, expected, value)


def check_device(where: str, device: str) -> None:
    """Check that torch can use ``device``.

    Raises:
        ModelLoadError: it can't; or can't any more, in this process.
    """
    if torch_gpu.is_known_lost(device):
        raise ModelLoadError(
            f"{where}: instance_group asks for {device}, which has failed since the server began, so that"
            " nothing can be loaded there; start the server anew"
        )
    if not device.startswith("cuda") or not torch_gpu.is_real():
        return
    if not torch.cuda.is_available():
        raise ModelLoadError(f"{where}: instance_group asks for {device}, and {_why_no_gpu()}")
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"{where}: instance_group asks for {device}, and torch sees only {_names_of_gpus()}; change its"
            " gpus, or look whether CUDA_VISIBLE_DEVICES hides some"
        )


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch, or set kind:"
            " KIND_CPU"
        )
    return (
        f"torch {torch.__version__} finds no GPU; look whether nvidia-smi lists one, whether its driver knows"
        f" CUDA {torch.version.cuda}, and whether CUDA_VISIBLE_DEVICES hides it, or set kind: KIND_CPU"
    )


def _names_of_gpus() -> str:
    return ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))


def refuse_foreign_datatypes(spec: ModelSpec, where: str, format_name: str) -> None:
    """Check that torch has the datatype of every tensor of a configuration.

    Raises:
        ModelLoadError: names the first that it hasn't.
    """
    for each in (*spec.model_inputs, *spec.outputs):
        if each.datatype is not None and each.datatype.name not in DTYPES:
            raise ModelLoadError(
                f"{where}: {each.name!r} is {each.datatype.name}, which {format_name} can't"
                f" have here; it has: {', '.join(DTYPES)}"
            )


def first_line(error: Exception) -> str:
    """Return the first line of what torch says, or the error's name where it says nothing.

    Of an error that came through TorchScript's interpreter, the line that says what was wrong.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return reason_of(error) if "TorchScript interpreter" in lines[0] else lines[0]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """View a tensor's elements as bytes, copying only what isn't on the CPU or in one piece."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.is_cpu and tensor.numel():
        return tensor.numpy().data.cast("B")  # the common case: a third of the general one's time
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _joined(item: BatchInput) -> torch.Tensor:
    # Even a single part is copied: the model may write to its input, and the bytes aren't ours.
    joined = bytearray().join(item.parts)
    dtype = DTYPES[item.datatype]
    if not joined:
        return torch.empty(item.shape, dtype=dtype)
    return torch.frombuffer(joined, dtype=dtype).view(item.shape)


def _check_output(spec: ModelSpec, expected: TensorSpec, value: object) -> None:
    """Raise ModelFailed, with what was expected and what came, unless the output fits."""
    what = f"model {spec.name!r}: output {expected.name!r}"
    if not isinstance(value, torch.Tensor):
        raise ModelFailed(f"{what} is a {type(value).__name__}, not a tensor")
    datatype = DTYPE_NAMES.get(value.dtype)
    if datatype is None:
        raise ModelFailed(f"{what} is {value.dtype}, which the protocol doesn't have")
    check_output(spec, expected, datatype, tuple(value.shape))
