"""Families as Prometheus' text format, written by prometheus_client, a slice at a time.

A server of many models has tens of thousands of lines. They are written on the event loop, which goes
on with its work between slices. Durations, of which the families know sixty-one bounds, are shown
with the seventeen that people and alert rules use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tensorferry.monitoring.families import Distribution, Family
from tensorferry.monitoring.pacing import Turns

__all__ = ["EXPORTED_S", "render"]

#: Upper bounds of durations in seconds, as they are exported.
EXPORTED_S: Final = (
    *(5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

#: Samples that are written at a stretch: about a millisecond.
_AT_A_STRETCH: Final = 200

#: Triton's counters don't end in ``_total``, and dashboards ask for them as they are.
_TRITONS: Final = "nv_"

_Sample = tuple[str, dict[str, str], float]


class _Piece(Collector):
    """Some samples of one family, as prometheus_client takes them."""

    def __init__(self, family: Family, samples: Sequence[_Sample]) -> None:
        self._family = family
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self._family.name, self._family.help, self._family.kind)
        for name, labels, value in self._samples:
            metric.add_sample(name, labels, value)
        yield metric


async def render(families: Mapping[str, Family], turns: Turns) -> list[bytes]:
    """Return the text in pieces. Other tasks run between slices; the families must not change meanwhile.

    It stays in pieces, as putting megabytes together takes milliseconds at a stretch.
    """
    text: list[bytes] = []
    for family in families.values():
        for number, samples in enumerate(_slices(family)):
            written = generate_latest(_Piece(family, samples))
            if number:
                written = written.split(b"\n", 2)[2]  # without the lines of HELP and TYPE
            elif family.kind == "counter" and family.name.startswith(_TRITONS):
                name = family.name.encode()
                written = written.replace(b" " + name + b"_total ", b" " + name + b" ")
            text.append(written)
            await turns.next()
    return text


def _slices(family: Family) -> Iterator[list[_Sample]]:
    """Return the family's samples in slices; one, empty, where it has none."""
    found: list[_Sample] = []
    is_ours = not family.name.startswith(_TRITONS)
    name = f"{family.name}_total" if family.kind == "counter" and is_ours else family.name
    for key, value in family.values.items():
        found.append((name, dict(zip(family.labels, key, strict=True)), value))
        if len(found) >= _AT_A_STRETCH:
            yield found
            found = []
    for key, distribution in family.distributions.items():
        found += _samples(family.name, dict(zip(family.labels, key, strict=True)), distribution)
        if len(found) >= _AT_A_STRETCH:
            yield found
            found = []
    if found or not (family.values or family.distributions):
        yield found


def _samples(name: str, labels: dict[str, str], distribution: Distribution) -> Iterator[_Sample]:
    """Return a histogram's samples: cumulative, and the last bucket is the count."""
    within = list(accumulate(distribution.counts))
    for index, bound in _exported(tuple(distribution.bounds)):
        yield f"{name}_bucket", {**labels, "le": bound}, within[index]
    total = within[-1]
    yield f"{name}_bucket", {**labels, "le": "+Inf"}, total
    yield f"{name}_sum", labels, distribution.total
    yield f"{name}_count", labels, total


@lru_cache(maxsize=8)
def _exported(bounds: tuple[float, ...]) -> list[tuple[int, str]]:
    """Return which bounds are shown, by index, and how they are written."""
    shown = EXPORTED_S if set(EXPORTED_S) <= set(bounds) else bounds
    return [(bounds.index(bound), str(floatToGoString(bound))) for bound in shown]  # type: ignore[no-untyped-call]
