"""The report on a rollout's arms as text of at most 100 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tensorferry.commands.rollout_status import percent, role_of
from tensorferry.rollout.state import Rollout

if TYPE_CHECKING:
    from tensorferry.wire import rollout_pb2 as pb

__all__ = ["as_text"]

_WIDTH: Final = 100
_HEAD: Final = (
    "VERSION", "ROLE", "SHARE", "REQUESTS", "ERRORS", "NOT FINITE", "P50 ms", "P99 ms", "SCORE MEAN"
)  # fmt: skip
_NOTHING: Final = "-"


def as_text(report: pb.RolloutReportResponse, rollout: Rollout) -> str:
    """Return a table with a line for each arm, what labels say, and the histograms."""
    arms = list(report.arms)
    if not arms:
        return f"{report.model_name}: nothing to report without a canary, split or shadow"
    rows = [_HEAD, *(_cells(arm, rollout) for arm in arms)]
    blocks = [f"{report.model_name}: since the versions that answer last changed", _table(rows)]
    if any(arm.labelled for arm in arms):
        blocks.append(_labels(arms))
    scored = [arm for arm in arms if sum(arm.scores.counts)]
    blocks += _histograms("scores", [(f"version {arm.version}", arm.scores) for arm in scored])
    for arm in arms:
        if arm.is_shadow:
            blocks.append(_shadow(arm))
            blocks += _histograms("|difference|", [(f"version {arm.version} to live", arm.score_differences)])
    return "\n\n".join(blocks)


def _cells(arm: pb.Arm, rollout: Rollout) -> tuple[str, ...]:
    scored = sum(arm.scores.counts)
    return (
        str(arm.version),
        _cut(role_of(rollout, arm.version) or _NOTHING, 15),
        _NOTHING if arm.is_shadow else percent(arm.share),
        str(arm.requests),
        str(arm.errors),
        str(arm.not_finite),
        _ms(arm.latency_p50_ms) if arm.requests else _NOTHING,
        _ms(arm.latency_p99_ms) if arm.requests else _NOTHING,
        f"{arm.score_mean:.4g}" if scored else _NOTHING,
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows aligned: numbers to the right, roles to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _labels(arms: Sequence[pb.Arm]) -> str:
    rows = [("VERSION", "", "LABELLED", "AUC", "95 % INTERVAL")]
    for arm in arms:
        auc = arm.auc if arm.HasField("auc") else None
        value = f"{auc.value:.4f}" if auc is not None else _NOTHING
        interval = f"{auc.low:.4f} to {auc.high:.4f}" if auc is not None else "needs both labels"
        rows.append((str(arm.version), "", str(arm.labelled), value, interval))
    return _table(rows)


def _shadow(arm: pb.Arm) -> str:
    copies = arm.compared + arm.dropped
    dropped = f" ({percent(arm.dropped / copies)} of the copies)" if copies else ""
    return f"shadow version {arm.version}: {arm.compared} compared, {arm.dropped} dropped{dropped}"


def _histograms(title: str, shown: Sequence[tuple[str, pb.Histogram]]) -> list[str]:
    """Return histograms side by side if their bounds are the same, else one below the other."""
    shown = [(name, histogram) for name, histogram in shown if sum(histogram.counts)]
    if not shown:
        return []
    bounds = list(shown[0][1].bounds)
    if all(list(histogram.bounds) == bounds for _, histogram in shown) and len(shown) <= 4:
        return [_side_by_side(title, shown)]
    return [_side_by_side(title, [each]) for each in shown]


def _side_by_side(title: str, shown: Sequence[tuple[str, pb.Histogram]]) -> str:
    ranges = _ranges(shown[0][1].bounds)
    left = max(len(title), *map(len, ranges))
    width = (_WIDTH - left) // len(shown) - 2
    parts = [[count / sum(histogram.counts) for count in histogram.counts] for _, histogram in shown]
    largest = max(max(part) for part in parts)
    lines = [f"{title:<{left}}" + "".join(f"  {name:<{width}}" for name, _ in shown)]
    filled = [index for index in range(len(ranges)) if any(part[index] for part in parts)]
    for index in range(filled[0], filled[-1] + 1):
        cells = (_bar(part[index], largest, width) for part in parts)
        lines.append(f"{ranges[index]:<{left}}" + "".join(f"  {cell:<{width}}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _ranges(bounds: Sequence[float]) -> list[str]:
    texts = [f"{bound:.4g}" for bound in bounds]
    if not texts:
        return ["all"]
    left = max(map(len, texts))
    between = (f"{low:>{left}} to {high}" for low, high in pairwise(texts))
    return [f"{'':>{left}} below {texts[0]}", *between, f"{texts[-1]:>{left}} and above"]


def _bar(part: float, largest: float, width: int) -> str:
    """Return a part of the whole as a number and a bar; what is there at all has at least a dot."""
    length = round(part / largest * (width - 8))
    return f"{100 * part:5.1f} % {'#' * length or ('.' if part else '')}"


def _ms(value: float) -> str:
    return "none in time" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
