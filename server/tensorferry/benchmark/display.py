"""What ``bench`` prints: tables, bars and sentences, at most 80 characters wide."""

from __future__ import annotations

import math
import textwrap
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorferry.benchmark.measurement import PERCENTILES, Measurement
from tensorferry.benchmark.server import ServerSays
from tensorferry.benchmark.sweep import Step

__all__ = ["bars", "milliseconds", "row_heads", "step_row", "summary"]

_BARS: Final = 14
_BAR_CHARS: Final = 44
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_WIDTH_CHARS: Final = 80


def milliseconds(value_ms: float | None) -> str:
    """Return a latency with three digits that count; "-" for None or infinity."""
    if value_ms is None or not math.isfinite(value_ms):
        return "-"
    if value_ms >= 100:
        return f"{value_ms:,.0f}"
    return f"{value_ms:.3g}" if value_ms >= 1 else f"{value_ms:.3f}"


def summary(found: Measurement, says: ServerSays | None, why_not: str = "") -> str:
    """Return all about a run: figures, errors, bars, what the server says, and what the generator cost."""
    parts = [_head(found), _errors(found), _percentiles(found), bars(found), _server(says, found, why_not)]
    return "\n\n".join(each for each in [*parts, _generator(found), _verdict(found)] if each)


def row_heads(*, is_open: bool) -> str:
    """Return the heading of ``step_row``'s table."""
    level = "rate/s" if is_open else "in flight"
    heads = f"{level:>9} {'calls/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}"
    return f"{heads} {'errors':>7} {'batch':>6}  judged"


def step_row(step: Step[Measurement], says: ServerSays | None) -> str:
    """Return a step of a sweep as a line of a table."""
    found = step.outcome
    batch = "-" if says is None or says.batch_rows is None else f"{says.batch_rows:.1f}"
    judged = "within" if found.is_within else "errors" if found.has_errors else "missed"
    judged += " again" if step.attempt > 1 else ""
    judged += " late" if found.not_valid else ""
    shown = " ".join(f"{milliseconds(found.at(each)):>8}" for each in (50, 99, 100))
    errors = found.refused + found.failed
    return f"{found.level:>9,.0f} {found.calls_per_s:>9,.0f} {shown} {errors:>7,} {batch:>6}  {judged}"


def bars(found: Measurement) -> str:
    """Return the distribution of latencies as horizontal bars, in classes of equal ratio; "" without calls.

    A class's bar is as long as its share of the largest one; whatever is there at all shows a trace.
    """
    if not found.ok:
        return ""
    values, counts = _recorded(found)
    low, high = float(values[0]), float(values[-1])
    edges = np.geomspace(low, max(high, low * 1.01), _BARS + 1)
    edges[0], edges[-1] = low - 1, max(high, edges[-1]) + 1
    shares = np.histogram(values, edges, weights=counts)[0] / found.ok
    lines = ["  up to ms"]
    largest = float(shares.max())
    for upper, share in zip(edges[1:], shares, strict=True):
        bar = _bar(share / largest)
        percent = f"{share:7.2%}" if share else "      ·"
        lines.append(f"{milliseconds(upper / 1000):>10} {percent}  {bar}".rstrip())
    return "\n".join(lines)


def _bar(share: float) -> str:
    eighths = math.ceil(share * _BAR_CHARS * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _recorded(found: Measurement) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the values that were recorded, in us, and how often."""
    items = [
        (each.value_iterated_to, each.count_added_in_this_iter_step)
        for each in found.histogram.get_recorded_iterator()
    ]
    return np.array([value for value, _ in items], dtype=np.float64), np.array(
        [count for _, count in items], dtype=np.int64
    )


def _head(found: Measurement) -> str:
    unit = "calls/s" if found.is_open else "in flight"
    loop = f"{'open' if found.is_open else 'closed'} loop, {found.level:,.10g} {unit}"
    rows = f", {found.calls_per_s * found.rows:,.0f} rows/s" if found.rows > 1 else ""
    return (
        f"{loop}, {found.lasted_s:.1f} s\n"
        f"{found.calls_per_s:,.0f} calls/s answered{rows}: {found.ok:,} of {found.calls:,}"
        f", refused {found.refused:,}, failed {found.failed:,}"
    )


def _errors(found: Measurement) -> str:
    return "\n".join(_cut(f"{count:>9,} x {said}") for said, count in found.errors.items())


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH_CHARS else line[: _WIDTH_CHARS - 1] + "…"


def _percentiles(found: Measurement) -> str:
    if not found.ok:
        return ""
    names = ["mean", *(f"p{each:g}" for each in PERCENTILES), "max"]
    values = [found.mean_ms, *(found.at(each) for each in PERCENTILES), found.at(100)]
    heads = "".join(f"{name:>9}" for name in names)
    return f"latency ms{heads[2:]}\n{'':8}" + "".join(f"{milliseconds(each):>9}" for each in values)


def _server(says: ServerSays | None, found: Measurement, why_not: str) -> str:
    if says is None:
        return f"the server says nothing of this: {why_not}" if why_not else ""
    if not says.requests:
        return f"the server says: no request was answered, {says.failures:,} failed"
    batch = "no execution" if says.batch_rows is None else f"{says.batch_rows:.2f} rows a batch"
    hits = f", {says.cache_hits:,} from the cache" if says.cache_hits else ""
    lines = [f"the server says: {says.requests:,} requests in {says.executions:,} executions, {batch}{hits}"]
    parts = {"queue": says.queue_ms, "input": says.input_ms, "infer": says.infer_ms, "output": says.output_ms}
    if found.mean_ms is not None and says.total_ms is not None:
        parts["outside"] = max(0.0, found.mean_ms - says.total_ms)
    lines.append("mean ms " + "".join(f"{name:>9}" for name in parts))
    lines.append(" " * 8 + "".join(f"{milliseconds(each):>9}" for each in parts.values()))
    return "\n".join(lines)


def _generator(found: Measurement) -> str:
    slip = f"p50 {milliseconds(found.slip.p50_ms)}, p99 {milliseconds(found.slip.p99_ms)} ms"
    if found.is_open:
        return f"generator: calls left late by {slip}, max {milliseconds(found.slip.max_ms)}"
    return f"generator: from answer to next call {slip}; {found.generator_busy or 0:.0%} of a core"


def _verdict(found: Measurement) -> str:
    lines = [
        textwrap.fill(f"NOT VALID: {each}", _WIDTH_CHARS, break_on_hyphens=False) for each in found.not_valid
    ]
    limits = found.limits
    if limits.objective_ms is not None:
        value = milliseconds(found.at(limits.percentile))
        kept = "kept" if found.is_within else "MISSED"
        errors = " and there were errors" if found.has_errors else ""
        lines.append(
            f"objective {kept}: p{limits.percentile:g} is {value} ms, at most {limits.objective_ms:g} "
            f"wanted{errors}"
        )
    return "\n".join(lines)
