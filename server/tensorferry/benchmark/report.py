"""What a run says: how much was offered, how much was answered well, how long it took, and over time.

Rules for this file: every latency is counted from the intended time; percentiles come from
histograms of all calls, never from samples or from means of percentiles; answers and refusals are
never mixed, because a quick refusal would make a server look fast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tensorferry.benchmark.endings import OK, status_name
from tensorferry.benchmark.traffic import Result

__all__ = [
    "Bounds",
    "Latencies",
    "Report",
    "Slip",
    "Summary",
    "Windows",
    "analyse",
    "histogram_of",
    "messages_by_count",
    "write_runs",
]

#: A histogram's range, and the digits that it keeps: values are right to 0.1 %.
_LOWEST_US, _HIGHEST_US, _DIGITS = 1, 3_600_000_000, 3
_SHOWN_MESSAGES: Final = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a run is judged by.

    ``objective_ms``: an answer counts as good within this, from the intended time. ``max_slip_ms``:
    a run whose calls left later than this, at the 99th percentile, isn't valid. ``window_s``:
    width of the windows of the time series.
    """

    objective_ms: float = 10.0
    max_slip_ms: float = 1.0
    window_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Latencies:
    """Percentiles, None if there are no calls; ``histogram`` is the encoded HdrHistogram, in us."""

    count: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    histogram: str

    @classmethod
    def of(cls, latencies_s: Floats) -> Latencies:
        """Record ``latencies_s``, shape (calls,), in seconds."""
        histogram = histogram_of(latencies_s)

        def at(percentile: float) -> float | None:
            return histogram.get_value_at_percentile(percentile) / 1000 if len(latencies_s) else None

        encoded = histogram.encode().decode("ascii")
        return cls(len(latencies_s), at(50), at(90), at(99), at(99.9), at(100), encoded)


@dataclass(frozen=True, slots=True)
class Slip:
    """How late the generator was: actual minus intended send time, in ms; infinite for what wasn't sent."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, slips_s: Floats) -> Slip:
        """``slips_s`` is in seconds, shape (calls,), infinite for what wasn't sent."""
        if not len(slips_s):
            return cls(0.0, 0.0, 0.0)
        # No interpolation: infinity less infinity is no number.
        return cls(*(np.percentile(slips_s, [50, 99, 100], method="inverted_cdf") * 1000).tolist())


@dataclass(frozen=True, slots=True)
class Summary:
    """One stream of traffic, or all together.

    ``ok_in_time`` answers came within the objective, and ``goodput_per_s`` is those per second.
    ``refused`` is calls answered with another status than OK; ``failed`` those without an answer.
    ``by_status`` counts gRPC statuses and failures; ``by_message`` the most frequent endings.
    """

    name: str
    offered: int
    offered_per_s: float
    sent: int
    ok: int
    ok_in_time: int
    refused: int
    failed: int
    goodput_per_s: float
    by_status: dict[str, int]
    by_message: dict[str, int]
    latency_of_ok: Latencies
    latency_of_refused: Latencies
    slip: Slip


@dataclass(frozen=True, slots=True)
class Windows:
    """The run over time: one item for each window, by intended time; latencies in ms, None without an OK."""

    width_s: float
    start_s: list[float]
    offered: list[int]
    ok: list[int]
    ok_in_time: list[int]
    refused: list[int]
    failed: list[int]
    p50_ms: list[float | None]
    p99_ms: list[float | None]


@dataclass(frozen=True, slots=True)
class Report:
    """A run. It is valid only if ``invalid_because`` is empty."""

    bounds: Bounds
    seconds: float
    total: Summary
    streams: list[Summary]
    windows: Windows
    invalid_because: list[str]

    @property
    def is_valid(self) -> bool:
        """Whether the generator did what it was asked, so that the figures are the server's."""
        return not self.invalid_because

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, where an infinite slip is null."""
        return {"valid": self.is_valid, **_finite(asdict(self))}

    def text(self) -> str:
        """Return a few lines for a terminal."""
        lines = [_line(each) for each in (*(self.streams if len(self.streams) > 1 else ()), self.total)]
        lines += [f"  {count:>8} x {message}" for message, count in self.total.by_message.items()]
        return "\n".join([*lines, *(f"  NOT VALID: {each}" for each in self.invalid_because)])


def histogram_of(latencies_s: Floats) -> HdrHistogram:
    """Return an HdrHistogram, in us, of ``latencies_s``, shape (calls,), in seconds."""
    histogram = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)
    microseconds = np.clip(np.rint(latencies_s * 1e6), _LOWEST_US, _HIGHEST_US).astype(np.int64)
    for value, count in zip(*np.unique(microseconds, return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return histogram


def analyse(result: Result, bounds: Bounds | None = None, seconds: float | None = None) -> Report:
    """Return what ``result`` says; ``seconds`` is the schedule's length, by default until its last call."""
    bounds = bounds or Bounds()
    last = float(result.intended_s.max(initial=0.0))
    seconds = seconds or last or 1.0
    everybody = np.ones(len(result.stream), dtype=bool)
    total = _summary("total", result, everybody, bounds, seconds)
    streams = [
        _summary(name, result, result.stream == place, bounds, seconds)
        for place, name in enumerate(result.names)
    ]
    windows = _windows(result, bounds, max(seconds, last))
    return Report(bounds, seconds, total, streams, windows, _invalid_because(total, bounds, result.held))


