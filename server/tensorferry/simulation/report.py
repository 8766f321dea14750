"""The results of a sweep, as text for a terminal and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tensorferry.errors import SettingsError
from tensorferry.simulation.sweep import IN_TIME_SHARE, Point, Sizing, Study

__all__ = ["COLUMNS", "row_of", "sizing_text", "table", "write_csv"]

#: Name, and how a number of it is written.
COLUMNS: Final = {
    "load": ".2f",
    "offered_rows_per_s": ".0f",
    "answered_rows_per_s": ".0f",
    "in_time_rows_per_s": ".0f",
    "refused_percent": ".2f",
    "mean_wait_ms": ".3f",
    "p50_ms": ".3f",
    "p90_ms": ".3f",
    "p99_ms": ".3f",
    "p999_ms": ".3f",
    "mean_batch_rows": ".1f",
    "busy": ".2f",
}
_HEADS: Final = {
    "offered_rows_per_s": "offered/s",
    "answered_rows_per_s": "answered/s",
    "in_time_rows_per_s": "in time/s",
    "refused_percent": "refused %",
    "mean_wait_ms": "wait ms",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "mean_batch_rows": "batch",
}


def row_of(point: Point, objective_s: float) -> dict[str, float]:
    """Return a point's figures by column."""
    result = point.result
    return {
        "load": point.load,
        "offered_rows_per_s": point.offered,
        "answered_rows_per_s": result.goodput(math.inf),
        "in_time_rows_per_s": result.goodput(objective_s),
        "refused_percent": 100.0 * result.refused_share,
        "mean_wait_ms": result.mean_wait_s * 1e3,
        "p50_ms": result.percentile_s(50) * 1e3,
        "p90_ms": result.percentile_s(90) * 1e3,
        "p99_ms": result.percentile_s(99) * 1e3,
        "p999_ms": result.percentile_s(99.9) * 1e3,
        "mean_batch_rows": result.mean_batch_rows,
        "busy": result.utilisation,
    }


def table(points: Sequence[Point], objective_s: float) -> str:
    """Write the points below each other, in columns that line up."""
    names = [name for name in COLUMNS if name != "in_time_rows_per_s" or objective_s != math.inf]
    lines = [[_HEADS.get(name, name) for name in names]]
    for point in points:
        row = row_of(point, objective_s)
        lines.append([_written(row[name], COLUMNS[name]) for name in names])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def sizing_text(study: Study, sizing: Sizing) -> str:
    """Say in a sentence or two how much one machine carries within the objective."""
    share, objective = f"{100 * IN_TIME_SHARE:g} %", f"{study.objective_s * 1e3:g} ms"
    if sizing.point is None:
        return (
            f"No load that was tried has {share} of the requests answered within {objective}; allow more"
            " time, or use a faster model or a smaller max_batch_size."
        )
    point = sizing.point
    text = (
        f"{share} of the requests are answered within {objective} up to load {point.load:.2f}:"
        f" {point.offered:.0f} rows/s, p99 {point.result.percentile_s(99) * 1e3:.3f} ms."
    )
    if not sizing.is_bound:
        text += " That is the highest load tried: give higher --loads to find the limit."
    return text


def write_csv(path: Path, points: Sequence[Point], objective_s: float) -> None:
    """Write a line for each point, with a header.

    Raises:
        SettingsError: the file can't be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(row_of(point, objective_s) for point in points)
    except OSError as error:
        raise SettingsError(f"--csv {path} can't be written: {error.strerror}") from None


def _written(number: float, form: str) -> str:
    return "-" if math.isnan(number) else format(number, form)
