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

#: The two lines of a column's head, and its key.
_COLUMNS: Final = (
    ("", "", "case"),
    ("", "rows/s", "rows_per_s"),
    ("of", "bare", "of_bare"),
    ("of", "base", "of_base"),
    ("tar-", "get", "target"),
    ("", "met", "met"),
    ("p50", "ms", "p50_ms"),
    ("p99", "ms", "p99_ms"),
    ("rows/", "batch", "batch_rows"),
    ("as", "graph", "graph_share"),
    ("GPU", "busy", "device_busy"),
    ("GB/s", "in", "in_gb_per_s"),
    ("of", "link", "of_link"),
    ("pad-", "ding", "padding"),
    ("server", "cores", "server_cores"),
    ("client", "core", "client_busy"),
    ("", "notes", "notes"),
)
_PERCENT: Final = frozenset({"graph_share", "device_busy", "of_link", "padding", "client_busy"})
_RATIOS: Final = frozenset({"of_bare", "of_base"})
_LEFT: Final = frozenset({"case", "notes"})


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
        """As the table has it, "" without one: a share of the bare loop, or what percentage is busy."""
        if self.at_least is not None:
            return f">={self.at_least:g}"
        return "" if self.busy_at_most is None else f"<={self.busy_at_most:.0%}"

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
    """Return the table, at most 120 columns wide, a part for each configuration; below it the notes.

    Without ``judges`` no target is said to be met or missed.
    """
    notes: list[str] = []
    lines = [[column[line] for column in _COLUMNS] for line in (0, 1)]
    for row in rows:
        marks = []
        for note in (*row.notes, *([f"{MISSING}: {row.missing}"] if row.missing else ())):
            if note not in notes:
                notes.append(note)
            marks.append(str(notes.index(note) + 1))
        lines.append([_cell(row, key, ",".join(marks), judges=judges) for *_, key in _COLUMNS])
    keys = [key for *_, key in _COLUMNS]
    widths = [max(len(line[column]) for line in lines) for column in range(len(keys))]
    shown = [
        " ".join(
            cell.ljust(width) if key in _LEFT else cell.rjust(width)
            for cell, width, key in zip(line, widths, keys, strict=True)
        ).rstrip()
        for line in lines
    ]
    found, part = shown[:2], ""
    for row, text in zip(rows, shown[2:], strict=True):
        if row.configuration != part:
            part = row.configuration
            found.append(f"-- {part} ".ljust(sum(widths) + len(widths) - 1, "-"))
        found.append(text)
    return "\n".join([*found, "", *(f"[{number}] {note}" for number, note in enumerate(notes, 1))])


def _cell(row: Row, key: str, marks: str, *, judges: bool) -> str:
    words = {
        "case": row.case,
        "notes": marks,
        "target": row.target or "-",
        "met": {None: "-", True: "yes", False: "NO"}[row.met if judges else None],
    }
    if key in words:
        return words[key]
    if key == "rows_per_s" and row.missing:
        return MISSING
    value = row.figures.get(key)
    return "-" if value is None else _number(key, value)


def _number(key: str, value: float) -> str:
    if key in _PERCENT:
        return f"{value:.0%}"
    if key in _RATIOS:
        return f"{value:.3f}"
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
