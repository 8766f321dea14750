"""Two collections of families, a moment apart: looks up what changed between them, and how it is now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tensorferry.monitoring.families import Distribution, Families, Family

__all__ = ["Change", "Key", "rounded"]

#: Label values.
Key = tuple[str, ...]


class Change:
    """Looks things up in two collections of families, by name and label values."""

    def __init__(self, before: Families, after: Families, interval_s: float) -> None:
        self._before = before
        self._after = after
        #: Seconds between the two.
        self.interval_s = interval_s
        self._reasons: dict[str, dict[Key, dict[str, float]]] = {}
        self._last_labels: dict[str, dict[Key, list[str]]] = {}

    def rate(self, name: str, key: Key = ()) -> float | None:
        """Return by how much a counter grew, a second."""
        family = self._after.get(name)
        value = None if family is None else family.values.get(key)
        return None if value is None else _grown(value, self._earlier(name, key)) / self.interval_s

    def gauge(self, name: str, key: Key = ()) -> float | None:
        """Return what a gauge shows now."""
        family = self._after.get(name)
        return None if family is None else family.values.get(key)

    def distribution(self, name: str, key: Key = ()) -> Distribution | None:
        """Return what a histogram counted in the interval."""
        family = self._after.get(name)
        now = None if family is None else family.distributions.get(key)
        if now is None:
            return None
        old = self._before.get(name)
        return now.since(None if old is None else old.distributions.get(key))

    def reasons(self, name: str, key: Key) -> dict[str, float]:
        """Return the rates above 0 of a counter, by the value of its last label; ``key`` has the others."""
        found = self._reasons.get(name)
        if found is None:
            found = self._reasons[name] = self._by_reason(name)
        return found.get(key, {})

    def last_labels(self, name: str, key: Key) -> list[str]:
        """Return the values of a family's last label where the others are ``key``, in order."""
        found = self._last_labels.get(name)
        if found is None:
            found = self._last_labels[name] = defaultdict(list)
            for *others, last in self.labels_of(name):
                found[tuple(others)].append(last)
        return sorted(found.get(key, ()))

    def labels_of(self, name: str) -> Iterable[Key]:
        """Return the label values that a family has series of."""
        family: Family | None = self._after.get(name)
        return () if family is None else family.values

    def _by_reason(self, name: str) -> dict[Key, dict[str, float]]:
        found: dict[Key, dict[str, float]] = defaultdict(dict)
        family = self._after.get(name)
        for key, value in family.values.items() if family else ():
            if grown := _grown(value, self._earlier(name, key)):
                found[key[:-1]][key[-1]] = grown / self.interval_s
        return found

    def _earlier(self, name: str, key: Key) -> float:
        family = self._before.get(name)
        return 0.0 if family is None else family.values.get(key, 0.0)


def _grown(now: float, earlier: float) -> float:
    return now - earlier if now >= earlier else now


def rounded(value: float | None, factor: float = 1.0) -> float | None:
    """Return four digits of it: what a chart shows, in few bytes."""
    return None if value is None else float(f"{value * factor:.4g}")
