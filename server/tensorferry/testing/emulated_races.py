"""Finds races between accesses to memory by their vector clocks, whatever order they happened to run in.

Every lane of an emulated device, and the host, is an agent: a sequence of accesses with a clock. A clock
says for every agent how far its owner knows that agent to have come. An access is ordered behind an
earlier one if its agent's clock has come to it; two that overlap, one of them a write, and neither
ordered behind the other, race (Mattern, "Virtual time and global states of distributed systems", 1989;
Flanagan and Freund, "FastTrack", 2009, has the same use of it for threads).

The host is one agent: its threads hand over to each other what they have waited for. So a race between
two of its threads that don't is found only in a run where they come in the wrong order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Access", "Agent", "History", "RaceError"]


class RaceError(AssertionError):
    """Two accesses to the same memory that nothing orders, or a use of memory that the device forbids."""


@dataclass(slots=True)
class Agent:
    """A sequence of accesses, each at a tick of its own.

    ``clock`` holds the ticks of other agents, and its own, that all that comes next is ordered behind.
    """

    name: str
    clock: dict[Agent, int] = field(default_factory=dict)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def tick(self) -> int:
        """Begin the next access; return its tick."""
        now = self.clock.get(self, 0) + 1
        self.clock[self] = now
        return now

    def join(self, clock: dict[Agent, int]) -> None:
        """Order what comes next behind all that ``clock`` has come to."""
        for agent, tick in clock.items():
            if tick > self.clock.get(agent, 0):
                self.clock[agent] = tick

    def has_come_to(self, agent: Agent, tick: int) -> bool:
        """Whether what comes next is ordered behind that agent's ``tick``."""
        return self.clock.get(agent, 0) >= tick


@dataclass(frozen=True, slots=True)
class Access:
    """One operation's use of the bytes from ``start`` up to ``end`` of a block of memory."""

    agent: Agent
    tick: int
    operation: str
    start: int
    end: int
    writes: bool

    def __str__(self) -> str:
        what = "writes" if self.writes else "reads"
        return f"{self.operation} on {self.agent.name} {what} bytes {self.start}..{self.end}"


@dataclass(slots=True)
class History:
    """The accesses to one block of memory that a later one may still race with."""

    name: str
    accesses: list[Access] = field(default_factory=list)

    def add(self, new: Access) -> None:
        """Take in an access.

        Raises:
            RaceError: it races with an earlier one.
        """
        for old in self.accesses:
            overlaps = old.start < new.end and new.start < old.end
            if overlaps and (old.writes or new.writes) and not new.agent.has_come_to(old.agent, old.tick):
                raise RaceError(f"{self.name}: {new}, and nothing orders it behind {old}")
        # Whoever is ordered behind the new access is so behind these, and whoever races with one of
        # these races with the new one.
        self.accesses = [old for old in self.accesses if not _stands_for(new, old)]
        self.accesses.append(new)

    def unfinished(self, agent: Agent) -> Access | None:
        """Return an access that ``agent`` isn't ordered behind, if there is one."""
        for access in self.accesses:
            if not agent.has_come_to(access.agent, access.tick):
                return access
        return None


def _stands_for(new: Access, old: Access) -> bool:
    """Whether nothing is lost by forgetting ``old`` for ``new``."""
    return (
        new.start <= old.start
        and old.end <= new.end
        and (new.writes or not old.writes)
        and new.agent.has_come_to(old.agent, old.tick)
    )
