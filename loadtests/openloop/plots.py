"""Pictures of runs: latency against offered load for several servers, and one run over time.

``python -m loadtests.openloop.plots DIR`` draws both again from the JSON files in DIR, one file for
each server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["draw_directory", "latency_against_load", "over_time"]

Run = Mapping[str, Any]  # Report.to_dict()

# Distinguishable with colour blindness too: M. Okabe and K. Ito's palette, darkest first.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY: Final = "#666666"
_DPI: Final = 140
_PERCENTILES: Final = (("p50_ms", "median"), ("p99_ms", "99th percentile"), ("p999_ms", "99.9th percentile"))


def latency_against_load(servers: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw the latency percentiles, and the goodput, of every server's runs against the offered load.

    Hollow points are runs that aren't valid, since the generator was late.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True)
    objective_ms = next(iter(servers.values()))[0]["bounds"]["objective_ms"]
    for axis, (key, title) in zip(axes.flat, _PERCENTILES, strict=False):
        for colour, runs in zip(_COLOURS * len(servers), servers.values(), strict=False):
            _points(axis, runs, [run["total"]["latency_of_ok"][key] for run in runs], colour)
        axis.axhline(objective_ms, color=_GREY, linestyle="--", linewidth=1)
        axis.set_yscale("log")
        axis.set_title(f"{title} of answers", fontsize=10)
        axis.set_ylabel("latency from intended time (ms)")
    goodput = axes[1, 1]
    for colour, runs in zip(_COLOURS * len(servers), servers.values(), strict=False):
        _points(goodput, runs, [run["total"]["goodput_per_s"] for run in runs], colour)
    offered = [run["total"]["offered_per_s"] for runs in servers.values() for run in runs]
    goodput.plot([0, max(offered)], [0, max(offered)], color=_GREY, linestyle=":", linewidth=1)
    goodput.set_title(f"answers within {objective_ms:g} ms", fontsize=10)
    goodput.set_ylabel("goodput (requests/s)")
    goodput.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("offered load (requests/s)")
        axis.set_xlim(left=0)
    marks = [
        *(
            Line2D([], [], color=c, marker="o", label=n)
            for c, n in zip(_COLOURS * len(servers), servers, strict=False)
        ),
        Line2D([], [], color=_GREY, linestyle="--", label=f"objective, {objective_ms:g} ms"),
        Line2D([], [], color=_GREY, linestyle=":", label="all that is offered"),
    ]
    if not all(run["valid"] for runs in servers.values() for run in runs):
        hollow = {"marker": "o", "linestyle": "", "markerfacecolor": "white"}
        marks.append(Line2D([], [], color=_GREY, label="generator late: not valid", **hollow))  # type: ignore[arg-type]
    _finish(figure, axes.flat, marks, path)


def over_time(name: str, run: Run, path: Path) -> None:
    """Draw one run: what was offered and what became of it, and the latency, by intended time."""
    windows, objective_ms = run["windows"], run["bounds"]["objective_ms"]
    width_s, start_s = windows["width_s"], windows["start_s"]
    figure, (counts, latency) = plt.subplots(2, 1, figsize=(10, 6.5), sharex=True)
    parts = (
        ("ok_in_time", f"OK within {objective_ms:g} ms", "#009E73"),
        ("late", "OK, but later", "#E69F00"),
        ("refused", "refused", "#CC79A7"),
        ("failed", "no answer", "#333333"),
    )
    values = {**windows, "late": [a - b for a, b in zip(windows["ok"], windows["ok_in_time"], strict=True)]}
    rates = [[count / width_s for count in values[key]] for key, _, _ in parts]
    edges = [*start_s, start_s[-1] + width_s]
    areas = counts.stackplot(
        edges,
        [[*rate, rate[-1]] for rate in rates],
        labels=[label for _, label, _ in parts],
        colors=[colour for _, _, colour in parts],
        step="post",
        linewidth=0,
    )
    offered = counts.stairs([n / width_s for n in windows["offered"]], edges, color="black", label="offered")
    counts.set_ylabel("requests/s, by intended time")
    counts.set_ylim(bottom=0)
    counts.set_title(f"{name}: in windows of {width_s * 1000:g} ms", fontsize=10)
    middles = [start + width_s / 2 for start in start_s]
    lines = []
    for key, label, colour in (
        ("p50_ms", "median of OK", _COLOURS[5]),
        ("p99_ms", "99th percentile of OK", _COLOURS[0]),
    ):
        points = [float("nan") if value is None else value for value in windows[key]]
        lines += latency.plot(middles, points, color=colour, label=label, marker=".", markersize=4)
    lines.append(latency.axhline(objective_ms, color=_GREY, linestyle="--", linewidth=1, label="objective"))
    latency.set_yscale("log")
    latency.set_ylabel("latency from intended time (ms)")
    latency.set_xlabel("intended time since the run's start (s)")
    latency.set_xlim(0, edges[-1])
    kept = [area for area, rate in zip(areas, rates, strict=True) if any(rate)]
    _finish(figure, (counts, latency), [offered, *kept, *lines], path)


def draw_directory(directory: Path) -> list[Path]:
    """Draw every JSON file in ``directory``: one comparison, and each run over time; return the pictures."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    servers = {each["name"]: sorted(each["runs"], key=_offered) for each in documents if each["runs"]}
    drawn: list[Path] = []
    for name, runs in servers.items():
        for run in runs:
            drawn.append(directory / f"{name}-{_offered(run):.0f}.png")
            over_time(f"{name} at {_offered(run):,.0f} requests/s", run, drawn[-1])
    if servers:
        drawn.append(directory / "latency.png")
        latency_against_load(servers, drawn[-1])
    return drawn


def _offered(run: Run) -> float:
    return float(run["total"]["offered_per_s"])


def _points(axis: Axes, runs: Sequence[Run], values: Sequence[float | None], colour: str) -> None:
    places = [_offered(run) for run in runs]
    known = [float("nan") if value is None else value for value in values]
    axis.plot(places, known, color=colour, linewidth=1.5)
    for place, value, run in zip(places, known, runs, strict=True):
        filling = colour if run["valid"] else "white"
        axis.plot(place, value, marker="o", markersize=5, color=colour, markerfacecolor=filling)


def _finish(figure: Figure, axes: Iterable[Axes], marks: Sequence[Artist], path: Path) -> None:
    """Put the legend above the panels, where no data is, and write the file."""
    for axis in axes:
        axis.grid(which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_yscale() == "log":
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(handles=marks, loc="upper center", ncols=min(len(marks), 4), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


if __name__ == "__main__":
    for picture in draw_directory(Path(sys.argv[1])):
        print(picture)
