"""The server processes that a coordinator commands, as it sees them: one engine, or several.

``LocalFleet`` is the one engine of this process. A server of several processes has a fleet that
passes each call to all of them (``supervisor.py``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tensorferry.control.orders import Order, read_order
from tensorferry.control.statistics import VersionStatistics, statistics_of
from tensorferry.engine import Engine, ModelState
from tensorferry.engine.transition import Transition
from tensorferry.errors import Unavailable
from tensorferry.rollout.counts import ArmCounts
from tensorferry.rollout.shadow_counts import ShadowCounts
from tensorferry.rollout.state import Rollout

__all__ = ["Fleet", "LocalFleet", "Prepared", "VersionState"]


@dataclass(frozen=True, slots=True)
class VersionState:
    """How a version is: a line of the repository's index."""

    version: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preparing an order came to: the versions that are ready, and why others aren't (0: the model)."""

    ticket: int
    ready: tuple[int, ...]
    failures: Mapping[int, str] = field(default_factory=dict)


class Fleet(Protocol):
    """Where orders are carried out. ``prepare`` takes long; the others don't."""

    async def prepare(self, order: Order) -> Prepared:
        """Load what the order asks for, beside what serves."""
        ...

    async def commit(self, ticket: int, order: Order, rejected: Mapping[int, str]) -> None:
        """Put it in force, but for ``rejected`` versions. ``order`` is what is served from then on.

        Its rollout may be another than the one that was prepared: requests may have been diverted since.
        """
        ...

    async def abandon(self, ticket: int) -> None:
        """Free it."""
        ...

    async def set_rollout(self, name: str, rollout: Rollout) -> None:
        """Send the requests where it says, from the next one on."""
        ...

    async def unload(self, name: str) -> None:
        """Withdraw a model."""
        ...

    async def states(self) -> Mapping[str, Sequence[VersionState]]:
        """Return every model's versions."""
        ...

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """Return the versions' counts, of all processes together; "" stands for every name or version."""
        ...

    def counts(self, name: str) -> Mapping[int, ArmCounts]:
        """Return what the rollout's arms have answered, of all processes together."""
        ...

    async def refresh_counts(self, name: str) -> None:
        """Bring ``counts`` and ``shadow_counts`` up to this moment."""
        ...

    def shadow_counts(self, name: str) -> Mapping[int, ShadowCounts]:
        """Return how the shadows' scores differ, of all processes together."""
        ...

    async def learn(self, name: str, labels: Sequence[tuple[bytes, int]]) -> int:
        """Take in labels by key; return how many belong to a request that is remembered."""
        ...

    async def pairs(self, name: str) -> Mapping[int, Sequence[tuple[float, int]]]:
        """Return by version the (score, label) pairs of what was learned."""
        ...


class LocalFleet:
    """This process's engine, once it is connected. Used on the loop thread."""

    def __init__(self) -> None:
        self._connected: Engine | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._tickets = itertools.count(1)
        self._prepared: dict[int, Transition] = {}

    def connect(self, engine: Engine, on_change: Callable[[], None] = lambda: None) -> None:
        """Command ``engine`` from now on; ``on_change`` is called when what is served has changed."""
        self._connected = engine
        self._on_change = on_change

    @property
    def _engine(self) -> Engine:
        if self._connected is None:
            raise Unavailable("the server is still starting; try again")
        return self._connected

    async def prepare(self, order: Order) -> Prepared:
        """See ``Fleet``."""
        entry = await asyncio.to_thread(read_order, order)
        transition = await self._engine.prepare(entry, order.rollout)
        ticket = next(self._tickets)
        self._prepared[ticket] = transition
        return Prepared(ticket, tuple(transition.ready), transition.failures)

    async def commit(self, ticket: int, order: Order, rejected: Mapping[int, str]) -> None:
        """See ``Fleet``."""
        transition = self._prepared.pop(ticket)
        transition.rollout = order.rollout
        self._engine.commit(transition, rejected)
        self._on_change()

    async def abandon(self, ticket: int) -> None:
        """See ``Fleet``."""
        await self._engine.abandon(self._prepared.pop(ticket))

    async def set_rollout(self, name: str, rollout: Rollout) -> None:
        """See ``Fleet``."""
        self._engine.set_rollout(name, rollout)

    async def unload(self, name: str) -> None:
        """See ``Fleet``."""
        self._engine.unload(name)
        self._on_change()

    async def states(self) -> Mapping[str, Sequence[VersionState]]:
        """See ``Fleet``. A model that is refused as a whole has a line for version 0."""
        states: dict[str, list[VersionState]] = {}
        for name, versions in self._engine.models.items():
            lines = states.setdefault(name, [])
            error = self._engine.fault(name)
            if error:
                lines.append(VersionState(0, ModelState.UNAVAILABLE.value, error))
            lines += [VersionState(n, live.state.value, live.reason) for n, live in sorted(versions.items())]
        for live in self._engine.retiring:
            lines = states.setdefault(live.asked.name, [])
            if all(line.version != live.asked.version for line in lines):
                lines.append(VersionState(live.asked.version, live.state.value, live.reason))
        return states

    async def statistics(self, name: str, version: str) -> Sequence[VersionStatistics]:
        """See ``Fleet``."""
        return statistics_of(self._engine, name, version)

    def counts(self, name: str) -> Mapping[int, ArmCounts]:
        """See ``Fleet``."""
        return self._engine.observers.counts(name)

    async def refresh_counts(self, name: str) -> None:
        """See ``Fleet``: they are the engine's own."""

    def shadow_counts(self, name: str) -> Mapping[int, ShadowCounts]:
        """See ``Fleet``."""
        return self._engine.observers.shadow_counts(name)

    async def learn(self, name: str, labels: Sequence[tuple[bytes, int]]) -> int:
        """See ``Fleet``."""
        return self._engine.observers.learn(name, labels)

    async def pairs(self, name: str) -> Mapping[int, Sequence[tuple[float, int]]]:
        """See ``Fleet``."""
        return self._engine.observers.pairs(name)
