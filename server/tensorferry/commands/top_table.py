"""The table of models of ``tensorferry top``: as many columns as fit, the weightiest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.text import Text

from tensorferry.commands.top_text import amount, clean, duration, rate
from tensorferry.commands.top_words import failed_per_s, refused_per_s

__all__ = ["table"]

Model = Mapping[str, Any]

_GAP: Final = 2

#: A model's name is cut to this many columns before any other column goes.
_MIN_NAME: Final = 16

#: From this share of the objective on, p99 is shown in yellow.
_NEAR: Final = 0.8


@dataclass(frozen=True, slots=True)
class _Column:
    """``weight``: the columns of the greatest are left out first."""

    title: str
    weight: int
    cell: Callable[[Model], Text]
    is_left: bool = False


def table(models: Sequence[Model], shown: Model | None, width: int, height: int | None) -> list[Text]:
    """Return the table's lines, heads included: at most ``height``, at least two. ``shown`` is marked."""
    if not models:
        return [Text("no models are served", style="yellow")]
    most = len(models) if height is None else max(1, height - 1)
    hidden: Sequence[Model] = ()
    if len(models) > most:
        most = max(1, most - 1)
        models, hidden = models[:most], models[most:]
    cells = {column.title: [column.cell(model) for model in models] for column in _COLUMNS}
    for row, model in enumerate(models):
        if model is shown:
            cells["MODEL"][row].stylize("bold underline")
    columns, widths = _chosen(cells, width)
    lines = [_line([Text(column.title, style="dim") for column in columns], columns, widths)]
    lines += [
        _line([cells[column.title][row] for column in columns], columns, widths) for row in range(len(models))
    ]
    if hidden:
        requests = sum(model.get("requests_per_s") or 0.0 for model in hidden)
        lines.append(Text(f"and {len(hidden)} more, {rate(requests)} requests/s", style="dim"))
    return lines


def _chosen(cells: Mapping[str, Sequence[Text]], width: int) -> tuple[list[_Column], dict[str, int]]:
    widths = {
        column.title: max(len(column.title), *(cell.cell_len for cell in cells[column.title]))
        for column in _COLUMNS
    }
    columns = [column for column in _COLUMNS if any(cell.plain for cell in cells[column.title])]
    name = widths["MODEL"]
    while columns:
        others = sum(widths[column.title] + _GAP for column in columns if column.title != "MODEL")
        room = width - others
        heaviest = max(columns, key=lambda column: column.weight)
        if room >= min(name, _MIN_NAME) or not heaviest.weight:
            widths["MODEL"] = max(1, min(name, room))
            break
        columns.remove(heaviest)
    return columns, widths


def _line(cells: Sequence[Text], columns: Sequence[_Column], widths: Mapping[str, int]) -> Text:
    line = Text()
    for cell, column in zip(cells, columns, strict=True):
        if line:
            line.append(" " * _GAP)
        cell = cell.copy()
        cell.truncate(widths[column.title], overflow="ellipsis")
        blank = " " * (widths[column.title] - cell.cell_len)
        line.append_text(cell + blank if column.is_left else Text(blank) + cell)
    return line


def _name(model: Model) -> Text:
    return Text(clean(model["model"]), style="" if model.get("ready") is not False else "red")


def _p99(model: Model) -> Text:
    p99_ms, objective_ms = model.get("p99_ms"), model.get("objective_ms")
    style = ""
    if p99_ms is not None and objective_ms:
        over = p99_ms / objective_ms
        style = "bold red" if over > 1 else "yellow" if over > _NEAR else "green"
    return Text(duration(p99_ms), style=style)


def _busy(model: Model) -> Text:
    busy = model.get("busy")
    if busy is None:
        return Text("-")
    return Text(f"{min(1.0, busy):.0%}", style="yellow" if busy > 0.9 else "")


def _mean_rows(model: Model) -> Text:
    batches, rows = model.get("batches_per_s"), model.get("rows_per_s")
    return Text(amount(rows / batches) if batches and rows is not None else "-")


def _bad(per_s: float) -> Text:
    return Text(rate(per_s), style="bold red" if per_s else "")


def _share(model: Model) -> Text:
    share = model.get("share")
    return Text("-" if share is None else f"{share:.0%}")


_COLUMNS: Final = (
    _Column("MODEL", 0, _name, is_left=True),
    _Column("VER", 1, lambda model: Text(clean(model["version"]))),
    _Column("REQ/S", 2, lambda model: Text(rate(model.get("requests_per_s")))),
    _Column("P50 ms", 8, lambda model: Text(duration(model.get("p50_ms")))),
    _Column("P99 ms", 3, _p99),
    _Column(
        "OBJ", 10, lambda model: Text(duration(model["objective_ms"]) if model.get("objective_ms") else "")
    ),
    _Column("ROWS", 6, _mean_rows),
    _Column("WAIT", 7, lambda model: Text(amount(model.get("waiting")))),
    _Column("BUSY", 5, _busy),
    _Column("REF/S", 4, lambda model: _bad(refused_per_s(model))),
    _Column("FAIL/S", 4, lambda model: _bad(failed_per_s(model))),
    _Column("SHARE", 9, _share),
    _Column("LABELS", 11, lambda model: Text(clean(", ".join(model.get("labels") or []))), is_left=True),
)
