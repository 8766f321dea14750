"""Numbers, names and small charts as text, for ``tensorferry top``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = [
    "amount",
    "bar",
    "by_time",
    "clean",
    "duration",
    "rate",
    "row_ranges",
    "size",
    "sparkline",
    "spoken",
]

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-:=+*#"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"

UNKNOWN: Final = "-"


def clean(text: object) -> str:
    """Return a name without what would move the cursor, hide itself or turn the line around."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in str(text))


def amount(value: float | None) -> str:
    """Return a count or a mean in at most five characters or so."""
    if value is None:
        return UNKNOWN
    if value >= 99_950:
        return f"{value / 1e6:.1f}M" if value >= 999_500 else f"{value / 1e3:.0f}k"
    if value >= 9.95 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def rate(value: float | None) -> str:
    """Return something per second; what there was a little of is never 0."""
    if value is not None and 0 < value < 0.01:
        return "<0.01"
    return amount(value)


def duration(ms: float | None) -> str:
    """Return milliseconds with three digits, with the unit once it isn't ms."""
    if ms is None:
        return UNKNOWN
    if ms >= 999.5:
        return f"{ms / 1e3:.3g}s" if ms < 99_950 else f"{ms / 1e3:.0f}s"
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:.1f}" if ms >= 9.995 else f"{ms:.2f}"


def spoken(ms: float | None) -> str:
    """Return milliseconds with their unit, for a sentence."""
    text = duration(ms)
    return text if text[-1] in f"s{UNKNOWN}" else f"{text} ms"


def size(of_bytes: float | None) -> str:
    """Return a number of bytes in a fitting unit."""
    if of_bytes is None:
        return UNKNOWN
    value = float(of_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 9.95 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def by_time(
    points: Sequence[tuple[float, float, float | None]], cells: int, span_s: float
) -> list[float | None]:
    """Return the greatest value in each of ``cells`` parts of the last ``span_s`` seconds, oldest first.

    A point is the instant at which it ends, the seconds that it is of, and a value or None. None stands
    for what isn't known. The greatest, because a short peak is what is looked for.
    """
    found: list[float | None] = [None] * cells
    cell_s = span_s / cells
    for ended_at, seconds, value in points:
        if value is None:
            continue
        age_s = points[-1][0] - ended_at
        last = cells - 1 - int(age_s / cell_s)
        first = cells - 1 - int((age_s + 0.9 * seconds) / cell_s)
        for cell in range(max(0, first), last + 1):
            known = found[cell]
            found[cell] = value if known is None else max(known, value)
    return found


def sparkline(values: Sequence[float | None], has_blocks: bool, rows: int = 1) -> list[str]:
    """Return a character for each value in each of ``rows`` lines, the upper first, from 0 to the greatest.

    A value that is known is always seen; a blank stands for one that isn't.
    """
    top = max((value for value in values if value is not None), default=0.0)
    blocks = _BLOCKS if has_blocks else _ASCII
    levels = [
        0 if value is None else max(1, round(8 * rows * value / top)) if top > 0 else 1 for value in values
    ]
    return [
        "".join(blocks[min(8, level - 8 * row) - 1] if level > 8 * row else " " for level in levels)
        for row in reversed(range(rows))
    ]


def bar(share: float, width: int, has_blocks: bool) -> str:
    """Return a bar of ``share`` (0..1) of ``width`` characters; something there is always seen."""
    if not has_blocks:
        return "#" * max(share > 0, round(share * width))
    eighths = max(int(share > 0), round(share * width * 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def row_ranges(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, int]]:
    """Return what rows the buckets hold ("5-8"), and their counts, from the first used to the last."""
    names = []
    low = 1
    for bound in bounds:
        high = int(bound)
        names.append(f"{low}" if high <= low else f"{low}-{high}")
        low = high + 1
    names.append(f">{low - 1}")
    pairs = list(zip(names, counts, strict=False))
    used = [index for index, (_, count) in enumerate(pairs) if count]
    return pairs[used[0] : used[-1] + 1] if used else []
