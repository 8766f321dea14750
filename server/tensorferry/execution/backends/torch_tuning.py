"""What ``ModelSpec.tuning`` does to a torch model, on any device: its datatype and its memory format.

Nothing here waits for the device, so that a tuned call can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import torch

from tensorferry.execution.backends import torch_gpu
from tensorferry.execution.backends.signature import positions
from tensorferry.execution.backends.torch_tensors import DTYPES, ordered_outputs
from tensorferry.model import ModelSpec, TensorSpec

__all__ = ["Call", "is_tuned", "lay_out", "on_device", "place_of", "tuned", "wording"]

#: Takes tensors in the model's order; returns a tensor, a sequence of them, or a dict by name.
Call = Callable[..., object]

#: What autocast leaves an output in, where it was something else before.
_CAST: Final = (torch.float16, torch.bfloat16, torch.float32)


def place_of(device: str) -> str:
    """Return where the tensors of a model on ``device`` are: there, unless the device is an emulated one."""
    if device == "cpu" or torch_gpu.is_real():
        return device
    return str(torch_gpu.gpu_of(device).device)


def is_tuned(spec: ModelSpec) -> bool:
    """Whether tuning changes what is computed, by rounding at most."""
    return bool(spec.tuning.autocast) or spec.tuning.channels_last


def wording(spec: ModelSpec) -> str:
    """Name what is on as the configuration does: "autocast bf16 and memory_format channels_last"."""
    tuning = spec.tuning
    autocast = [f"autocast {tuning.autocast.lower()}"] if tuning.autocast else []
    return " and ".join(autocast + ["memory_format channels_last"] * tuning.channels_last)


def on_device(place: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which ``place`` is the calling thread's CUDA device, if it is one."""
    return torch.cuda.device(place) if place.startswith("cuda") else contextlib.nullcontext()


def lay_out(module: torch.nn.Module, spec: ModelSpec, place: str) -> None:
    """Lay the module's 4-dimensional weights, which are at ``place``, out as ``spec`` wants them."""
    if not spec.tuning.channels_last:
        return
    # torch's annotations want all or none of the arguments.
    to: Callable[..., object] = module.to
    to(memory_format=torch.channels_last)
    if place.startswith("cuda"):
        # The copies were made on this thread's stream, and other streams read them.
        torch.cuda.current_stream(place).synchronize()


def tuned(call: Call, spec: ModelSpec, place: str) -> Call:
    """Return ``call`` as ``spec`` wants it run at ``place``; ``call`` itself where nothing is asked.

    What is returned belongs to one stream. It returns its outputs by name, in the datatypes that
    ``spec`` says and, where their memory format was changed, in row-major order.
    """
    if not is_tuned(spec):
        return call
    order = positions(spec.outputs)
    context = _autocast(spec, place)
    is_last = spec.tuning.channels_last

    def run(*inputs: torch.Tensor) -> dict[str, Any]:
        if is_last:
            inputs = tuple([_channels_last(each) for each in inputs])
        with context:
            returned = call(*inputs)
        values = ordered_outputs(spec, order, returned)
        return {each.name: _restored(each, value) for each, value in zip(spec.outputs, values, strict=True)}

    return run


def _autocast(spec: ModelSpec, place: str) -> contextlib.AbstractContextManager[object]:
    datatype = spec.tuning.autocast
    if not datatype:
        return contextlib.nullcontext()
    # Without its cache of cast weights: what a captured graph reads must not be freed behind it, and
    # in inference mode nothing is used twice but weights that a model itself uses twice.
    kind = torch.device(place).type
    return torch.autocast(kind, dtype=DTYPES[datatype], cache_enabled=False)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _restored(expected: TensorSpec, value: Any) -> Any:  # noqa: ANN401 - checked by who asked for it
    if not isinstance(value, torch.Tensor):
        return value
    dtype = DTYPES[expected.datatype.name] if expected.datatype is not None else value.dtype
    if value.dtype != dtype and value.dtype in _CAST and dtype.is_floating_point:
        value = value.to(dtype)
    return value.contiguous()
