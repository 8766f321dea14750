"""TorchScript models: the only file that imports torch.

Copies of a tensor on the CPU: one from the requests' bytes into the batch's buffer, none on the
way out (the outputs are viewed in place). On a GPU, one more each way, over pinned memory.

How tensors meet the model's arguments, as in Triton's PyTorch backend:

* inputs, if every name is an argument of ``forward``: by name; if every name ends in ``__<n>``:
  by that index; otherwise in the configuration's order.
* outputs, if every name ends in ``__<n>``: by that index; for a model that returns a dict: by
  key; otherwise in the configuration's order.
"""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.model import BatchInput, ModelSpec, RunResult, TensorSpec
from tensorferry.tensors import Tensor

__all__ = ["TorchScriptModel", "describe", "open_model"]

_DTYPES: Final[dict[str, torch.dtype]] = {
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
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_INDEXED: Final = re.compile(r".*__(\d+)")

# torch leaves these without annotations.
_load: Final[Callable[..., torch.jit.ScriptModule]] = torch.jit.load
_cuda_stream: Final[Callable[..., torch.cuda.Stream]] = torch.cuda.Stream

# Without this the profiling executor compiles a plan for each new batch size, which costs up to
# 15 ms the first time a size is seen; a dynamic plan serves all sizes.
torch.jit.set_fusion_strategy([("DYNAMIC", 20)])


def open_model(spec: ModelSpec, device: str) -> TorchScriptModel:
    """Load ``spec.path`` onto ``device``.

    Raises:
        ModelLoadError: the file doesn't load, the device isn't there, or the model's signature
            isn't what the configuration says.
    """
    where = f"model {spec.name!r} version {spec.version}"
    _check_device(where, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript's deprecation, said once in the docs
            module = _load(str(spec.path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelLoadError(
            f"{where}: {spec.path} is not a TorchScript model that this torch"
            f" ({torch.__version__}) can load: {_reason(error)}"
        ) from error
    _check_signature(module, where)
    complete = _complete(spec, _arguments(module), _output_count(module), where)
    return TorchScriptModel(module, complete, device)


def describe() -> dict[str, object]:
    """Return what matters of torch itself: version, intra-op threads, CUDA and its devices."""
    devices = range(torch.cuda.device_count())
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(index) for index in devices],
    }


class TorchScriptModel:
    """A TorchScript module on one device."""

    def __init__(self, module: torch.jit.ScriptModule, spec: ModelSpec, device: str) -> None:
        self.spec = spec
        self._module = module
        self._device = torch.device(device)
        self._argument_order = _input_order(spec, _arguments(module))
        self._output_order = _indices(spec.outputs)
        # The model's own memory: an output that is a view of it would change under the reader at
        # the next run, which starts before the replies of this one are encoded.
        owned = [*module.parameters(), *module.buffers()]
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self._inference_mode = torch.inference_mode()  # made once: entering it is all that a run pays
        self._stream = _cuda_stream(self._device) if self._device.type == "cuda" else None

    def attach(self, intra_op_threads: int) -> None:
        """Set the calling thread's intra-op threads: with OpenMP the number is the thread's own."""
        torch.set_num_threads(intra_op_threads)

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch; see the protocol."""
        with self._inference_mode:
            if self._stream is None:
                return self._run(inputs)
            with torch.cuda.stream(self._stream):
                return self._run(inputs)

    def _run(self, inputs: Sequence[BatchInput]) -> RunResult:
        start = time.perf_counter_ns()
        tensors = [self._to_device(_joined(item)) for item in inputs]
        formed = time.perf_counter_ns()
        returned = self._module(*[tensors[index] for index in self._argument_order])
        if self._stream is not None:
            self._stream.synchronize()
        ran = time.perf_counter_ns()
        outputs = self._outputs(returned)
        return RunResult(outputs, formed - start, ran - formed, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Drop the module; its memory goes with it."""
        del self._module
        if self._stream is not None:
            torch.cuda.empty_cache()

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is None:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _outputs(self, returned: object) -> list[Tensor]:
        spec = self.spec
        if isinstance(returned, torch.Tensor):
            values: list[Any] = [returned]
        elif isinstance(returned, dict):
            missing = [each.name for each in spec.outputs if each.name not in returned]
            if missing:
                raise ModelFailed(
                    f"model {spec.name!r}: returned the outputs {sorted(returned)},"
                    f" and {missing[0]!r} isn't among them"
                )
            return [self._output(each, returned[each.name]) for each in spec.outputs]
        else:
            values = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        if len(values) <= max(self._output_order):
            raise ModelFailed(
                f"model {spec.name!r}: returned {len(values)} outputs, and its configuration names"
                f" {[each.name for each in spec.outputs]}"
            )
        return [
            self._output(each, values[index])
            for each, index in zip(spec.outputs, self._output_order, strict=True)
        ]

    def _is_plainly_right(self, expected: TensorSpec, value: Any) -> bool:  # noqa: ANN401
        """Whether the output is what a fixed configuration says: one look, made at every run."""
        if not expected.is_fixed or not isinstance(value, torch.Tensor):
            return False
        row_shape = value.shape[1:] if self.spec.has_batch_dimension else value.shape
        datatype = expected.datatype.name if expected.datatype else ""
        return row_shape == expected.dims and _NAMES.get(value.dtype) == datatype

    def _output(self, expected: TensorSpec, value: Any) -> Tensor:  # noqa: ANN401
        if not self._is_plainly_right(expected, value):
            _check_output(self.spec, expected, value)
        tensor: torch.Tensor = value
        if tensor.untyped_storage().data_ptr() in self._owned:
            tensor = tensor.clone()
        return Tensor(expected.name, _NAMES[tensor.dtype], tuple(tensor.shape), _bytes_of(tensor))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """View a tensor's elements as bytes, copying only what isn't on the CPU or in one piece."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.is_cpu and tensor.numel():
        return tensor.numpy().data.cast("B")  # the common case: a third of the general one's time
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _joined(item: BatchInput) -> torch.Tensor:
    # Even a single part is copied: the model may write to its input, and the bytes aren't ours.
    joined = bytearray().join(item.parts)
    dtype = _DTYPES[item.datatype]
    if not joined:
        return torch.empty(item.shape, dtype=dtype)
    return torch.frombuffer(joined, dtype=dtype).view(item.shape)


def _check_output(spec: ModelSpec, expected: TensorSpec, value: object) -> None:
    """Raise ModelFailed, with what was expected and what came, unless the output fits."""
    what = f"model {spec.name!r}: output {expected.name!r}"
    if not isinstance(value, torch.Tensor):
        raise ModelFailed(f"{what} is a {type(value).__name__}, not a tensor")
    datatype = _NAMES.get(value.dtype)
    if datatype is None:
        raise ModelFailed(f"{what} is {value.dtype}, which the protocol doesn't have")
    if expected.datatype is not None and datatype != expected.datatype.name:
        raise ModelFailed(f"{what} is {datatype}, and its configuration says {expected.datatype.name}")
    if expected.dims is not None:
        shape = tuple(value.shape)
        row_shape = shape[1:] if spec.has_batch_dimension else shape
        if len(row_shape) != len(expected.dims) or any(
            dim not in (-1, size) for dim, size in zip(expected.dims, row_shape, strict=True)
        ):
            after = " after the batch dimension" if spec.has_batch_dimension else ""
            raise ModelFailed(
                f"{what} has shape {list(shape)}, and its configuration says {list(expected.dims)}{after}"
            )


def _check_device(where: str, device: str) -> None:
    if not device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise ModelLoadError(
            f"{where}: instance_group asks for {device}, and this machine has no CUDA device that"
            " torch can use; set kind: KIND_CPU, or install a CUDA build of torch"
        )
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise ModelLoadError(
            f"{where}: instance_group asks for {device}, and there are {torch.cuda.device_count()} GPUs"
        )


def _reason(error: Exception) -> str:
    """The first line of what torch says, less its advice for those who wrote the file with torch.save."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(" This is an internal miniz error")[0]


def _check_signature(module: torch.jit.ScriptModule, where: str) -> None:
    if not hasattr(module, "forward"):
        raise ModelLoadError(f"{where}: the model has no method forward; export it from a module with one")
    arguments = _schema(module).arguments[1:]
    if not arguments:
        raise ModelLoadError(f"{where}: forward takes no inputs; a model that is served takes at least one")
    for argument in arguments:
        if argument.type.kind() != "TensorType":
            raise ModelLoadError(
                f"{where}: forward's argument {argument.name!r} is {argument.type.annotation_str}, and only"
                " tensors can be sent; fix it in the module before the export"
            )
    if _output_count(module) == 0:
        raise ModelLoadError(f"{where}: forward returns no tensors")


def _schema(module: torch.jit.ScriptModule) -> Any:  # noqa: ANN401 - torch has no name for the type
    return module.forward.schema  # type: ignore[attr-defined]


def _arguments(module: torch.jit.ScriptModule) -> list[str]:
    return [argument.name for argument in _schema(module).arguments[1:]]  # without self


def _output_count(module: torch.jit.ScriptModule) -> int | None:
    """Return how many tensors forward returns; None where the type doesn't say."""
    kind = _schema(module).returns[0].type
    if kind.kind() == "TensorType":
        return 1
    if kind.kind() == "TupleType":
        return len(kind.elements())
    return None


def _complete(spec: ModelSpec, arguments: list[str], output_count: int | None, where: str) -> ModelSpec:
    """Check the signature against the configuration, or fill in what there was none for."""
    if spec.from_signature:
        if output_count is None:
            raise ModelLoadError(
                f"{where}: the type that forward returns doesn't say how many outputs there are, and"
                " there is no configuration; write a config.pbtxt that names them"
            )
        return dataclasses.replace(
            spec,
            inputs=tuple(TensorSpec(f"INPUT__{index}") for index in range(len(arguments))),
            outputs=tuple(TensorSpec(f"OUTPUT__{index}") for index in range(output_count)),
            datatypes=frozenset(_DTYPES),
        )
    if len(spec.model_inputs) != len(arguments):
        raise ModelLoadError(
            f"{where}: forward takes {len(arguments)} inputs {arguments}, and the configuration names"
            f" {len(spec.model_inputs)} {[each.name for each in spec.model_inputs]}"
        )
    if output_count is not None and max(_indices(spec.outputs)) >= output_count:
        raise ModelLoadError(
            f"{where}: forward returns {output_count} outputs, and the configuration names"
            f" {[each.name for each in spec.outputs]}"
        )
    _refuse_foreign_datatypes(spec, where)
    names = {each.name for each in spec.model_inputs}
    if names != set(arguments) and sorted(_indices(spec.model_inputs)) != list(range(len(arguments))):
        raise ModelLoadError(
            f"{where}: the inputs' indices {[each.name for each in spec.model_inputs]} must be"
            f" 0 to {len(arguments) - 1}, each once"
        )
    return spec


def _refuse_foreign_datatypes(spec: ModelSpec, where: str) -> None:
    for each in (*spec.model_inputs, *spec.outputs):
        if each.datatype is not None and each.datatype.name not in _DTYPES:
            raise ModelLoadError(
                f"{where}: {each.name!r} is {each.datatype.name}, which a TorchScript model can't"
                f" have here; it has: {', '.join(_DTYPES)}"
            )


def _input_order(spec: ModelSpec, arguments: list[str]) -> list[int]:
    """For each argument of forward, the index of the input that it takes."""
    names = [each.name for each in spec.model_inputs]
    if set(names) == set(arguments):
        return [names.index(argument) for argument in arguments]
    positions = _indices(spec.model_inputs)
    return sorted(range(len(names)), key=positions.__getitem__)


def _indices(tensors: Sequence[TensorSpec]) -> list[int]:
    """The position that each name states by ``__<n>``, if all do; otherwise the order they are in."""
    matches = [_INDEXED.fullmatch(each.name) for each in tensors]
    if all(matches):
        return [int(match[1]) for match in matches if match]
    return list(range(len(tensors)))
