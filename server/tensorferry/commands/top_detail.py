"""One model in full, below the table of ``tensorferry top``: its last minutes, its batches, its refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from rich.text import Text

from tensorferry.commands.top_gpus import device_line
from tensorferry.commands.top_text import amount, bar, by_time, clean, rate, row_ranges, sparkline, spoken
from tensorferry.commands.top_words import title

__all__ = ["detail"]

Model = Mapping[str, Any]

#: When it was, of how many seconds it is, and how the model was; empty if it wasn't there.
_Moment = tuple[float, float, Model]

#: What it is of, its share of all, and its number as text.
_Bar = tuple[str, float, str]

#: What the sparklines show: the last five minutes.
_SPAN_S: Final = 300.0

#: Lines of each sparkline where there is room, and how much that takes.
_TALL: Final = 4
_TALL_FROM: Final = 20

_LABEL: Final = 12
_LEGEND: Final = 26
_GAP: Final = 3


def detail(
    frames: Sequence[Mapping[str, Any]], model: Model, width: int, height: int | None, has_blocks: bool
) -> list[Text]:
    """Return at most ``height`` lines about ``model``, one of the last frame's."""
    past = [(frame["at"], frame.get("interval_s") or 1.0, _same(frame, model)) for frame in frames]
    rows = _TALL if height is not None and height >= _TALL_FROM else 1
    lines = [_title(model), *device_line(model, width), *_history(past, model, width, rows, has_blocks)]
    if rows > 1:
        lines.append(Text())
    if height is not None and height - len(lines) < 2:
        return lines[:height]
    return lines + _beside(
        _parts(model, width, has_blocks), width, None if height is None else height - len(lines)
    )


def _same(frame: Mapping[str, Any], model: Model) -> Model:
    for each in frame["models"]:
        if each["model"] == model["model"] and each["version"] == model["version"]:
            return each  # type: ignore[no-any-return]
    return {}


def _title(model: Model) -> Text:
    line = Text(title(model), style="bold")
    inline = model.get("inline")
    where = "on the event loop" if inline else f"{amount(model.get('streams'))} streams"
    said = f"  {where}, queue p99 {spoken(model.get('queue_p99_ms'))}"
    said += f", hold p50 {spoken(model.get('hold_p50_ms'))}, run p50 {spoken(model.get('run_p50_ms'))}"
    return line.append(said, style="not bold")


def _history(past: Sequence[_Moment], model: Model, width: int, rows: int, has_blocks: bool) -> list[Text]:
    room = max(10, width - _LABEL - _LEGEND)
    objective_ms = model.get("objective_ms")
    requests, p99s = (
        by_time([(at, seconds, each.get(name)) for at, seconds, each in past], room, _SPAN_S)
        for name in ("requests_per_s", "p99_ms")
    )
    aim = f" of {spoken(objective_ms)}" if objective_ms else ""
    lines = _chart("requests/s", requests, f"peak {rate(_peak(requests))}/s", None, (rows, has_blocks))
    if rows > 1:
        lines.append(Text())
    legend = f"peak {spoken(_peak(p99s))}{aim}"
    return lines + _chart("p99", p99s, legend, objective_ms, (rows, has_blocks))


def _chart(
    name: str, values: Sequence[float | None], legend: str, limit: float | None, form: tuple[int, bool]
) -> list[Text]:
    """Draw a sparkline between its name and legend. What is over ``limit`` is red."""
    rows, has_blocks = form
    lines = []
    for number, row in enumerate(sparkline(values, has_blocks, rows)):
        line = Text(f"{'' if number else name:<{_LABEL}}")
        for value, character in zip(values, row, strict=True):
            is_over = limit and value is not None and value > limit
            line.append(character, style="red" if is_over else "cyan")
        line.append("" if number else f"  {legend}")
        lines.append(line)
    return lines


def _peak(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _parts(model: Model, width: int, has_blocks: bool) -> list[list[Text]]:
    told = model.get("batch_rows") or {}
    ranges = row_ranges(told.get("bounds") or (), told.get("counts") or ())
    total = sum(count for _, count in ranges)
    sizes = [(name, count / total, f"{count / total:.0%}") for name, count in ranges]
    failures = {name: value for name, value in (model.get("failures") or {}).items() if name != "REJECTED"}
    ends = {**(model.get("refusals") or {}), **failures}
    column = max(20, (width - 2 * _GAP) // 3)
    return [
        [Text(head, style="dim"), *(_bars(lines, column, has_blocks, style) or [Text(none, style="dim")])]
        for head, lines, style, none in (
            ("rows in a batch", sizes, "cyan", "no batches"),
            ("why batches left, /s", _by_reason(model.get("departures") or {}), "cyan", "none left"),
            ("refused and failed, /s", _by_reason(ends), "red", "none"),
        )
    ]


def _by_reason(per_s: Mapping[str, float]) -> list[_Bar]:
    some = sorted(((value, reason) for reason, value in per_s.items() if value), reverse=True)
    total = sum(value for value, _ in some)
    return [(clean(reason), value / total, rate(value)) for value, reason in some]


def _bars(lines: Sequence[_Bar], width: int, has_blocks: bool, style: str) -> list[Text]:
    label = max((len(name) for name, _, _ in lines), default=0)
    label = max(5, min(label, width - 12))
    drawn = []
    for name, share, number in lines:
        line = Text(name)
        line.truncate(label, overflow="ellipsis", pad=True)
        line.append(f" {number:>5} ")
        line.append(bar(share, max(1, width - line.cell_len), has_blocks), style=style)
        drawn.append(line)
    return drawn


def _beside(parts: Sequence[Sequence[Text]], width: int, height: int | None) -> list[Text]:
    column = max(20, (width - (len(parts) - 1) * _GAP) // len(parts))
    shown = [list(part[:height]) for part in parts[: max(1, (width + _GAP) // (column + _GAP))]]
    lines = []
    for row in zip_longest(*shown):
        line = Text()
        for number, cell in enumerate(row):
            if number:
                line.append(" " * _GAP)
            own = Text() if cell is None else cell.copy()
            own.truncate(column, overflow="ellipsis", pad=True)
            line.append_text(own)
        line.rstrip()
        lines.append(line)
    return lines
