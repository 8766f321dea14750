"""Families of series: the one form that metrics have here, whoever reads them.

A family has a name, a kind and label names; under each tuple of label values it holds a number, or for a
histogram a ``Distribution``. Families of several processes are added up (``merged``), sent as JSON between
them, rendered for Prometheus and read by the live page.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, TypeVar

__all__ = ["Distribution", "Families", "Family", "counts_only", "from_json", "merged", "parts_of", "to_json"]

_Combine = Callable[[float, float], float]
_V = TypeVar("_V")

#: Series of a part (``parts_of``). A distribution has some sixty numbers.
_DISTRIBUTIONS: Final = 64
_VALUES: Final = 512

_COMBINE: Final[Mapping[str, _Combine]] = {"sum": operator.add, "max": max, "min": min}


@dataclass(slots=True)
class Distribution:
    """A histogram: ``bounds`` are upper bounds, inclusive; ``counts`` are one more, and not cumulative."""

    bounds: Sequence[float]
    counts: list[int]
    total: float

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def plus(self, other: Distribution) -> Distribution:
        """Return both together; their bounds must be the same."""
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return Distribution(self.bounds, counts, self.total + other.total)

    def since(self, before: Distribution | None) -> Distribution:
        """Return what was counted after ``before``; everything where that was of more, a start ago."""
        if before is None or any(new < old for new, old in zip(self.counts, before.counts, strict=True)):
            return self
        counts = [new - old for new, old in zip(self.counts, before.counts, strict=True)]
        return Distribution(self.bounds, counts, self.total - before.total)

    def quantile(self, share: float) -> float | None:
        """Return the value that ``share`` of all don't exceed, interpolated in its bucket; None of nothing.

        What lies above the last bound counts as being there.
        """
        wanted = share * self.count
        if not wanted:
            return None
        below = 0
        for index, count in enumerate(self.counts):
            if count and below + count >= wanted:
                if index >= len(self.bounds):
                    return self.bounds[-1]
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * (wanted - below) / count
            below += count
        return self.bounds[-1]


@dataclass(slots=True)
class Family:
    """``kind`` is counter, gauge or histogram; ``merge`` (sum, max or min) says how processes combine.

    ``name`` is Prometheus's, without a counter's ``_total``. ``values`` and ``distributions`` map label
    values, in the order of ``labels``, to numbers or histograms: a family has one or the other.
    """

    name: str
    help: str
    kind: str
    labels: tuple[str, ...] = ()
    merge: str = "sum"
    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    distributions: dict[tuple[str, ...], Distribution] = field(default_factory=dict)


#: By name.
Families = dict[str, Family]


def merged(parts: Iterable[Mapping[str, Family]]) -> Families:
    """Combine the families of several processes. The parts stay as they are."""
    total: Families = {}
    for part in parts:
        for name, family in part.items():
            into = total.get(name)
            if into is None:
                into = total[name] = Family(
                    family.name, family.help, family.kind, family.labels, family.merge
                )
            combine = _COMBINE[family.merge]
            for key, value in family.values.items():
                into.values[key] = combine(into.values[key], value) if key in into.values else value
            for key, each in family.distributions.items():
                known = into.distributions.get(key)
                into.distributions[key] = each if known is None else known.plus(each)
    return total


def counts_only(families: Mapping[str, Family]) -> Families:
    """Return what only grows: counters and histograms. It is what is left of a process that has ended."""
    return {name: family for name, family in families.items() if family.kind != "gauge"}


def to_json(families: Mapping[str, Family]) -> list[dict[str, Any]]:
    """Return families as JSON can hold them. All histograms of a family have the same bounds."""
    return [
        {
            "name": each.name,
            "help": each.help,
            "kind": each.kind,
            "labels": list(each.labels),
            "merge": each.merge,
            "values": [[list(key), value] for key, value in each.values.items()],
            "bounds": next((list(d.bounds) for d in each.distributions.values()), []),
            "distributions": [[list(key), d.counts, d.total] for key, d in each.distributions.items()],
        }
        for each in families.values()
    ]


def from_json(told: Iterable[Mapping[str, Any]]) -> Families:
    """Return what ``to_json`` was given. A family may come in several parts."""
    families: Families = {}
    for each in told:
        bounds = tuple(each["bounds"])
        labels, merge = tuple(each["labels"]), each["merge"]
        family = families.setdefault(
            each["name"], Family(each["name"], each["help"], each["kind"], labels, merge)
        )
        family.values |= {tuple(key): value for key, value in each["values"]}
        family.distributions |= {
            tuple(key): Distribution(bounds, counts, total) for key, counts, total in each["distributions"]
        }
    return families


def parts_of(family: Family) -> Iterator[Family]:
    """Yield the family in parts that take about a millisecond each to write down; one if it is empty."""
    if len(family.distributions) <= _DISTRIBUTIONS and len(family.values) <= _VALUES:
        yield family
        return
    for values in _chunks(family.values, _VALUES):
        yield replace(family, values=values, distributions={})
    for distributions in _chunks(family.distributions, _DISTRIBUTIONS):
        yield replace(family, values={}, distributions=distributions)


def _chunks(of: Mapping[tuple[str, ...], _V], size: int) -> Iterator[dict[tuple[str, ...], _V]]:
    items = iter(of.items())
    while chunk := dict(islice(items, size)):
        yield chunk
