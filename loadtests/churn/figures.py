"""What a churn run says: figures, what is asked of them, and how they went over the cycles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.churn.cycles import Cycle
from loadtests.churn.measure import Calls, Outcome
from loadtests.scenario import Threshold

__all__ = ["SPARE", "THRESHOLDS", "WINDOWS", "figures_of", "windows_of"]

#: The run is looked at in so many windows of as many cycles each; the first is held against the last.
WINDOWS: Final = 10

#: Threads and descriptors that a server may hold more of at the end: a thread pool makes its last thread when
#: all others happen to be busy, and a timer's descriptor is kept for the next timer. What a cycle
#: loses, every cycle loses, which is far more.
SPARE: Final = 4

#: Fewer in a window wouldn't have all kinds of swaps and guests.
_LEAST_CYCLES: Final = 6
_MIB: Final = 2**20

#: On a machine that does nothing else the ratios are within 1.1. Where others work beside it, the two
#: windows may meet different neighbours, so that only a growth of half as much again counts.
THRESHOLDS: Final = (
    Threshold(figure="calls.failed", at_most=0.0),
    Threshold(figure="cycles.faults", at_most=0.0),
    Threshold(figure="cycles.missing", at_most=0.0),
    Threshold(figure="swap.last_ms", at_most=1.5, times="swap.first_ms"),
    Threshold(figure="load.last_ms", at_most=1.5, times="load.first_ms"),
    Threshold(figure="first_call.last_ms", at_most=1.5, times="first_call.first_ms"),
    Threshold(figure="steady.p50_last_ms", at_most=1.5, times="steady.p50_first_ms"),
    Threshold(figure="steady.p99_last_ms", at_most=1.5, times="steady.p99_first_ms"),
    Threshold(figure="swapped.p50_last_ms", at_most=1.5, times="swapped.p50_first_ms"),
    Threshold(figure="swapped.p99_last_ms", at_most=1.5, times="swapped.p99_first_ms"),
    Threshold(figure="quiet.p50_after_ms", at_most=1.5, times="quiet.p50_before_ms"),
    # Memory is never quite flat: 2 %, or 5 MiB for a small server, over all cycles together.
    Threshold(figure="rss.growth_mib", at_most=0.02, times="rss.first_mib", plus=5.0),
    Threshold(figure="threads.more", at_most=float(SPARE)),
    Threshold(figure="descriptors.more", at_most=float(SPARE)),
    Threshold(figure="processes.more", at_most=0.0),
)

Floats = NDArray[np.float64]


def figures_of(outcome: Outcome, wanted: int) -> dict[str, float | None]:
    """Return all figures by name; None where nothing was measured. ``wanted`` cycles were asked for."""
    cycles, during = outcome.cycles, outcome.during
    tenth = max(_LEAST_CYCLES, len(cycles) // WINDOWS)
    first, last = cycles[:tenth], cycles[-tenth:]
    every = [outcome.before, during, outcome.after]
    slope = _slope([cycle.rss_bytes for cycle in cycles])
    figures: dict[str, float | None] = {
        "calls.sent": float(sum(len(calls.is_ok) for calls in every)),
        "calls.failed": float(sum((~calls.is_ok).sum() for calls in every)),
        "calls.slip_p99_ms": _percentile(during.slip_s, 99),
        "cycles.done": float(len(cycles)),
        "cycles.missing": float(wanted - len(cycles)),
        "cycles.faults": float(sum(len(cycle.faults) for cycle in cycles)),
        "rss.first_mib": cycles[0].rss_bytes / _MIB if cycles else None,
        "rss.last_mib": cycles[-1].rss_bytes / _MIB if cycles else None,
        "rss.bytes_per_cycle": slope,
        "rss.growth_mib": None if slope is None else slope * len(cycles) / _MIB,
        "threads.more": float(outcome.at_end.threads - outcome.at_rest.threads),
        "descriptors.more": float(outcome.at_end.descriptors - outcome.at_rest.descriptors),
        "processes.more": float(outcome.at_end.processes - outcome.at_rest.processes),
        "quiet.p50_before_ms": _percentile(outcome.before.latency_s, 50),
        "quiet.p50_after_ms": _percentile(outcome.after.latency_s, 50),
        "quiet.p99_before_ms": _percentile(outcome.before.latency_s, 99),
        "quiet.p99_after_ms": _percentile(outcome.after.latency_s, 99),
    }
    for when, some in (("first", first), ("last", last)):
        figures |= {f"{name}.{when}_ms": value for name, value in _durations(some).items()}
        figures |= {f"{name}_{when}_ms": value for name, value in _latencies(during, some).items()}
    for guest in outcome.guests:
        beside = [cycle for cycle in cycles if cycle.guest == guest]
        figures |= {f"beside_{guest}.{name}_ms": value for name, value in _latencies(during, beside).items()}
    return figures


def windows_of(outcome: Outcome) -> list[Mapping[str, float | None]]:
    """Return the run's windows in order, each by name: the cycles' durations, latencies, memory."""
    cycles = outcome.cycles
    edges = np.linspace(0, len(cycles), min(WINDOWS, len(cycles)) + 1).astype(int)
    windows: list[Mapping[str, float | None]] = []
    for start, stop in pairwise(edges):
        some = cycles[start:stop]
        windows.append(
            {"to_cycle": float(stop)}
            | _durations(some)
            | _latencies(outcome.during, some)
            | {
                "rss_mib": float(np.median([cycle.rss_bytes for cycle in some])) / _MIB,
                "threads": float(np.median([cycle.threads for cycle in some])),
                "descriptors": float(np.median([cycle.descriptors for cycle in some])),
            }
        )
    return windows


def _durations(cycles: Sequence[Cycle]) -> dict[str, float | None]:
    """Medians in ms. Loading is that of the small TorchScript guest: the others have prices of their own."""

    def median(of: Callable[[Cycle], float], where: Callable[[Cycle], bool] = lambda _: True) -> float | None:
        values = [of(cycle) for cycle in cycles if where(cycle)]
        return float(np.median(values)) if values else None

    return {
        "swap": median(lambda cycle: cycle.swap_ms),
        "first_call": median(lambda cycle: cycle.first_ms),
        "load": median(lambda cycle: cycle.load_ms, lambda cycle: cycle.guest == "torchscript"),
        "unload": median(lambda cycle: cycle.unload_ms),
    }


def _latencies(calls: Calls, cycles: Sequence[Cycle]) -> dict[str, float | None]:
    """Percentiles in ms of the calls that were due while any of ``cycles`` went on, by model."""
    is_due = np.zeros(len(calls.intended_s), np.bool_)
    for cycle in cycles:
        # Sorted: a run of the generator begins when the one before it is over.
        due = slice(*np.searchsorted(calls.intended_s, (cycle.began_s, cycle.ended_s)))
        is_due[due] = True
    found: dict[str, float | None] = {}
    for name, is_theirs in (("steady", calls.is_steady), ("swapped", ~calls.is_steady)):
        latencies = calls.latency_s[is_due & is_theirs]
        found |= {f"{name}.p{each}": _percentile(latencies, each) for each in (50, 99)}
    return found


def _percentile(seconds: Floats, percentile: float) -> float | None:
    known = seconds[np.isfinite(seconds)]
    return float(np.percentile(known, percentile)) * 1e3 if len(known) else None


def _slope(values: Sequence[int]) -> float | None:
    """Fit a line to all but the first tenth; return what is added in each step."""
    rest = values[len(values) // WINDOWS :]
    return float(np.polyfit(np.arange(len(rest)), np.array(rest), 1)[0]) if len(rest) > 1 else None
