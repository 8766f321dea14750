"""The bare loops' results: the best batch, and the rate that the server's is held against.

Arithmetic alone: nothing runs here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["KINDS", "Yardstick", "best_rows"]

#: Kinds of loops with inputs on the device; the better one is the yardstick.
KINDS: Final = ("resident", "graphs")
#: A larger batch that brings less than this share isn't worth its latency.
_WORTH: Final = 0.02

Loops = list[dict[str, Any]]


def best_rows(loops: Loops, model: str) -> int:
    """Return the smallest batch whose rate is within 2 % of the best one's.

    Raises:
        ValueError: nothing was measured of the model.
    """
    rates: dict[int, float] = {
        each["rows"]: rate for each in loops if each["model"] == model and (rate := _best(each)[1])
    }
    if not rates:
        raise ValueError(f"no bare loop of {model} could be measured")
    enough = (1 - _WORTH) * max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= enough)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The bare loops before and after the servers' runs; ``after`` is empty if there was no time for it."""

    before: Loops
    after: Loops

    def rate(self, model: str, rows: int) -> float | None:
        """Return the rows/s of the better of ``KINDS``, as the mean of before and after."""
        rates = [rate for each in self._both(model, rows) if (rate := _best(each)[1])]
        return sum(rates) / len(rates) if rates else None

    def of_kind(self, kind: str, model: str, rows: int) -> float | None:
        """Return the rows/s of one kind of loop, as the mean of before and after."""
        rates = [each[kind]["rows_per_s"] for each in self._both(model, rows) if kind in each]
        return sum(rates) / len(rates) if rates else None

    def drift(self, model: str, rows: int) -> float | None:
        """Return how much faster the loop was after than before, as a share; None without both."""
        rates = [_best(each)[1] for each in self._both(model, rows)]
        return rates[1] / rates[0] - 1 if len(rates) == 2 and all(rates) else None

    def best_kind(self, model: str, rows: int) -> str:
        """Return which of ``KINDS`` was better before; "" if there is none."""
        found = self._both(model, rows)
        return _best(found[0])[0] if found else ""

    def _both(self, model: str, rows: int) -> Loops:
        return [
            each
            for loops in (self.before, self.after)
            for each in loops
            if (each["model"], each["rows"]) == (model, rows)
        ]


def _best(loop: dict[str, Any]) -> tuple[str, float]:
    """Return the kind and the rate of the better loop; ("", 0.0) if neither ran."""
    return max(
        ((kind, loop[kind]["rows_per_s"]) for kind in KINDS if kind in loop), key=_second, default=("", 0.0)
    )


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
