"""A server of several processes in one: its parent, and engines behind socket pairs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from tests.unit.support import run

from tensorferry.config import ServerConfig
from tensorferry.control.desk import Command, RemoteDesk
from tensorferry.control.orders import read_order
from tensorferry.control.processes import ProcessFleet
from tensorferry.engine import Engine
from tensorferry.supervisor import _attach as attach

T = TypeVar("T")


class Process:
    """A server process: an engine whose orders come from the parent."""

    def __init__(self, end: socket.socket, mode: str) -> None:
        self.engine = Engine(1000, 2**30)
        self.desk = RemoteDesk(end, mode)
        self.control = None

    async def start(self) -> None:
        """Ask for the orders and load them, as ``app.running`` does."""
        orders = await self.desk.open()
        self.control = self.desk.connect(self.engine, lambda: None)
        entries = [read_order(order) for order in orders]
        await self.engine.load_all(entries, {order.name: order.rollout for order in orders})
        await self.desk.start()

    async def die(self) -> None:
        """Close this end, as the kernel does for a process that was killed."""
        await self.desk.close()


class Parent:
    """The parent, and its processes by number."""

    def __init__(self, root: Path, mode: str) -> None:
        self.root = root
        self.mode = mode
        self.fleet = ProcessFleet()
        config = ServerConfig(model_repository=root, model_control_mode=mode, load_model=("*",))
        self.command = Command(config, self.fleet)
        self.coordinator = self.command.coordinator
        self.coordinator.first_orders()
        self.processes: dict[int, Process] = {}
        self._detach: dict[int, Callable[[], Awaitable[None]]] = {}
        self._all: list[Process] = []
        #: How often a process that has lost its parent has told itself to stop.
        self.stops = 0
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped)

    def _stopped(self) -> None:
        self.stops += 1

    async def begin(self, number: int) -> Process:
        """Start a process, which hasn't asked for its orders yet."""
        ours, theirs = socket.socketpair()
        self._detach[number] = await attach(self.fleet, self.command, number, ours)
        process = self.processes[number] = Process(theirs, self.mode)
        self._all.append(process)
        return process

    async def add(self, number: int) -> Process:
        """Start a process and let it load."""
        process = await self.begin(number)
        await process.start()
        return process

    async def bury(self, number: int) -> None:
        """Hear of a process that it has ended."""
        await self._detach.pop(number)()
        del self.processes[number]

    @property
    def engines(self) -> list[Engine]:
        return [process.engine for process in self.processes.values()]

    async def close(self) -> None:
        await self.command.close()
        for process in self._all:
            await process.die()
            await process.engine.close()
        await asyncio.gather(*(detach() for detach in self._detach.values()))


@asynccontextmanager
async def processes(root: Path, count: int = 2, mode: str = "explicit"):
    """Start a parent with processes 0, 1, ..., all loaded."""
    parent = Parent(root, mode)
    for number in range(count):
        await parent.add(number)
    try:
        yield parent
    finally:
        await parent.close()


def with_processes(root: Path, use: Callable[[Parent], Awaitable[T]], count: int = 2) -> T:
    async def main() -> T:
        async with processes(root, count) as parent:
            return await use(parent)

    return run(main())
