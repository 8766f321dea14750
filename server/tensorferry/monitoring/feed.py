"""One sampler for all who watch: it asks the source, makes a frame, and each viewer gets the same bytes.

While somebody watches, once a second; while nobody does, seldom, so that a first viewer finds the last
minutes there. A frame becomes JSON once, when it is made, and is handed on to viewers one at a time with a
step of the event loop between two: twenty viewers delay a call by what one of them costs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from tensorferry.clock import Clock
from tensorferry.monitoring.families import Families
from tensorferry.monitoring.frames import Frame, frame_steps

__all__ = ["Feed", "FeedLimits", "Viewer"]

_COMPACT: Final = (",", ":")

#: Versions that are written down at a stretch: less than a millisecond.
_AT_A_STRETCH: Final = 64

_log = structlog.get_logger("tensorferry.monitoring")


class _Source(Protocol):
    async def families(self) -> Families: ...


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How often, how long, how much. Times in seconds."""

    #: Between two samples while somebody watches, and while nobody does.
    watched_s: float = 1.0
    unwatched_s: float = 5.0
    #: How old a frame that is kept may be, and how many bytes all that are kept may have.
    history_s: float = 300.0
    history_bytes: int = 8 * 2**20
    viewers: int = 100
    #: A source that hasn't answered by then is left alone until the next sample.
    source_s: float = 5.0


class Viewer:
    """Somebody who watches. Holds at most one frame that wasn't read yet: the latest."""

    __slots__ = ("_latest", "_news", "dropped")

    def __init__(self) -> None:
        self._latest: bytes | None = None
        self._news = asyncio.Event()
        #: How many frames were replaced by a later one before they were read.
        self.dropped = 0

    def offer(self, frame: bytes) -> None:
        """Leave a frame for the viewer, in place of one that wasn't read."""
        self.dropped += self._latest is not None
        self._latest = frame
        self._news.set()

    async def next(self) -> bytes:
        """Wait for the next frame and return its JSON."""
        await self._news.wait()
        frame, self._latest = self._latest, None
        self._news.clear()
        assert frame is not None
        return frame


class Feed:
    """Samples ``source`` from ``start`` to ``stop``, for any number of viewers up to a limit.

    ``not_ready`` says of models why they aren't. Used on the loop thread.
    """

    def __init__(
        self,
        source: _Source,
        clock: Clock,
        not_ready: Callable[[], Mapping[str, str]] | None = None,
        limits: FeedLimits = FeedLimits(),
    ) -> None:
        self._source = source
        self._clock = clock
        self._not_ready = not_ready
        self._limits = limits
        self._viewers: set[Viewer] = set()
        self._history: deque[tuple[float, bytes]] = deque()
        self._history_bytes = 0
        self._before: tuple[float, Families] | None = None
        self._wake = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None
        self._is_failing = False

    @property
    def viewers(self) -> int:
        """How many watch."""
        return len(self._viewers)

    def start(self) -> None:
        """Begin to sample."""
        self._sampling = asyncio.create_task(self._sample_on(), name="feed")

    async def stop(self) -> None:
        """Sample no more. Viewers get nothing more."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait((self._sampling,))

    def watch(self) -> Viewer | None:
        """Return a new viewer, who gets every frame from now on, until ``leave``; None: too many watch."""
        if len(self._viewers) >= self._limits.viewers:
            return None
        viewer = Viewer()
        self._viewers.add(viewer)
        self._wake.set()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer."""
        self._viewers.discard(viewer)

    def history(self) -> list[bytes]:
        """Return the frames of the last minutes, oldest first, each as JSON."""
        return [frame for _, frame in self._history]

    # -- inside ---------------------------------------------------------------------------------

    async def _sample_on(self) -> None:
        """Sample for ever, at instants that don't drift: the next is as far from the last as it was due."""
        due = self._clock.now()
        while True:
            await self._sample()
            # After a sample that came late, not at once the next: rates of a few ms say nothing.
            interval_s = self._interval_s()
            due = max(due + interval_s, self._clock.now() + interval_s / 2)
            await self._pause_until(due)
            due = min(due, self._clock.now())

    def _interval_s(self) -> float:
        return self._limits.watched_s if self._viewers else self._limits.unwatched_s

    async def _pause_until(self, due: float) -> None:
        """Wait; a first viewer shortens the wait of an unwatched feed to that of a watched one."""
        began = self._clock.now()
        self._wake.clear()
        while (now := self._clock.now()) < due:
            timer = self._clock.call_at(due, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
            self._wake.clear()
            if self._viewers:
                due = min(due, max(now, began + self._limits.watched_s))

    async def _sample(self) -> None:
        try:
            families = await self._ask()
        except Exception as error:  # whatever it is, the next second may be better, and the page says "stale"
            if not self._is_failing:
                _log.warning("no frames for the live page", reason=str(error) or type(error).__name__)
            self._is_failing = True
            return
        self._is_failing = False
        now, before = self._clock.now(), self._before
        if before is not None and (families is before[1] or now <= before[0]):
            return  # told again what was told before
        self._before = (now, families)
        if before is None:
            return
        encoded = await _encoded(await self._frame(before, self._before))
        self._keep(now, encoded)
        for viewer in tuple(self._viewers):
            viewer.offer(encoded)
            await asyncio.sleep(0)  # the write happens here, and so do the calls that came meanwhile

    async def _frame(self, before: tuple[float, Families], after: tuple[float, Families]) -> Frame:
        """Make a frame; between its steps the loop goes on with its work."""
        not_ready = None if self._not_ready is None else self._not_ready()
        interval_s = after[0] - before[0]
        steps = frame_steps(before[1], after[1], interval_s, time.time_ns() / 1e9, not_ready)
        while True:
            try:
                next(steps)
            except StopIteration as made:
                frame: Frame = made.value
                return frame
            await asyncio.sleep(0)

    async def _ask(self) -> Families:
        """Return the source's families; give up on a source that hangs."""
        asking = asyncio.ensure_future(self._source.families())
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = asking.cancel()

        timer = self._clock.call_at(self._clock.now() + self._limits.source_s, give_up)
        try:
            return await asking
        except asyncio.CancelledError:
            if not is_late:
                raise
            raise TimeoutError(f"no answer within {self._limits.source_s:g} s") from None
        finally:
            timer.cancel()

    def _keep(self, now: float, encoded: bytes) -> None:
        self._history.append((now, encoded))
        self._history_bytes += len(encoded)
        oldest = now - self._limits.history_s
        while self._history_bytes > self._limits.history_bytes or self._history[0][0] < oldest:
            self._history_bytes -= len(self._history.popleft()[1])


async def _encoded(frame: Frame) -> bytes:
    """Return a frame as JSON; of many versions some at a time, and the loop goes on between."""
    rest = {name: part for name, part in frame.items() if name != "models"}
    models = frame["models"]
    pieces = []
    for start in range(0, len(models), _AT_A_STRETCH):
        if start:
            await asyncio.sleep(0)
        pieces.append(json.dumps(models[start : start + _AT_A_STRETCH], separators=_COMPACT)[1:-1])
    return f'{json.dumps(rest, separators=_COMPACT)[:-1]},"models":[{",".join(pieces)}]}}'.encode()
