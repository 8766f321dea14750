"""What tuning changes in a torch model's answers, looked at when the model is loaded.

A golden file says what the answers must be, and is the better check: real inputs, and tolerances of the
owner's own. Without one, the model is run plain and tuned on the same random inputs. What may differ is
a part of the output's largest value rather than of each value: of random inputs, an output near 0 is
the sum of many numbers that cancel each other, and as inexact as those numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
import torch

from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends.signature import positions
from tensorferry.execution.backends.torch_tensors import (
    DTYPE_NAMES,
    DTYPES,
    check_value,
    first_line,
    ordered_outputs,
)
from tensorferry.execution.backends.torch_tuning import Call, is_tuned, lay_out, on_device, tuned, wording
from tensorferry.execution.golden import tolerance
from tensorferry.model import ModelSpec, TensorSpec

__all__ = ["Difference", "check_tuning", "difference"]

_log = structlog.get_logger("tensorferry.execution")

#: Rows of the inputs, where the model takes as many.
_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """How one output differs: the largest difference of two finite values, and what is allowed of it.

    ``infinite`` counts values that are finite in the plain output alone, of ``values``.
    """

    largest: float
    allowed: float
    infinite: int
    values: int

    @property
    def is_too_large(self) -> bool:
        """Whether tuning spoils the output."""
        return self.infinite > 0 or not self.largest <= self.allowed


def check_tuning(
    module: torch.nn.Module, call: Call, spec: ModelSpec, order: Sequence[int], place: str
) -> None:
    """Lay the weights of ``module`` out as ``spec`` wants them, and check what its tuning changes.

    Does nothing for a model that isn't tuned. With a golden file only whether the tuned model runs is
    looked at here. Nothing is looked at, with a warning, where the inputs' shapes vary, or where the
    model's answers to the same inputs differ anyway.

    Args:
        module: The module, on ``place``.
        call: What runs it.
        spec: The completed specification.
        order: For each argument of ``call``, the index of the input that it takes.
        place: Where the tensors are.

    Raises:
        ModelLoadError: the model doesn't run tuned, or its answers differ by too much. Says by how
            much, what is allowed, and how to mend it.
    """
    if not is_tuned(spec):
        return
    # Before the weights are laid out anew: these are the answers that the owner knows.
    plain = _plain_answers(call, spec, order, place)
    lay_out(module, spec, place)
    if not plain:
        return
    where = f"model {spec.name!r} version {spec.version}"
    try:
        got = _answers(tuned(call, spec, place), spec, order, place)
    except Exception as error:
        raise ModelLoadError(
            f"{where} doesn't run with {wording(spec)}: {first_line(error)}; remove {_names(spec)}"
        ) from error
    if spec.golden is None:
        _compare(spec, plain, got, where)


def difference(plain: torch.Tensor, got: torch.Tensor, rtol: float, atol: float) -> Difference:
    """Compare an output of a tuned model with the plain one of the same shape, on the host.

    Integers and booleans must be equal; of floating numbers the largest may differ by
    ``atol + rtol * max |plain|``.
    """
    is_exact = not plain.dtype.is_floating_point
    expected, came = plain.to(torch.float64), got.to(torch.float64)
    finite = expected.isfinite()
    infinite = int((finite & ~came.isfinite()).sum())
    both = finite & came.isfinite()
    largest = _most((expected - came).abs()[both])
    allowed = 0.0 if is_exact else atol + rtol * _most(expected.abs()[finite])
    return Difference(largest, allowed, infinite, plain.numel())


def _compare(spec: ModelSpec, plain: list[torch.Tensor], got: list[torch.Tensor], where: str) -> None:
    largest: dict[str, float] = {}
    for each, expected, came in zip(spec.outputs, plain, got, strict=True):
        if expected.shape != came.shape:
            raise ModelLoadError(
                f"{where}: with {wording(spec)}, output {each.name!r} has shape {list(came.shape)}, and"
                f" {list(expected.shape)} without, on random inputs; {_how_to_mend(spec)}"
            )
        found = difference(expected, came, *_tolerance(spec, expected.dtype))
        largest[each.name] = float(f"{found.largest:.3g}")
        if found.is_too_large:
            raise ModelLoadError(
                f"{where}: with {wording(spec)}, {_said(each, found)}, on random inputs; {_how_to_mend(spec)}"
            )
    _log.info(
        "tuning compared with the plain model",
        model=spec.name,
        version=spec.version,
        tuning=wording(spec),
        largest_difference=largest,
    )


def _said(each: TensorSpec, found: Difference) -> str:
    if found.infinite:
        return (
            f"{found.infinite} of {found.values} values of output {each.name!r} aren't finite, and are"
            " without (FP16 ends at 65504)"
        )
    return (
        f"output {each.name!r} differs by {found.largest:.3g} from what the model gives without, and"
        f" {found.allowed:.3g} is allowed"
    )


def _how_to_mend(spec: ModelSpec) -> str:
    return (
        f"remove {_names(spec)}, or add a golden file of inputs that come, with rtol and atol if the"
        " difference is right"
    )


def _names(spec: ModelSpec) -> str:
    names = ["autocast"] if spec.tuning.autocast else []
    return " or ".join(names + ["memory_format"] * spec.tuning.channels_last)


def _tolerance(spec: ModelSpec, dtype: torch.dtype) -> tuple[float, float]:
    return tolerance(DTYPE_NAMES[dtype], spec.tuning.autocast) if dtype.is_floating_point else (0.0, 0.0)


def _plain_answers(call: Call, spec: ModelSpec, order: Sequence[int], place: str) -> list[torch.Tensor]:
    """Run the model twice as it is; return its outputs, or [], with a warning, where they say nothing."""
    try:
        first = _answers(call, spec, order, place)
        again = _answers(call, spec, order, place)
    except _VariesError as error:
        return _not_compared(spec, str(error))
    except Exception as error:  # warm-up says whether that is the model's fault
        return _not_compared(spec, f"the model raises on random inputs: {first_line(error)}")
    for one, other in zip(first, again, strict=True):
        is_same = one.shape == other.shape
        if not is_same or difference(one, other, *_tolerance(spec, one.dtype)).is_too_large:
            return _not_compared(spec, "its answers to the same inputs differ from run to run")
    return first


def _not_compared(spec: ModelSpec, reason: str) -> list[torch.Tensor]:
    if spec.golden is None:
        _log.warning(
            "tuning not compared with the plain model; add a golden file",
            model=spec.name,
            version=spec.version,
            tuning=wording(spec),
            reason=reason,
        )
    return []


class _VariesError(Exception):
    """The inputs' shapes aren't known."""


def _answers(call: Call, spec: ModelSpec, order: Sequence[int], place: str) -> list[torch.Tensor]:
    """Run the model on random inputs, the same at each call; return its outputs on the host."""
    generator = torch.Generator().manual_seed(0)
    tensors = [_random(each, spec, generator).to(place) for each in spec.model_inputs]
    with torch.inference_mode(), on_device(place):
        values = ordered_outputs(spec, positions(spec.outputs), call(*[tensors[index] for index in order]))
        return [_on_host(spec, each, value) for each, value in zip(spec.outputs, values, strict=True)]


def _on_host(spec: ModelSpec, each: TensorSpec, value: Any) -> torch.Tensor:  # noqa: ANN401
    check_value(spec, each, value)
    tensor: torch.Tensor = value
    return tensor.detach().cpu().clone()


def _random(tensor: TensorSpec, spec: ModelSpec, generator: torch.Generator) -> torch.Tensor:
    """Return normal numbers for floats, 0 and 1 for integers, which index the smallest embedding."""
    tensor = _at_shortest(tensor, spec)
    if tensor.dims is None or tensor.datatype is None or -1 in tensor.dims:
        raise _VariesError("its inputs' shapes vary")
    rows = min(_ROWS, spec.max_batch_size)
    shape = (rows, *tensor.dims) if spec.has_batch_dimension else tensor.dims
    dtype = DTYPES[tensor.datatype.name]
    padding = spec.padding
    if padding is not None and tensor.name == padding.lengths_input:
        return torch.full(shape, padding.buckets[0], dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _at_shortest(tensor: TensorSpec, spec: ModelSpec) -> TensorSpec:
    """Return a padded input at the shortest bucket; any other as it is."""
    if tensor.dims is None or spec.padding is None or tensor.name not in spec.padding.inputs:
        return tensor
    length = spec.padding.buckets[0]
    return replace(tensor, dims=tuple([length if dim == -1 else dim for dim in tensor.dims]))


def _most(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
