"""Where a server process hears what to serve: from its own coordinator, or from its parent's.

Life: ``open`` (what to serve first), ``connect`` (the engine to command), ``start`` (changes may come,
the first load being over), ``close``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from tensorferry.config import ServerConfig
from tensorferry.control.access import Control, LocalControl, RemoteControl
from tensorferry.control.adjusting import NONE, Adjustables, ProcessAdjusting
from tensorferry.control.book import Settings
from tensorferry.control.canaries import TICK_S, Canaries
from tensorferry.control.channel import Channel
from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import Fleet, LocalFleet
from tensorferry.control.orders import Order
from tensorferry.control.poller import Poller
from tensorferry.control.processes import CountsReporter, process_handlers
from tensorferry.control.rollout_calls import RolloutCalls
from tensorferry.engine import Engine

__all__ = ["Command", "ControlDesk", "LocalDesk", "RemoteDesk"]

_log = structlog.get_logger("tensorferry.control")

#: How long a process waits for its parent's signal once the parent's end of the channel is closed.
_ORPHANED_S: Final = 1.0


class ControlDesk(Protocol):
    """See the module."""

    async def open(self) -> Sequence[Order]:
        """Return what to serve first."""
        ...

    def connect(
        self, engine: Engine, on_change: Callable[[], None], adjustables: Adjustables = NONE
    ) -> Control:
        """Command ``engine``, and this process's ``adjustables``, from now on.

        ``on_change`` is called when what is served has changed.
        """
        ...

    async def start(self) -> None:
        """The first load is over."""
        ...

    def rollbacks(self) -> Mapping[tuple[str, str], int]:
        """Return what this process has taken back, by (model, reason); nothing where its parent does."""
        ...

    async def close(self) -> None:
        """Change nothing any more."""
        ...


class Command:
    """A coordinator with all that moves it: poller and canaries. In the only process, or in the parent."""

    def __init__(self, config: ServerConfig, fleet: Fleet) -> None:
        self._config = config
        settings = Settings(config.model_repository, config.model_control_mode, config.load_model)
        self.coordinator = Coordinator(settings, fleet)
        self.canaries = Canaries(self.coordinator, fleet)
        self.calls = RolloutCalls(self.coordinator, fleet)
        self._poller = Poller(config.model_repository, self.coordinator)
        self._tasks: list[asyncio.Task[None]] = []

    def first_orders(self) -> Sequence[Order]:
        """Return what is served from the start; see ``Coordinator``."""
        orders = self.coordinator.first_orders()
        if self._config.model_control_mode == "poll":
            self._poller.start()  # before the load: what is pushed meanwhile is new
        return orders

    async def start(self) -> None:
        """Begin to poll, if that is the mode, and to look after canaries: the first load is over."""
        try:
            await self.coordinator.settle()
        except Exception as error:  # what is served is served
            _log.error("first load not settled", exc_info=error)
        self._run(self._tick())
        if self._config.model_control_mode == "poll":
            self._run(self._poller.run(self._config.repository_poll_secs))

    def rollbacks(self) -> Mapping[tuple[str, str], int]:
        """Return how often rollouts of the models that are served were taken back, by (model, reason)."""
        return self.coordinator.rollbacks.counts(order.name for order in self.coordinator.orders)

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.coordinator.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.canaries.tick()
            except Exception as error:  # the next tick may do better; without ticks no step ever ends
                _log.error("canaries not looked at", exc_info=error)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))


class LocalDesk:
    """The coordinator is in this process."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._fleet = LocalFleet()
        self._command = Command(config, self._fleet)

    async def open(self) -> Sequence[Order]:
        """See ``ControlDesk``."""
        return self._command.first_orders()

    def connect(
        self, engine: Engine, on_change: Callable[[], None], adjustables: Adjustables = NONE
    ) -> Control:
        """See ``ControlDesk``."""
        self._fleet.connect(engine, on_change)
        engine.observers.on_progress = self._command.canaries.progress
        return LocalControl(self._command.coordinator, self._command.calls, adjustables)

    async def start(self) -> None:
        """See ``ControlDesk``."""
        await self._command.start()

    def rollbacks(self) -> Mapping[tuple[str, str], int]:
        """See ``ControlDesk``."""
        return self._command.rollbacks()

    async def close(self) -> None:
        """See ``ControlDesk``."""
        await self._command.close()


class RemoteDesk:
    """The coordinator is in the parent, at the other end of a socket pair."""

    def __init__(self, end: socket.socket, mode: str) -> None:
        self._end = end
        self._mode = mode
        self._fleet = LocalFleet()
        self._closing = False
        self._adjusting = ProcessAdjusting()
        handlers = {**process_handlers(self._fleet), "adjust": self._adjusting.adjust}
        self._channel = Channel(handlers, self._ended)
        self._reporter: CountsReporter | None = None

    async def open(self) -> Sequence[Order]:
        """See ``ControlDesk``."""
        await self._channel.open(self._end)
        orders = await self._channel.call("join")
        return [Order.from_json(order) for order in orders]

    def connect(
        self, engine: Engine, on_change: Callable[[], None], adjustables: Adjustables = NONE
    ) -> Control:
        """See ``ControlDesk``."""
        self._fleet.connect(engine, on_change)
        self._adjusting.connect(adjustables)
        self._reporter = CountsReporter(engine, self._channel)
        return RemoteControl(self._channel, self._mode)

    async def start(self) -> None:
        """See ``ControlDesk``."""

    def rollbacks(self) -> Mapping[tuple[str, str], int]:
        """See ``ControlDesk``."""
        return {}

    async def close(self) -> None:
        """See ``ControlDesk``."""
        self._closing = True
        await self._channel.close()

    def _ended(self) -> None:
        """See to it that this process ends: nobody would tell it any more what to serve.

        A parent that dies sends a signal, too, and a second one would end the process without draining.
        """
        if not self._closing:
            asyncio.get_running_loop().call_later(_ORPHANED_S, self._end_orphaned)

    def _end_orphaned(self) -> None:
        if not self._closing:
            os.kill(os.getpid(), signal.SIGTERM)
