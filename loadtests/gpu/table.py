"""The one table: a line for each bare loop and each case, whether it was measured or not.

Rules for this file: what the server doesn't tell is "-", never a number; a figure that isn't what it
claims to be has a mark, and the reason below the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["MISSING", "Row", "as_text"]

MISSING: Final = "missing"

_COLUMNS: Final = (
    ("case", "case"),
    ("configuration", "configuration"),
    ("rows/s", "rows_per_s"),
    ("/ bare", "of_bare"),
    ("/ base", "of_base"),
    ("target", "target"),
    ("met", "met"),
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("batch", "batch_rows"),
    ("graphs", "graph_share"),
    ("device busy", "device_busy"),
    ("GPU util", "gpu_utilization"),
    ("in GB/s", "in_gb_per_s"),
    ("of link", "of_link"),
    ("out GB/s", "out_gb_per_s"),
    ("tokens/s", "tokens_per_s"),
    ("padding", "padding"),
    ("rows added", "padded_rows"),
    ("cores", "server_cores"),
)
_PERCENT: Final = frozenset(
    {"graph_share", "device_busy", "gpu_utilization", "of_link", "padding", "padded_rows"}
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``figures`` by the names of the columns; None for what isn't known.

    ``at_least`` is the target of ``of_bare``, ``busy_at_most`` that of ``device_busy``. ``missing`` says why
    there are no figures.
    """

    case: str
    configuration: str
    figures: dict[str, float | None] = field(default_factory=dict)
    at_least: float | None = None
    busy_at_most: float | None = None
    notes: tuple[str, ...] = ()
    missing: str = ""

    @property
    def target(self) -> str:
        """In words; "" without one."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.busy_at_most is None else f"busy <= {self.busy_at_most:.0%}"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none. What wasn't measured hasn't met it."""
        if self.at_least is not None:
            return (self.figures.get("of_bare") or 0.0) >= self.at_least
        if self.busy_at_most is not None:
            busy = self.figures.get("device_busy")
            return busy is not None and busy <= self.busy_at_most
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {
            "case": self.case,
            "configuration": self.configuration,
            **self.figures,
            "target": self.target or None,
            "met": self.met,
            "notes": list(self.notes),
            "missing": self.missing or None,
        }


def as_text(rows: Sequence[Row], *, judges: bool) -> str:
    """Return the table, in columns that a terminal shows straight too, and the notes below it.

    Without ``judges`` no target is said to be met or missed.
    """
    notes: list[str] = []
    lines = [[name for name, _ in _COLUMNS]]
    for row in rows:
        marks = []
        for note in (*row.notes, *([f"{MISSING}: {row.missing}"] if row.missing else ())):
            if note not in notes:
                notes.append(note)
            marks.append(f"[{notes.index(note) + 1}]")
        lines.append([_cell(row, key, "".join(marks), judges=judges) for _, key in _COLUMNS])
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    shown = [
        "| "
        + " | ".join(_aligned(*each) for each in zip(line, widths, range(len(widths)), strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    shown.insert(1, rule)
    return "\n".join([*shown, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))])


def _cell(row: Row, key: str, marks: str, *, judges: bool) -> str:
    if key == "case":
        return f"{row.case} {marks}".rstrip()
    if key == "configuration":
        return row.configuration
    if key == "target":
        return row.target or "-"
    if key == "met":
        return {None: "-", True: "yes", False: "NO"}[row.met if judges else None]
    if key == "rows_per_s" and row.missing:
        return MISSING
    value = row.figures.get(key)
    if value is None:
        return "-"
    if key in _PERCENT:
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
