"""A fleet of several server processes, as their parent commands it, and the process's end of it.

A version is in force in all processes or in none: what one can't load is rejected in the others too.
A process that dies meanwhile doesn't hold up the others; when it starts again it asks for the orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from tensorferry.control.adjusting import NONE, Adjustables, FleetAdjusting
from tensorferry.control.channel import Channel, Handler
from tensorferry.control.fleet import LocalFleet, Prepared, VersionState
from tensorferry.control.orders import Order
from tensorferry.control.statistics import FleetStatistics, VersionStatistics
from tensorferry.engine import Engine
from tensorferry.engine.rollouts import Comparison, comparison_of
from tensorferry.errors import NotFound, TensorferryError, Unavailable
from tensorferry.rollout import messages
from tensorferry.rollout.counts import ArmCounts, merged
from tensorferry.rollout.shadow_counts import ShadowCounts
from tensorferry.rollout.state import Rollout

__all__ = ["CountsReporter", "ProcessFleet", "process_handlers"]

_log = structlog.get_logger("tensorferry.control")

#: How often a process tells its counts while they change: guards are judged by the parent.
_REPORT_EVERY_S: Final = 0.05

_WORST_FIRST: Final = ("UNAVAILABLE", "LOADING", "UNLOADING", "READY")


@dataclass(slots=True)
class _Change:
    """An order that is being carried out: who was asked to prepare it, and who has."""

    order: Order
    asked: set[int] = field(default_factory=set)
    prepared: dict[int, Prepared] = field(default_factory=dict)

    @property
    def failures(self) -> dict[int, str]:
        """Why versions can't be served, in whichever process."""
        return {version: why for each in self.prepared.values() for version, why in each.failures.items()}


