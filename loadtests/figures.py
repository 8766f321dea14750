"""What an open-loop run says of each stream of traffic in each part of a phase: numbers with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.scenario import Phase
from loadtests.verdict import Figures
from tensorferry.benchmark.endings import OK, status_name
from tensorferry.benchmark.report import Bounds, Summary, analyse
from tensorferry.benchmark.traffic import Result

__all__ = ["answered_per_s", "figures_of_part", "figures_of_phase", "merged"]

_RESOURCE_EXHAUSTED: Final = 8

Mask = NDArray[np.bool_]


def figures_of_phase(
    phase: Phase, result: Result, objectives: dict[str, float], grace_s: float
) -> dict[str, float | None]:
    """Return the figures of every stream in every part, by ``PART.STREAM.FIGURE``, and print them.

    ``objectives`` are in ms, by model; an answer of a model without one is good within ``grace_s``.
    """
    figures: dict[str, float | None] = {}
    start = 0.0
    for part, seconds in phase.parts.items():
        for place, each in enumerate(phase.traffic):
            bound_ms = objectives.get(each.model, grace_s * 1000)
            of_part = figures_of_part(result, place, (start, start + seconds), bound_ms)
            figures |= {f"{part}.{each.name}.{key}": value for key, value in of_part.items()}
            print(_line(f"{part}.{each.name}", of_part), flush=True)
        start += seconds
    return figures


def figures_of_part(
    result: Result, place: int, part_s: tuple[float, float], objective_ms: float
) -> dict[str, float | None]:
    """Return the figures of stream ``place`` in the part from ``part_s[0]`` to ``part_s[1]`` seconds.

    A call belongs to the part in which it was due, and so do its answer and its latency, which counts from
    then. Only ``answered_per_s`` counts the answers that came in the part, whenever their calls were
    due. ``good_per_s`` is answers within the objective. ``errors`` is endings other than an answer and
    RESOURCE_EXHAUSTED, as a number. Percentiles are None where nothing was answered or refused.
    """
    start, end = part_s
    of_stream = result.stream == place
    due = of_stream & (result.intended_s >= start) & (result.intended_s < end)
    taken = _only(result, due)
    summary = analyse(taken, Bounds(objective_ms), end - start).streams[place]
    offered, seconds = summary.offered, end - start
    refused = _only(result, due & (result.status == _RESOURCE_EXHAUSTED))
    return {
        "offered_per_s": offered / seconds,
        "ok_per_s": summary.ok / seconds,
        "good_per_s": summary.goodput_per_s,
        "answered_per_s": answered_per_s(result, of_stream, start, end),
        "ok_ratio": summary.ok / offered if offered else None,
        "refused_ratio": _refused(summary) / offered if offered else None,
        "errors": float(offered - summary.ok - _refused(summary)),
        "p50_ms": summary.latency_of_ok.p50_ms,
        "p99_ms": summary.latency_of_ok.p99_ms,
        "refused_p50_ms": analyse(refused).total.latency_of_refused.p50_ms,
        "slip_p99_ms": summary.slip.p99_ms if offered else None,
    }


def merged(rounds: Sequence[Figures]) -> dict[str, float | None]:
    """Make one set of figures of those of each round: medians, but the sum of errors and the worst ok_ratio.

    The median is the lower one of two, and leaves out rounds in which there was nothing to measure.
    """
    found: dict[str, float | None] = {}
    for name in rounds[0]:
        values = sorted(value for each in rounds if (value := each[name]) is not None)
        if not values:
            found[name] = None
        elif name.endswith(".errors"):
            found[name] = sum(values)
        else:
            found[name] = values[0 if name.endswith(".ok_ratio") else (len(values) - 1) // 2]
    return found


def _refused(summary: Summary) -> int:
    return summary.by_status.get(status_name(_RESOURCE_EXHAUSTED), 0)


def answered_per_s(result: Result, chosen: Mask, start: float, end: float) -> float:
    """Return the answers/s that came from ``start`` to ``end``, to the calls ``chosen``: bool (calls,)."""
    answered = chosen & (result.status == OK) & (result.done_s >= start) & (result.done_s < end)
    return int(answered.sum()) / (end - start)


def _only(result: Result, chosen: Mask) -> Result:
    return replace(
        result,
        stream=result.stream[chosen],
        intended_s=result.intended_s[chosen],
        sent_s=result.sent_s[chosen],
        done_s=result.done_s[chosen],
        ending=result.ending[chosen],
    )


def _line(name: str, figures: Figures) -> str:
    """Return one part of one stream as a line for a terminal."""

    def shown(key: str) -> str:
        value = figures[key]
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    return (
        f"    {name}: offered {shown('offered_per_s')}/s, good {shown('good_per_s')}/s, "
        f"refused {shown('refused_ratio')}, errors {shown('errors')}; p50 {shown('p50_ms')}, "
        f"p99 {shown('p99_ms')}, refused p50 {shown('refused_p50_ms')}, slip p99 {shown('slip_p99_ms')} ms"
    )
