"""The lanes and events of an emulated device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from tensorferry.testing.emulated_device import EmulatedDevice
from tensorferry.testing.emulated_memory import Block, span
from tensorferry.testing.emulated_races import Access, Agent, RaceError
from tensorferry.testing.emulated_timeline import Engine

__all__ = ["EmulatedEvent", "EmulatedLane"]


class EmulatedEvent:
    """An ``Event``. Before it is recorded, waiting for it is nothing, as on a GPU."""

    def __init__(self, device: EmulatedDevice, host: Agent) -> None:
        self._device = device
        self._host = host
        self.clock: dict[Agent, int] = {}
        self.at_ns = 0
        self._point: tuple[Agent, int] | None = None

    def set(self, agent: Agent, tick: int, at_ns: int) -> None:
        """Take the place behind what ``agent`` has come to."""
        self._point = (agent, tick)
        self.clock = dict(agent.clock)
        self.at_ns = at_ns

    def synchronize(self) -> None:
        """Let the host go on behind it. Never blocks: all that is enqueued has been done."""
        with self._device.entered("synchronize"):
            self._host.join(self.clock)
            self._device.timeline.waited(self.at_ns)

    def elapsed_ns(self, later: EmulatedEvent) -> int:
        """Return the nanoseconds of emulated time between two events.

        Raises:
            RuntimeError: one wasn't recorded, or the host hasn't waited for it or anything behind it.
        """
        with self._device.entered("elapsed"):
            for event in (self, later):
                if event._point is None:
                    raise RuntimeError("both events must be recorded before calculating elapsed time")
                if not self._host.has_come_to(*event._point):
                    raise RuntimeError("both events must be completed before calculating elapsed time")
            return later.at_ns - self.at_ns


class EmulatedLane:
    """A ``Lane``."""

    def __init__(self, name: str, device: EmulatedDevice, host: Agent) -> None:
        self.agent = Agent(name)
        self.end_ns = 0
        self.is_capturing = False
        self._device = device
        self._host = host

    @property
    def name(self) -> str:
        """What logs and errors call it: "lane 0" is the first that its ``Gpu`` made."""
        return self.agent.name

    def record(self, event: EmulatedEvent) -> None:
        """Put ``event`` behind all that is enqueued here."""
        with self.entered("record") as tick:
            event.set(self.agent, tick, max(self.end_ns, self._device.timeline.host_ns))

    def wait(self, event: EmulatedEvent) -> None:
        """Let what is enqueued here from now on begin after ``event``."""
        with self.entered("wait"):
            self.agent.join(event.clock)
            self.end_ns = max(self.end_ns, event.at_ns)

    @contextlib.contextmanager
    def entered(self, operation: str) -> Iterator[int]:
        """Enqueue an operation, which is so ordered behind what the host has done; give its tick."""
        with self._device.entered(operation):
            if self.is_capturing:
                raise RuntimeError(f"{operation} on {self.name}, which captures a graph")
            self.agent.join(self._host.clock)
            yield self.agent.tick()

    def take_time(self, operation: str, engine: Engine, takes_ns: int) -> None:
        """Enter the operation into the device's timeline."""
        self.end_ns = self._device.timeline.run(operation, self.name, engine, self.end_ns, takes_ns)

    def touch(self, tick: int, operation: str, tensor: torch.Tensor, writes: bool) -> None:
        """Take note that the operation at ``tick`` reads or writes ``tensor``, which is on the device.

        Raises:
            RaceError: it may not.
        """
        block = self.block_of(operation, tensor)
        block.access(Access(self.agent, tick, operation, *span(tensor), writes))

    def block_of(self, operation: str, tensor: torch.Tensor) -> Block:
        """Return the block that ``tensor`` is in.

        Raises:
            RaceError: it is in none.
        """
        block = self._device.memory.block_of(tensor)
        if block is None:
            raise RaceError(f"{operation}: a tensor that isn't in memory from empty(), call() or pinned()")
        return block