def write_runs(path: Path, name: str, reports: Sequence[Report]) -> None:
    """Write the runs against the server ``name`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"name": name, "runs": [each.to_dict() for each in reports]}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _summary(name: str, result: Result, chosen: NDArray[np.bool_], bounds: Bounds, seconds: float) -> Summary:
    status, latency_s = result.status[chosen], (result.done_s - result.intended_s)[chosen]
    slip_s = (result.sent_s - result.intended_s)[chosen]
    ok, refused = status == OK, status > OK
    in_time = int((latency_s[ok] <= bounds.objective_ms / 1000).sum())
    values, counts = np.unique(status, return_counts=True)
    return Summary(
        name=name,
        offered=len(status),
        offered_per_s=len(status) / seconds,
        sent=int((~np.isnan(slip_s)).sum()),
        ok=int(ok.sum()),
        ok_in_time=in_time,
        refused=int(refused.sum()),
        failed=int((status < OK).sum()),
        goodput_per_s=in_time / seconds,
        by_status={status_name(int(value)): int(n) for value, n in zip(values, counts, strict=True)},
        by_message=messages_by_count(result, chosen),
        latency_of_ok=Latencies.of(latency_s[ok]),
        latency_of_refused=Latencies.of(latency_s[refused]),
        slip=Slip.of(np.where(np.isnan(slip_s), np.inf, slip_s)),
    )


def messages_by_count(result: Result, chosen: NDArray[np.bool_]) -> dict[str, int]:
    """Count endings that aren't OK by what was said, the most frequent first; the ten most frequent.

    ``chosen``, of shape (calls,), is True for the calls that count.
    """
    counts: dict[str, int] = {}
    for place, count in enumerate(np.bincount(result.ending[chosen], minlength=len(result.endings))):
        ending = result.endings[place]
        if count and ending.status != OK:
            said = f"{status_name(ending.status)}: {ending.message}"
            counts[said] = counts.get(said, 0) + int(count)
    return dict(sorted(counts.items(), key=lambda each: -each[1])[:_SHOWN_MESSAGES])


def _windows(result: Result, bounds: Bounds, seconds: float) -> Windows:
    width_s = bounds.window_s
    number = max(1, int(np.ceil(seconds / width_s - 1e-9)))
    place = np.minimum((result.intended_s / width_s).astype(np.int64), number - 1)
    status, latency_ms = result.status, (result.done_s - result.intended_s) * 1000
    ok = status == OK

    def count(which: NDArray[np.bool_]) -> list[int]:
        counts: list[int] = np.bincount(place[which], minlength=number).tolist()
        return counts

    # Calls are in the order of their intended times, so each window is a slice.
    of_ok = np.split(latency_ms[ok], np.searchsorted(place[ok], np.arange(1, number)))

    def percentile(point: float) -> list[float | None]:
        return [
            float(np.percentile(each, point, method="inverted_cdf")) if len(each) else None for each in of_ok
        ]

    return Windows(
        width_s=width_s,
        start_s=[round(each * width_s, 9) for each in range(number)],
        offered=count(np.ones(len(place), dtype=bool)),
        ok=count(ok),
        ok_in_time=count(ok & (latency_ms <= bounds.objective_ms)),
        refused=count(status > OK),
        failed=count(status < OK),
        p50_ms=percentile(50),
        p99_ms=percentile(99),
    )


def _invalid_because(total: Summary, bounds: Bounds, held: int) -> list[str]:
    if not total.offered:
        return ["the schedule is empty: raise the rate or the length"]
    if total.slip.p99_ms <= bounds.max_slip_ms:
        return []
    late = f"p99 of how late calls left: {_shown(total.slip.p99_ms)} ms; allowed: {bounds.max_slip_ms:g}"
    if total.sent < total.offered:
        late += f"; {total.offered - total.sent} were never sent"
    if held:
        return [f"{late}: up to {held} at once found no connection with room; use more connections"]
    return [f"{late}: give the generator a core of its own, or a lower rate"]


def _line(each: Summary) -> str:
    ok = each.latency_of_ok
    latencies = "/".join(map(_shown, (ok.p50_ms, ok.p90_ms, ok.p99_ms, ok.p999_ms, ok.max_ms)))
    return (
        f"{each.name}: offered {each.offered_per_s:,.0f}/s, ok {each.ok}, "
        f"in time {each.ok_in_time} ({each.goodput_per_s:,.0f}/s), refused {each.refused}, "
        f"failed {each.failed}; ok p50/p90/p99/p99.9/max {latencies} ms; "
        f"slip p99 {_shown(each.slip.p99_ms)} ms"
    )


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _finite(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
