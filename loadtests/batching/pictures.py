"""The two pictures of docs/batching.md, from what ``sweeps`` wrote.

``python -m loadtests.batching.pictures DIR`` draws them again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["draw"]

Run = Mapping[str, Any]  # as in ``sweeps``

# Distinguishable with colour blindness too: M. Okabe and K. Ito's palette.
_BLUE: Final = "#0072B2"
_ORANGE: Final = "#D55E00"
_GREY: Final = "#666666"
#: 1,120 pixels: wide enough for two panels, and no wider than a page shows.
_SIZE_INCHES: Final = (8.0, 3.9)
_DPI: Final = 140
_MARKS_IN_A_LINE: Final = 4


def draw(directory: Path) -> list[Path]:
    """Draw ``load.json`` and ``objective.json`` of ``directory``; return the pictures."""
    drawn = []
    for name, draws in (("load", _draw_load), ("objective", _draw_objective)):
        sweep = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        figure = draws(sweep)
        drawn.append(directory / f"batching-{name}.png")
        # Opaque white, so that a dark page doesn't swallow the axes.
        figure.savefig(drawn[-1], dpi=_DPI, facecolor="white")
        plt.close(figure)
    return drawn


def _draw_load(sweep: Mapping[str, Any]) -> Figure:
    """Latency against offered load, a panel for each percentile and a line for each server."""
    servers: Mapping[str, Mapping[str, Any]] = sweep["servers"]
    figure, axes = plt.subplots(1, 2, figsize=_SIZE_INCHES, sharex=True, sharey=True)
    for axis, key, title in zip(axes, ("p50_ms", "p99_ms"), ("median", "99th percentile"), strict=True):
        for colour, each in zip((_BLUE, _ORANGE), servers.values(), strict=False):
            _line(
                axis,
                each["runs"],
                [_offered(run) for run in each["runs"]],
                _latencies(each["runs"], key),
                colour,
            )
        _label(axis, f"30-64-1 MLP: {title} of answers", "offered load, Poisson (requests/s)")
        axis.set_yscale("log")
        _plain_numbers(axis)
    axes[0].set_ylabel("latency (ms)")
    every = [run for each in servers.values() for run in each["runs"]]
    marks = [_mark(name, colour) for colour, name in zip((_BLUE, _ORANGE), servers, strict=False)]
    _finish(figure, marks, every, _says(sweep))
    return figure


def _says(sweep: Mapping[str, Any]) -> str:
    most = ", ".join(f"{name} {each['capacity_per_s']:,.0f}" for name, each in sweep["servers"].items())
    return f"one row a request, servers' defaults; closed loop, requests/s: {most}; {sweep['layout']}"


def _draw_objective(sweep: Mapping[str, Any]) -> Figure:
    """What is answered in time, and how late the answers are, up to 2.5 times the capacity."""
    capacity, objective_ms = sweep["capacity_per_s"], sweep["objective_ms"]
    figure, (goodput, latency) = plt.subplots(1, 2, figsize=_SIZE_INCHES, sharex=True)
    every = []
    for name, colour in (("objective", _BLUE), ("plain", _ORANGE)):
        runs = sweep["models"][name]
        places = [_offered(run) / capacity for run in runs]
        _line(goodput, runs, places, [run["total"]["goodput_per_s"] / capacity for run in runs], colour)
        _line(latency, runs, places, _latencies(runs, "p99_ms"), colour)
        every += runs
    most = max(_offered(run) for run in every) / capacity
    goodput.plot([0, 1, most], [0, 1, 1], color=_GREY, linestyle=":", linewidth=1)
    goodput.set_ylim(0, 1.1)
    latency.axhline(objective_ms, color=_GREY, linestyle="--", linewidth=1)
    latency.set_yscale("log")
    _plain_numbers(latency)
    _label(goodput, f"answered within {objective_ms:g} ms / capacity", "offered load / capacity")
    _label(latency, "99th percentile of answers (ms)", "offered load / capacity")
    marks = [
        _mark(f"latency_objective_ms {objective_ms:g}", _BLUE),
        _mark("without it", _ORANGE),
        Line2D([], [], color=_GREY, linestyle="--", label="objective"),
        Line2D([], [], color=_GREY, linestyle=":", label="the most there is"),
    ]
    per_s = f"{capacity:,.0f} requests/s of {sweep['rows']} rows"
    _finish(figure, marks, every, f"MLP with 2.5 ms or so a batch; capacity {per_s}; {sweep['layout']}")
    return figure


def _latencies(runs: Sequence[Run], key: str) -> list[float]:
    values = [run["total"]["latency_of_ok"][key] for run in runs]
    return [float("nan") if value is None else value for value in values]


def _offered(run: Run) -> float:
    return float(run["total"]["offered_per_s"])


def _line(axis: Axes, runs: Sequence[Run], places: list[float], values: list[float], colour: str) -> None:
    """Draw a line with a point for each run, hollow if the run isn't valid."""
    axis.plot(places, values, color=colour, linewidth=1.5)
    for place, value, run in zip(places, values, runs, strict=True):
        filling = colour if run["valid"] else "white"
        axis.plot(place, value, marker="o", markersize=4.5, color=colour, markerfacecolor=filling)


def _label(axis: Axes, title: str, offered: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(offered)
    axis.set_xlim(left=0)
    axis.grid(which="major", color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")


def _plain_numbers(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _mark(name: str, colour: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", markersize=4.5, label=name)


def _finish(figure: Figure, marks: list[Line2D], runs: Sequence[Run], says: str) -> None:
    """Put the legend above the panels and the conditions below, where no data is."""
    if not all(run["valid"] for run in runs):
        marks = [*marks, _mark("load late: not valid", _GREY)]
        marks[-1].set(linestyle="", markerfacecolor="white")
    lines = -(-len(marks) // _MARKS_IN_A_LINE)
    columns = -(-len(marks) // lines)
    figure.legend(handles=marks, loc="upper center", ncols=columns, frameon=False, fontsize=8.5)
    figure.text(0.5, 0.015, says, ha="center", fontsize=7.5, color=_GREY)
    figure.tight_layout(rect=(0, 0.04, 1, 0.99 - 0.06 * lines))


if __name__ == "__main__":
    for picture in draw(Path(sys.argv[1])):
        print(picture)
