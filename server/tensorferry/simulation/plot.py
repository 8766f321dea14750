"""Latency and goodput against offered load, as a picture. Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tensorferry.errors import SettingsError
from tensorferry.simulation.report import row_of
from tensorferry.simulation.sweep import Point, Sizing, Study

__all__ = ["require_plotting", "write_plot"]

_BLUE: Final = "#1f6fb2"
_ORANGE: Final = "#d9730d"
_GREEN: Final = "#2a8a4a"
_GREY: Final = "#777777"


def require_plotting() -> None:
    """Make sure that a picture can be drawn.

    Raises:
        SettingsError: matplotlib isn't installed; says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError(
            "--plot needs matplotlib, which isn't installed; run: pip install 'tensorferry[plot]'"
        ) from None


def write_plot(path: Path, study: Study, points: Sequence[Point], sizing: Sizing | None) -> None:
    """Draw the points, which ascend by load. The kind of picture follows the file's suffix.

    Raises:
        SettingsError: no matplotlib, or the file can't be written.
    """
    require_plotting()
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that outlives this

    if sizing is not None and sizing.point is not None:
        points = sorted({point.load: point for point in (*points, sizing.point)}.values(), key=_load)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row_of(point, study.objective_s) for point in points]
    _draw_latency(left, study, rows)
    _draw_goodput(right, study, rows)
    if sizing is not None and sizing.point is not None:
        for axes in (left, right):
            axes.axvline(sizing.point.offered, color=_GREEN, linewidth=1, linestyle=":")
        _mark_sizing(right, sizing.point)
    figure.suptitle(_title(study), fontsize=10)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--plot {path} can't be written: {error}") from None


def _load(point: Point) -> float:
    return point.load


def _draw_latency(axes: Any, study: Study, rows: Sequence[dict[str, float]]) -> None:  # noqa: ANN401
    from matplotlib.ticker import LogLocator, NullFormatter

    offered = [row["offered_rows_per_s"] for row in rows]
    axes.plot(offered, [row["p99_ms"] for row in rows], "o-", color=_ORANGE, markersize=4, label="p99")
    axes.plot(offered, [row["p50_ms"] for row in rows], "o-", color=_BLUE, markersize=4, label="p50")
    if study.objective_s != math.inf:
        axes.axhline(
            study.objective_s * 1e3,
            color=_GREY,
            linewidth=1,
            linestyle="--",
            label=f"objective {study.objective_s * 1e3:g} ms",
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.set_ylabel("latency of the answered (ms)")
    _finish(axes, study)


def _draw_goodput(axes: Any, study: Study, rows: Sequence[dict[str, float]]) -> None:  # noqa: ANN401
    offered = [row["offered_rows_per_s"] for row in rows]
    most = max(offered)
    axes.plot(
        [0, min(most, study.capacity), most],
        [0, min(most, study.capacity), min(most, study.capacity)],
        color=_GREY,
        linewidth=1,
        linestyle="--",
        label=f"capacity {_thousands(study.capacity)} rows/s",
    )
    has_objective = study.objective_s != math.inf
    name = f"answered within {study.objective_s * 1e3:g} ms" if has_objective else "answered"
    axes.plot(
        offered, [row["in_time_rows_per_s"] for row in rows], "o-", color=_BLUE, markersize=4, label=name
    )
    axes.yaxis.set_major_formatter(lambda number, _: _thousands(number))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rows/s")
    _finish(axes, study)


def _mark_sizing(axes: Any, point: Point) -> None:  # noqa: ANN401
    is_left = point.offered < 0.4 * axes.get_xlim()[1]  # there is no room to the left of the line
    axes.annotate(
        f"99 % in time up to\n{_thousands(point.offered)} rows/s",
        (point.offered, 0),
        xytext=(6 if is_left else -6, 12),
        textcoords="offset points",
        ha="left" if is_left else "right",
        color=_GREEN,
        fontsize=9,
    )


def _finish(axes: Any, study: Study) -> None:  # noqa: ANN401
    axes.set_xlim(left=0)
    axes.set_xlabel("offered load (rows/s)")
    axes.xaxis.set_major_formatter(lambda number, _: _thousands(number))
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    shares = axes.secondary_xaxis(
        "top", functions=(lambda rows: rows / study.capacity, lambda share: share * study.capacity)
    )
    shares.set_xlabel("share of capacity", fontsize=8, color=_GREY)
    shares.tick_params(labelsize=8, colors=_GREY)
    shares.spines["top"].set_visible(False)


def _title(study: Study) -> str:
    most = max(1, study.spec.max_batch_size)
    streams = "on the event loop" if study.machine.inline else f"{study.machine.streams} stream(s)"
    one, whole = study.curve(1) * 1e3, study.curve(most) * 1e3
    return f"Simulated: 1 row {one:.3g} ms, {most} rows {whole:.3g} ms, {streams}"


def _thousands(number: float) -> str:
    if abs(number) >= 1e6:
        return f"{number / 1e6:g}M" if number % 1e4 == 0 else f"{number / 1e6:.2f}M"
    if abs(number) >= 1e4:
        return f"{number / 1e3:.4g}k"
    return f"{number:.4g}"
