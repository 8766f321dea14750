"""What the rollout's demonstration has shown, and whether that is what it should. Values and text only."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Arm", "Verdict", "render"]

_NAMES: Final = 26
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Arm:
    """A version, how many of its scores have a label, and its AUC with the bounds of its 95 % interval."""

    version: int
    labelled: int
    auc: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts are calls. ``reason`` is the server's for the rollback."""

    calls: int
    failures: Mapping[str, int]
    answered_by_bad: int
    answered_by_bad_afterwards: int
    is_rolled_back: bool
    reason: str
    arms: Sequence[Arm]

    @property
    def problems(self) -> list[str]:
        """What isn't as it should be; empty if all is."""
        problems = [f"{count:,} calls failed: {reason}" for reason, count in sorted(self.failures.items())]
        if not self.is_rolled_back:
            problems.append("the bad version wasn't taken back")
        elif not self.reason:
            problems.append("the bad version was taken back without a reason")
        if not self.answered_by_bad:
            problems.append("the bad version answered nobody, so that nothing was shown")
        if self.is_rolled_back and self.answered_by_bad_afterwards:
            problems.append(
                f"{self.answered_by_bad_afterwards:,} calls were answered by it after the rollback"
            )
        judged = [arm for arm in self.arms if arm.auc is not None]
        if len(judged) < 2:
            problems.append(f"{len(judged)} versions have an AUC, and 2 are expected")
        return problems


def render(verdict: Verdict) -> str:
    """Return the verdict as text, ``_WIDTH`` columns wide."""
    failed = sum(verdict.failures.values())
    end = "until it was taken back" if verdict.is_rolled_back else "and it wasn't taken back"
    lines = [
        _line(
            "calls", f"{verdict.calls:,}; failed: {failed:,}" if failed else f"{verdict.calls:,}; none failed"
        ),
        _line("answered by next.pt", f"{verdict.answered_by_bad:,} {end}"),
        _line("afterwards", f"{verdict.answered_by_bad_afterwards:,}"),
        _line("reason", verdict.reason or "none"),
        *(_line(f"AUC of version {arm.version}", _auc(arm)) for arm in verdict.arms),
        _line("verdict", "FAILED" if verdict.problems else "passed"),
        *(f"  - {problem}" for problem in verdict.problems),
    ]
    return "\n".join(lines)


def _auc(arm: Arm) -> str:
    if arm.auc is None:
        return f"unknown: {arm.labelled:,} labels, and both kinds are needed"
    value, low, high = arm.auc
    return f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}, {arm.labelled:,} labels"


def _line(name: str, value: str) -> str:
    return textwrap.fill(f"{name:<{_NAMES}}{value}", _WIDTH, subsequent_indent=" " * _NAMES)
