"""The HTTP port of a server of several processes: the parent asks them, and answers for all.

A process that hangs holds up nobody for long: metrics count it with what it told last, and readiness and the
page name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import aiohttp

from tensorferry.clock import LoopClock
from tensorferry.config import ServerConfig
from tensorferry.http_port import NO_MONITORING, HttpPort
from tensorferry.monitoring.collect_server import process_families, rollback_families
from tensorferry.monitoring.families import Families, from_json
from tensorferry.monitoring.feed import Feed
from tensorferry.monitoring.fleet import FleetSource

__all__ = ["FleetPort", "Worker"]

#: A worker that takes longer to tell its counts is counted with those it told last.
_ASK_TIMEOUT_S: Final = 2.0

#: One that is late already holds up the next questions no longer than this, until it has answered, has died,
#: or so much time is over that it is asked anew.
_LATE_TIMEOUT_S: Final = 0.05
_GIVE_UP_S: Final = 30.0

#: Whether they are ready is told earlier: an orchestrator's probe waits a second, and hears no reason then.
_READINESS_TIMEOUT_S: Final = 0.8

#: By (model, reason).
Rollbacks = Callable[[], Mapping[tuple[str, str], int]]


class Worker(Protocol):
    """One of the processes, as its parent knows it."""

    number: int
    #: How often it was started.
    starts: int
    #: Whether it has said that it serves.
    is_ready: bool
    #: Where its own HTTP port is; "" while it is away.
    http_url: str

    @property
    def why_silent(self) -> str:
        """Why it doesn't answer, if it doesn't."""
        ...


class _Asked:
    """A worker's HTTP port, for the parent alone."""

    def __init__(self, worker: Worker, session: aiohttp.ClientSession) -> None:
        self._worker = worker
        self._session = session
        self._not_ready: Mapping[str, str] | None = None
        #: A question for its counts whose answer didn't come in time.
        self._late: asyncio.Task[dict[str, Any] | None] | None = None

    @property
    def number(self) -> int:
        """Which of the workers it is."""
        return self._worker.number

    @property
    def starts(self) -> int:
        """How often its process was started."""
        return self._worker.starts

    @property
    def not_ready(self) -> Mapping[str, str]:
        """Why what isn't ready in it isn't, as it told when it was asked last."""
        return self._silence() if self._not_ready is None else self._not_ready

    async def ask(self) -> tuple[int, Families] | None:
        """Return which of its starts answered, and its families; None if none did in time."""
        start = self._worker.starts
        told = None if await self._is_silent() else await self._answer()
        if told is None:
            self._not_ready = None
            return None
        families = from_json(told["families"])
        is_ready = bool(families["tensorferry_server_ready"].values[()])
        self._not_ready = self._told(is_ready, told["not_ready"])
        return start, families

    async def readiness(self) -> Mapping[str, str]:
        """Ask why what isn't ready in it isn't; nothing if all is."""
        if self._is_late:
            return self._silence()
        told = await self._get("/healthz/ready", _READINESS_TIMEOUT_S)
        return self._silence() if told is None else self._told(told["ready"], told["not_ready"])

    def close(self) -> None:
        """Wait for no answer any more."""
        if self._late is not None:
            self._late.cancel()

    async def _is_silent(self) -> bool:
        """Whether it still owes an answer from before: then there is no use in waiting as long again."""
        if self._late is not None:
            await asyncio.wait((self._late,), timeout=_LATE_TIMEOUT_S)
        return self._is_late

    @property
    def _is_late(self) -> bool:
        return self._late is not None and not self._late.done()

    async def _answer(self) -> dict[str, Any] | None:
        """Ask for its counts; an answer that comes too late is waited for, as a sign that it is back."""
        asking = asyncio.create_task(self._get("/snapshot", _GIVE_UP_S))
        try:
            await asyncio.wait((asking,), timeout=_ASK_TIMEOUT_S)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if asking.done():
            return asking.result()
        self._late = asking
        return None

    def _told(self, is_ready: bool, not_ready: Mapping[str, str]) -> Mapping[str, str]:
        return not_ready if is_ready or not_ready else {f"process {self.number}": "draining"}

    def _silence(self) -> Mapping[str, str]:
        return {f"process {self.number}": self._worker.why_silent}

    async def _get(self, path: str, timeout_s: float) -> dict[str, Any] | None:
        """Return the JSON at ``path``; None if there is no answer."""
        worker = self._worker
        if not worker.http_url or not worker.is_ready:
            return None
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(worker.http_url + path, timeout=timeout) as response:
                return dict(await response.json())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None  # it has just died and is being started again, or it is stuck


class FleetPort:
    """The HTTP port for all ``workers``. ``rollbacks`` tells what the parent has taken back."""

    def __init__(self, config: ServerConfig, workers: Sequence[Worker], rollbacks: Rollbacks) -> None:
        self._clock = LoopClock()
        self._session = aiohttp.ClientSession()
        self._asked = [_Asked(worker, self._session) for worker in workers]
        self._rollbacks = rollbacks
        self._source = FleetSource(self._asked, self._clock, self._own)
        feed: Feed | str = NO_MONITORING
        if config.monitoring == "on":
            feed = Feed(self._source, self._clock, self._not_ready)
        self._port = HttpPort(self._source, self._readiness, self._not_ready, self._clock, feed)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (chosen, if ``port`` was 0). Raises SettingsError."""
        return await self._port.start(host, port)

    async def stop(self) -> None:
        """Close the port, and ask no more."""
        await self._port.stop()
        await self._source.close()
        for asked in self._asked:
            asked.close()
        await self._session.close()
        self._clock.close()

    def _own(self) -> Families:
        return process_families() | rollback_families(self._rollbacks())

    def _not_ready(self) -> Mapping[str, str]:
        return _together(asked.not_ready for asked in self._asked)

    async def _readiness(self) -> tuple[bool, Mapping[str, str]]:
        not_ready = _together(await asyncio.gather(*(asked.readiness() for asked in self._asked)))
        return not not_ready, not_ready


def _together(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {name: reason for part in parts for name, reason in part.items()}
