"""One picture of a churn run: memory, how long loading took, and latency, over the cycles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from loadtests.churn.cycles import Cycle
from loadtests.churn.measure import Calls, Outcome

__all__ = ["draw"]

# Distinguishable with colour blindness too: M. Okabe and K. Ito's palette.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DPI: Final = 140
_MIB: Final = 2**20
_LATENCY_WINDOWS: Final = 50


def draw(outcome: Outcome, path: Path) -> None:
    """Write the picture as a PNG file; there must be a cycle at least."""
    cycles = outcome.cycles
    figure, (memory, durations, latency) = plt.subplots(3, 1, figsize=(10, 9), sharex=True)
    numbers = np.arange(1, len(cycles) + 1)
    _memory(memory, numbers, cycles)
    _durations(durations, cycles)
    _latency(latency, cycles, outcome.during)
    latency.set_xlabel("cycle: swap one model, load another, unload it")
    latency.set_xlim(0, len(cycles) + 1)
    for axis in (memory, durations, latency):
        axis.grid(which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _memory(
    axis: Axes, numbers: np.ndarray[tuple[int, ...], np.dtype[np.int64]], cycles: Sequence[Cycle]
) -> None:
    resident = np.array([cycle.rss_bytes for cycle in cycles]) / _MIB
    axis.plot(numbers, resident, color=_COLOURS[0], linewidth=1.2, label="resident memory of the server")
    axis.set_ylabel("MiB")
    # From 0: a slope that matters is one that can be seen beside the whole.
    axis.set_ylim(0, resident.max() * 1.15)


def _durations(axis: Axes, cycles: Sequence[Cycle]) -> None:
    def dots(where: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
        axis.plot(where, values, ".", color=colour, markersize=4, alpha=0.7, label=label)

    dots(range(1, len(cycles) + 1), [cycle.swap_ms for cycle in cycles], _COLOURS[0], "swap")
    for colour, guest in zip(_COLOURS[1:], dict.fromkeys(cycle.guest for cycle in cycles), strict=False):
        some = [place for place, cycle in enumerate(cycles) if cycle.guest == guest]
        dots(
            [place + 1 for place in some], [cycles[place].load_ms for place in some], colour, f"load {guest}"
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("RepositoryModelLoad (ms)")


def _latency(axis: Axes, cycles: Sequence[Cycle], calls: Calls) -> None:
    windows = np.array_split(np.arange(len(cycles)), min(_LATENCY_WINDOWS, len(cycles)))
    middles = [float(some.mean()) + 1 for some in windows]
    spans = [(cycles[some[0]].began_s, cycles[some[-1]].ended_s) for some in windows]
    for name, is_theirs, colour in (
        ("untouched model", calls.is_steady, _COLOURS[2]),
        ("swapped model", ~calls.is_steady, _COLOURS[1]),
    ):
        for percentile, style in ((50, ":"), (99, "-")):
            values = []
            for began_s, ended_s in spans:
                due = (calls.intended_s >= began_s) & (calls.intended_s < ended_s) & is_theirs
                known = calls.latency_s[due & calls.is_ok]
                values.append(float(np.percentile(known, percentile)) * 1e3 if len(known) else np.nan)
            axis.plot(middles, values, style, color=colour, linewidth=1.3, label=f"p{percentile}, {name}")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("latency from intended time (ms)")
