"""The time of an emulated device: arithmetic on what operations would take. Nothing sleeps.

Operations of one lane follow one another; each also needs an engine, and an engine does one thing at a
time: one copies to the device, one back, one clears memory, and ``runs_at_once`` run models. A lane that
waits for an event goes on when the event's lane has come to it, and nothing begins before the host has
enqueued it. The host itself, all its threads, takes no time: it is as late as the latest event that one
of them has waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["Costs", "Engine", "Operation", "Timeline"]

Engine = Literal["in", "out", "zero", "run"]

_NS: Final = 1e9

#: Operations that the log holds.
_LOG_LENGTH: Final = 10_000


def _call_ns(rows: int) -> int:
    return 50_000 + 2_000 * rows


def _replay_ns(rows: int) -> int:
    return 10_000 + 2_000 * rows


@dataclass(slots=True)
class Costs:
    """What operations take on an emulated device.

    Copies have a bandwidth in bytes/s, and every operation on a copy engine takes at least
    ``copy_ns``. ``call_ns`` and ``replay_ns`` say what a forward pass takes in ns by the rows of its
    first input. ``zero_ns`` is the time to clear memory. Change them at any time.
    """

    copy_bytes_per_s: float = 50e9
    copy_ns: int = 1_000
    call_ns: Callable[[int], int] = _call_ns
    replay_ns: Callable[[int], int] = _replay_ns
    zero_ns: int = 1_000
    runs_at_once: int = 1

    def of_copy(self, size: int) -> int:
        """Return the ns that a copy of ``size`` bytes takes."""
        return max(self.copy_ns, round(size / self.copy_bytes_per_s * _NS))


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a device's log. ``engine`` is "in" or "out" for copies."""

    name: str
    lane: str
    engine: Engine
    start_ns: int
    end_ns: int

    def overlaps(self, other: Operation) -> bool:
        """Whether both were under way at the same time."""
        return self.start_ns < other.end_ns and other.start_ns < self.end_ns


@dataclass(slots=True)
class Timeline:
    """When each operation of a device begins and ends, in ns since the device was made."""

    costs: Costs = field(default_factory=Costs)
    #: The last operations, oldest first.
    log: deque[Operation] = field(default_factory=lambda: deque(maxlen=_LOG_LENGTH))
    #: When the last operation so far ends.
    end_ns: int = 0
    #: When the host is.
    host_ns: int = 0
    _free: dict[Engine, list[int]] = field(default_factory=dict)

    def run(self, name: str, lane: str, engine: Engine, after_ns: int, takes_ns: int) -> int:
        """Enter an operation that may begin at ``after_ns``; return when it ends."""
        free = self._engines(engine)
        soonest = min(range(len(free)), key=free.__getitem__)
        start = max(after_ns, self.host_ns, free[soonest])
        free[soonest] = end = start + takes_ns
        self.end_ns = max(self.end_ns, end)
        self.log.append(Operation(name, lane, engine, start, end))
        return end

    def waited(self, until_ns: int) -> None:
        """Take note that the host has waited for something that was over at ``until_ns``."""
        self.host_ns = max(self.host_ns, until_ns)

    def _engines(self, engine: Engine) -> list[int]:
        free = self._free.setdefault(engine, [])
        wanted = self.costs.runs_at_once if engine == "run" else 1
        free.extend([0] * (wanted - len(free)))
        return free
