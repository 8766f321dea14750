"""The families of several server processes as those of one server.

Prometheus takes a counter that goes down for one that began anew, and counts all of it again. So what a
process has counted stays in the sum when the process ends, when it doesn't answer in time, and when a
version's counts begin anew in it. Gauges are of the processes that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from tensorferry.clock import Clock
from tensorferry.monitoring.families import Distribution, Families, Family, counts_only, merged
from tensorferry.monitoring.pacing import Rounds, Turns

__all__ = ["FleetSource", "Ledger", "Member"]

#: At least so long between two rounds of asking.
_LEAST_S: Final = 0.1
#: How many times what adding up took: the parent has other work, too.
_PAUSES: Final = 4.0


#: A sum of a few floats is off by a few parts in 2**53.
_ROUNDING: Final = 1e-12


class Member(Protocol):
    """A server process that may be asked; it may end, and be started again in the same place."""

    @property
    def starts(self) -> int:
        """How often it was started."""
        ...

    async def ask(self) -> tuple[int, Families] | None:
        """Return which of its starts answered, and what; None where it doesn't answer in time."""
        ...


class Ledger:
    """What one member has counted over all of its lives."""

    def __init__(self) -> None:
        #: What was counted by those that ended, or began anew.
        self.closed: Families = {}
        #: What the living one counted, when it told last.
        self.open: Families = {}
        self._start = 0

    def heard(self, start: int, told: Mapping[str, Family]) -> None:
        """Take in what the ``start``-th life told."""
        counts = counts_only(told)
        if start != self._start:
            self.closed = merged((self.closed, self.open))
        else:
            self.closed = merged((self.closed, _lost(self.open, counts)))
        self._start = start
        self.open = counts

    def forget(self, live: Mapping[str, Family]) -> None:
        """Forget of closed counts the versions that no process has any more."""
        for name, family in self.closed.items():
            if family.labels[:2] != _VERSION:
                continue
            here = live.get(name, family)
            served = {key[:2] for key in here.values} | {key[:2] for key in here.distributions}
            family.values = {key: each for key, each in family.values.items() if key[:2] in served}
            family.distributions = {
                key: each for key, each in family.distributions.items() if key[:2] in served
            }


_VERSION: Final = ("model", "version")


def _lost(before: Mapping[str, Family], now: Mapping[str, Family]) -> Families:
    """Return the series that are gone, or are smaller than they were."""
    lost: Families = {}
    for name, family in before.items():
        after = now.get(name)
        values = {
            key: value
            for key, value in family.values.items()
            if after is None or after.values.get(key, -1) < value
        }
        distributions = {
            key: each
            for key, each in family.distributions.items()
            if after is None or _is_less(after.distributions.get(key), each)
        }
        if values or distributions:
            lost[name] = Family(
                family.name, family.help, family.kind, family.labels, family.merge, values, distributions
            )
    return lost


def _is_less(now: Distribution | None, before: Distribution) -> bool:
    return now is None or any(new < old for new, old in zip(now.counts, before.counts, strict=True))


def _keep_up(total: Mapping[str, Family], told: Mapping[str, Family]) -> None:
    """Keep sums from falling by rounding: the same parts are added in another order when one has ended."""
    for name, before in told.items():
        family = total.get(name)
        if family is None:
            continue
        for key, value in before.values.items():
            if _is_rounded_down(family.values.get(key), value):
                family.values[key] = value
        for key, each in before.distributions.items():
            now = family.distributions.get(key)
            if now is not None and _is_rounded_down(now.total, each.total):
                family.distributions[key] = Distribution(now.bounds, now.counts, each.total)


def _is_rounded_down(now: float | None, before: float) -> bool:
    return now is not None and now < before <= now + abs(now) * _ROUNDING


class FleetSource:
    """Asks all members, one round at a time, at most ten a second; ``own`` are the asker's families.

    A round lasts as long as the slowest member takes to answer, or to be given up.
    """

    def __init__(
        self, members: Sequence[Member], clock: Clock, own: Callable[[], Families] = dict[str, Family]
    ) -> None:
        self._members = members
        self._own = own
        self._ledgers = [Ledger() for _ in members]
        #: The sums that were told last.
        self._told: Families = {}
        self._rounds = Rounds(self._ask, clock, _PAUSES, _LEAST_S)

    async def families(self) -> Families:
        """Return the sum of all. It is shared by all who ask at about the same time."""
        return await self._rounds.get()

    async def close(self) -> None:
        """Ask no more."""
        await self._rounds.close()

    async def _ask(self, turns: Turns) -> Families:
        answers = await asyncio.gather(*(member.ask() for member in self._members))
        turns.begin()
        parts: list[Mapping[str, Family]] = [self._own()]
        for ledger, answer in zip(self._ledgers, answers, strict=True):
            if answer is not None:
                ledger.heard(*answer)
            parts.append(ledger.open if answer is None else answer[1])
            await turns.next()
        live = merged(parts)
        await turns.next()
        if all(answer is not None for answer in answers):
            for ledger in self._ledgers:
                ledger.forget(live)
        total = merged((live, *(ledger.closed for ledger in self._ledgers)))
        self._put_fleet(total, sum(answer is not None for answer in answers))
        _keep_up(total, self._told)
        self._told = counts_only(total)
        turns.end()
        return total

    def _put_fleet(self, total: Families, answered: int) -> None:
        restarts = sum(max(0, member.starts - 1) for member in self._members)
        for name, help, kind, value in (
            ("tensorferry_processes", "Server processes that answer", "gauge", answered),
            ("tensorferry_process_restarts", "Server processes started again", "counter", restarts),
        ):
            total[name] = Family(name, help, kind, values={(): value})
        ready = total.get("tensorferry_server_ready")
        if answered < len(self._members):
            help = ready.help if ready is not None else "1 where all models are ready"
            total["tensorferry_server_ready"] = Family(
                "tensorferry_server_ready", help, "gauge", merge="min", values={(): 0}
            )
