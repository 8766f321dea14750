"""Bounds what asking costs: something that is made on demand takes at most a set part of the time.

A scraper that comes every 100 ms, or twenty at once, get what was made last; so a server of many models
isn't kept from its work by those who look at it. ``Paced`` answers at once, and the answer may be old;
``Rounds`` lets those wait who ask too soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tensorferry.clock import Clock

__all__ = ["PAUSES", "Made", "Paced", "Rounds", "Turns"]

T = TypeVar("T")

#: How many times what the last making took must pass before the next begins: it takes a twentieth.
PAUSES: Final = 20.0


class Turns:
    """A long job's turns on the event loop: counts the time it has used, and lets others go between."""

    def __init__(self, clock: Clock) -> None:
        #: Seconds of the turns that are over.
        self.spent_s = 0.0
        #: The longest of them.
        self.longest_s = 0.0
        self._clock = clock
        self._since = clock.now()

    async def next(self) -> None:
        """End a turn; the job goes on in the next, after whoever else is due."""
        self.end()
        await asyncio.sleep(0)
        self.begin()

    def begin(self) -> None:
        """Begin a turn: what has passed since the last one's end isn't the job's."""
        self._since = self._clock.now()

    def end(self) -> None:
        """End a turn."""
        spent_s = self._clock.now() - self._since
        self.spent_s += spent_s
        self.longest_s = max(self.longest_s, spent_s)


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What was made, and how many seconds ago its making began."""

    value: T
    age_s: float


class Paced(Generic[T]):
    """Makes something when asked, one making at a time, which all share who ask meanwhile.

    If the last making used t of the loop's time, the next isn't begun before ``pauses`` times t have passed
    since its end; who asks earlier gets what was made last. ``make`` ends its turns (``Turns``) so that
    t is known. Used on the loop thread.
    """

    def __init__(self, make: Callable[[Turns], Awaitable[T]], clock: Clock, pauses: float = PAUSES) -> None:
        self._make = make
        self._clock = clock
        self._pauses = pauses
        self._not_before = 0.0
        self._last: tuple[T, float] | None = None
        self._making: asyncio.Task[tuple[T, float]] | None = None

    async def get(self) -> Made[T]:
        """Return it, made now or a little ago.

        Raises:
            Exception: what the making raised.
        """
        if self._making is None:
            if self._last is not None and self._clock.now() < self._not_before:
                return self._told(*self._last)
            self._making = asyncio.create_task(self._run())
            self._making.add_done_callback(self._ended)
        # Shielded: one who gives up asking doesn't take it from the others.
        return self._told(*await asyncio.shield(self._making))

    async def close(self) -> None:
        """Give up a making that is under way."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])

    def _told(self, value: T, begun: float) -> Made[T]:
        return Made(value, self._clock.now() - begun)

    async def _run(self) -> tuple[T, float]:
        begun = self._clock.now()
        turns = Turns(self._clock)
        value = await self._make(turns)
        self._not_before = self._clock.now() + self._pauses * turns.spent_s
        self._last = value, begun
        return self._last

    def _ended(self, task: asyncio.Task[tuple[T, float]]) -> None:
        self._making = None
        if not task.cancelled():
            task.exception()  # heard by those who wait, if anybody still does


class Rounds(Generic[T]):
    """Makes something when asked, one at a time, for all who have asked before it began.

    Who asks while a round is on gets the next one's, so that what is told is never older than the
    question. A round begins at least ``least_s``, and ``pauses`` times the loop's time that the last one
    used, after its end. Used on the loop thread.
    """

    def __init__(
        self, make: Callable[[Turns], Awaitable[T]], clock: Clock, pauses: float, least_s: float
    ) -> None:
        self._make = make
        self._clock = clock
        self._pauses = pauses
        self._least_s = least_s
        self._not_before = clock.now()
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None
        self._tasks: set[asyncio.Task[T]] = set()

    async def get(self) -> T:
        """Return what the next round makes.

        Raises:
            Exception: what the making raised.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._run())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._ended)
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> T:
        async with self._one_at_a_time:
            await self._pause()
            self._next = None
            turns = Turns(self._clock)
            try:
                return await self._make(turns)
            finally:
                pause_s = max(self._least_s, self._pauses * turns.spent_s)
                self._not_before = self._clock.now() + pause_s

    async def _pause(self) -> None:
        over = asyncio.Event()
        timer = self._clock.call_at(self._not_before, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if self._next is task:
            self._next = None
        if not task.cancelled():
            task.exception()  # heard by those who wait, if anybody still does
