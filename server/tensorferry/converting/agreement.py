"""Whether two models give the same answers, within what their datatypes can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from tensorferry.converting.samples import Sample

__all__ = ["Agreement", "Tolerance", "compare"]

Call = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Answers agree if ``|a - b| <= absolute + relative * |a|`` in every element."""

    relative: float
    absolute: float


#: What another order of the same sums makes of a datatype's last digits, with room. Others must be equal.
_TOLERANCES: Final = {
    torch.float64: Tolerance(1e-9, 1e-10),
    torch.float32: Tolerance(1e-4, 1e-5),
    torch.float16: Tolerance(1e-2, 1e-3),
    torch.bfloat16: Tolerance(5e-2, 1e-2),
}
_EXACT: Final = Tolerance(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest differences over all samples. ``fault`` says where they don't agree; "" if they do."""

    max_abs: float
    max_rel: float
    fault: str = ""


def compare(
    original: Call, other: Call, samples: Sequence[Sample], tolerance: Tolerance | None = None
) -> Agreement:
    """Run both on every sample. ``tolerance`` stands in for those of the floating-point datatypes."""
    max_abs = max_rel = 0.0
    for sample in samples:
        expected = original(sample.tensors)
        try:
            got = other(sample.tensors)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Agreement(max_abs, max_rel, f"raises on {sample.label}: {reason}")
        if len(got) != len(expected):
            return Agreement(max_abs, max_rel, f"gives {len(got)} outputs in place of {len(expected)}")
        for index, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
            what = f"output {index} on {sample.label}"
            if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
                was, came = (f"{each.dtype} {list(each.shape)}" for each in (ours, theirs))
                return Agreement(max_abs, max_rel, f"{what} is {came} in place of {was}")
            absolute, relative, agrees = _difference(ours, theirs, tolerance)
            max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
            if not agrees:
                return Agreement(
                    max_abs, max_rel, f"{what} differs by {absolute:.3g} ({relative:.3g} relative)"
                )
    return Agreement(max_abs, max_rel)


def _difference(
    ours: torch.Tensor, theirs: torch.Tensor, given: Tolerance | None
) -> tuple[float, float, bool]:
    """Return the largest absolute and relative difference, and whether they are within the tolerance."""
    tolerance = _TOLERANCES.get(ours.dtype, _EXACT)
    if given is not None and ours.dtype in _TOLERANCES:
        tolerance = given
    if not ours.numel():
        return 0.0, 0.0, True
    left, right = ours.to(torch.float64), theirs.to(torch.float64)
    agrees = bool(
        torch.allclose(right, left, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    )
    both = torch.isfinite(left) & torch.isfinite(right)
    distance = torch.where(both, (left - right).abs(), torch.zeros_like(left))
    relative = distance / left.abs().clamp_min(tolerance.absolute or 1.0)
    return float(distance.max()), float(relative[both].max()) if bool(both.any()) else 0.0, agrees