class ProcessFleet:
    """The processes that have joined. Used on the parent's loop thread.

    ``own`` are the settings that the parent has, too.
    """

    def __init__(self, own: Adjustables = NONE) -> None:
        self._members: dict[int, Channel] = {}
        self.adjusting = FleetAdjusting(self._members, own)
        self._tickets = itertools.count(1)
        self._changes: dict[int, _Change] = {}
        self._comparisons: dict[str, Comparison | None] = {}
        self._statistics = FleetStatistics()
        self._counts: dict[tuple[str, int], dict[int, ArmCounts]] = {}
        self._shadow_counts: dict[tuple[str, int], dict[int, ShadowCounts]] = {}

    def join(self, number: int, channel: Channel) -> None:
        """Command a process from now on: it has just been given the orders."""
        self._members[number] = channel
        self.adjusting.tell_all(channel)

    def leave(self, number: int) -> None:
        """Forget a process, and what it has counted."""
        self._members.pop(number, None)
        self._statistics.leave(number)
        for change in self._changes.values():
            change.asked.discard(number)
            change.prepared.pop(number, None)  # a new process of that number has tickets of its own
        for key in [key for key in self._counts if key[1] == number]:
            del self._counts[key]
            del self._shadow_counts[key]

    def heard_counts(
        self, number: int, name: str, arms: Mapping[str, Any], shadows: Mapping[str, Any]
    ) -> None:
        """Take in what a process has counted for a model."""
        key = (name, number)
        self._counts[key] = {int(v): ArmCounts.from_json(own) for v, own in arms.items()}
        self._shadow_counts[key] = {int(v): ShadowCounts.from_json(own) for v, own in shadows.items()}

    async def prepare(self, order: Order) -> Prepared:
        """See ``Fleet``."""
        change = _Change(order)
        ticket = next(self._tickets)
        self._changes[ticket] = change
        try:
            await self._prepare(change)
            if not change.prepared:
                raise Unavailable("no process of this server is running just now; try again")
        except BaseException:
            await self.abandon(ticket)
            raise
        ready = set.intersection(*(set(each.ready) for each in change.prepared.values()))
        return Prepared(ticket, tuple(sorted(ready)), change.failures)

    async def commit(self, ticket: int, order: Order, rejected: Mapping[int, str]) -> None:
        """See ``Fleet``."""
        change = self._changes[ticket]
        failures = change.failures | dict(rejected)
        try:
            # Those that have joined meanwhile were given the orders from before. It is too late to ask
            # them: what one of them can't load, it alone doesn't serve.
            while self._members.keys() - change.asked:
                await self._prepare_late(change)
        finally:
            del self._changes[ticket]
        told = order.to_json()
        calls = [
            self._one(
                number,
                "commit",
                ticket=each.ticket,
                order=told,
                rejected={str(version): why for version, why in failures.items() if version in each.ready},
            )
            for number, each in change.prepared.items()
        ]
        await asyncio.gather(*calls)
        self._note(order.name, order.rollout)

    async def abandon(self, ticket: int) -> None:
        """See ``Fleet``."""
        own = self._changes.pop(ticket).prepared
        await asyncio.gather(*(self._one(n, "abandon", ticket=each.ticket) for n, each in own.items()))

    async def _prepare(self, change: _Change) -> None:
        """Prepare a change in the processes that haven't been asked for it."""
        numbers = self._members.keys() - change.asked
        change.asked |= numbers
        await asyncio.gather(*(self._prepare_one(number, change) for number in numbers))

    async def _prepare_late(self, change: _Change) -> None:
        """Prepare a change where it hasn't been; what can't follow doesn't hold up those that can."""
        try:
            await self._prepare(change)
        except TensorferryError as error:
            _log.error("process doesn't follow", model=change.order.name, reason=str(error))

    async def _prepare_one(self, number: int, change: _Change) -> None:
        channel = self._members.get(number)
        answer = await self._one(number, "prepare", order=change.order.to_json())
        if answer is not _GONE and self._members.get(number) is channel:
            failures = {int(version): why for version, why in answer["failures"].items()}
            change.prepared[number] = Prepared(answer["ticket"], tuple(answer["ready"]), failures)

    async def set_rollout(self, name: str, rollout: Rollout) -> None:
        """See ``Fleet``."""
        await self._all("set_rollout", name=name, rollout=messages.to_hex(rollout))
        self._note(name, rollout)

    async def unload(self, name: str) -> None:
        """See ``Fleet``."""
        await self._all("unload_model", name=name)
        self._statistics.forget(name)

    async def states(self) -> Mapping[str, Sequence[VersionState]]:
        """See ``Fleet``. Of several processes' states the one that is farthest from ready."""
        found: dict[tuple[str, int], VersionState] = {}
        for answer in (await self._all("states")).values():
            for name, lines in answer.items():
                for line in lines:
                    state = VersionState(*line)
                    known = found.setdefault((name, state.version), state)
                    if _WORST_FIRST.index(state.state) < _WORST_FIRST.index(known.state):
                        found[name, state.version] = state
        states: dict[str, list[VersionState]] = {}
        for (name, _), state in sorted(found.items()):
            states.setdefault(name, []).append(state)
        return states

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """See ``Fleet``. What those that have died told last is in it."""
        told = await self._all("statistics", name=name, version=version)
        answers = {
            process: [VersionStatistics.from_json(line) for line in lines]
            for process, lines in told.items()
            if process in self._members
        }
        return self._statistics.total(answers, name, version)

    def counts(self, name: str) -> Mapping[int, ArmCounts]:
        """See ``Fleet``."""
        total: dict[int, ArmCounts] = {}
        for (own_name, _), counts in self._counts.items():
            if own_name == name:
                for version, each in counts.items():
                    total[version] = merged(total[version], each) if version in total else each
        return total

    def shadow_counts(self, name: str) -> Mapping[int, ShadowCounts]:
        """See ``Fleet``."""
        total: dict[int, ShadowCounts] = {}
        for (own_name, _), counts in self._shadow_counts.items():
            if own_name == name:
                for version, each in counts.items():
                    total[version] = total[version].plus(each) if version in total else each
        return total

    async def learn(self, name: str, labels: Sequence[tuple[bytes, int]]) -> int:
        """See ``Fleet``."""
        told = [[key.hex(), value] for key, value in labels]
        return sum((await self._all("learn", name=name, labels=told)).values())

    async def pairs(self, name: str) -> Mapping[int, Sequence[tuple[float, int]]]:
        """See ``Fleet``."""
        pairs: dict[int, list[tuple[float, int]]] = {}
        for answer in (await self._all("pairs", name=name)).values():
            for version, own in answer.items():
                pairs.setdefault(int(version), []).extend((score, label) for score, label in own)
        return pairs

    async def refresh_counts(self, name: str) -> None:
        """See ``Fleet``. What the processes tell by themselves leaves out the latest few."""
        for number, answer in (await self._all("counts_of", name=name)).items():
            self.heard_counts(number, name, answer["arms"], answer["shadows"])

    def _note(self, name: str, rollout: Rollout) -> None:
        """Forget what was counted before where a comparison begins: the processes begin anew, too.

        What they count from now on they tell; until then a canary would be judged by the one before.
        """
        comparison = comparison_of(rollout)
        if comparison is not None and comparison != self._comparisons.get(name):
            for key in [key for key in self._counts if key[0] == name]:
                del self._counts[key]
                del self._shadow_counts[key]
        self._comparisons[name] = comparison

    async def _all(self, method: str, **arguments: object) -> dict[int, Any]:
        """Call every process; return the answers by process, without those of the dead."""
        numbers = list(self._members)
        answers = await asyncio.gather(*(self._one(number, method, **arguments) for number in numbers))
        return {
            number: answer for number, answer in zip(numbers, answers, strict=True) if answer is not _GONE
        }

    async def _one(self, number: int, method: str, /, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        channel = self._members.get(number)
        if channel is None:
            return _GONE
        try:
            return await channel.call(method, **arguments)
        except TensorferryError as error:
            # One process's trouble is not to leave the others with half of a change.
            _log.error("process doesn't follow", process=number, call=method, reason=str(error))
            return _GONE


_GONE: Final = object()


def _counts_message(arms: Mapping[int, ArmCounts], shadows: Mapping[int, ShadowCounts]) -> dict[str, Any]:
    """Return a model's counts as ``ProcessFleet.heard_counts`` takes them."""
    return {
        "arms": {str(version): own.to_json() for version, own in arms.items()},
        "shadows": {str(version): own.to_json() for version, own in shadows.items()},
    }


def process_handlers(fleet: LocalFleet) -> dict[str, Handler]:
    """Return a process's handlers of what ``ProcessFleet`` calls."""

    async def prepare(order: dict[str, Any]) -> dict[str, Any]:
        prepared = await fleet.prepare(Order.from_json(order))
        return {
            "ticket": prepared.ticket,
            "ready": list(prepared.ready),
            "failures": {str(version): why for version, why in prepared.failures.items()},
        }

    async def commit(ticket: int, order: dict[str, Any], rejected: dict[str, str]) -> None:
        refused = {int(version): why for version, why in rejected.items()}
        await fleet.commit(ticket, Order.from_json(order), refused)

    async def counts_of(name: str) -> dict[str, Any]:
        return _counts_message(fleet.counts(name), fleet.shadow_counts(name))

    async def set_rollout(name: str, rollout: str) -> None:
        # A process that has just joined may not have the model yet; the order that follows has it all.
        with contextlib.suppress(NotFound):
            await fleet.set_rollout(name, messages.from_hex(rollout))

    async def unload_model(name: str) -> None:
        with contextlib.suppress(NotFound):
            await fleet.unload(name)

    async def states() -> dict[str, list[list[Any]]]:
        lines = await fleet.states()
        return {
            name: [[each.version, each.state, each.reason] for each in own] for name, own in lines.items()
        }

    async def statistics(name: str, version: str) -> list[list[object]]:
        return [line.to_json() for line in await fleet.statistics(name, version)]

    async def learn(name: str, labels: list[list[Any]]) -> int:
        return await fleet.learn(name, [(bytes.fromhex(key), value) for key, value in labels])

    async def pairs(name: str) -> dict[str, list[tuple[float, int]]]:
        return {str(version): list(own) for version, own in (await fleet.pairs(name)).items()}

    return {
        "prepare": prepare,
        "commit": commit,
        "abandon": fleet.abandon,
        "set_rollout": set_rollout,
        "unload_model": unload_model,
        "counts_of": counts_of,
        "states": states,
        "statistics": statistics,
        "learn": learn,
        "pairs": pairs,
    }


class CountsReporter:
    """Tells the parent what this process's arms have counted, soon after they have."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._due: set[str] = set()
        engine.observers.on_progress = self.progress

    def progress(self, name: str) -> None:
        """Note that a model's counts have changed."""
        if name not in self._due:
            self._due.add(name)
            self._loop.call_later(_REPORT_EVERY_S, partial(self._report, name))

    def _report(self, name: str) -> None:
        self._due.discard(name)
        observers = self._engine.observers
        counts = _counts_message(observers.counts(name), observers.shadow_counts(name))
        self._channel.tell("counts", name=name, **counts)
