"""An emulated device as all its models share it: its memory, its time, its faults."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

import torch

from tensorferry.testing.emulated_memory import Memory
from tensorferry.testing.emulated_races import RaceError
from tensorferry.testing.emulated_timeline import Costs, Timeline

__all__ = ["DEFAULT_CAPACITY_BYTES", "EmulatedDevice", "emulated_device", "emulated_devices"]

DEFAULT_CAPACITY_BYTES: Final = 16 << 30

#: What CUDA says, in short, once a kernel has touched what it must not.
_LOST: Final = "CUDA error: an illegal memory access was encountered (emulated)"


class EmulatedDevice:
    """One device. Tests set its attributes, at any time, and look at what it has noted.

    Attributes:
        name: ``cuda:<n>``.
        memory: Its blocks, and ``memory.budget``, whose ``capacity`` in bytes may be changed.
        costs: What operations take on the timeline.
        timeline: When they ran, and the ``log`` of them.
        call_bytes: What a forward pass takes for itself, beside its outputs, by its rows.
        capture_fails: What every capture raises, if anything.
        after_replay: Given a graph's outputs after each replay; may spoil them.
        races: What was raised as ``RaceError`` so far, in words.
    """

    def __init__(self, name: str, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self.name = name
        self.memory = Memory(capacity_bytes)
        self.costs = Costs()
        self.timeline = Timeline(self.costs)
        self.call_bytes: Callable[[int], int] = _nothing
        self.capture_fails: Exception | None = None
        self.after_replay: Callable[[list[torch.Tensor]], None] | None = None
        self.races: list[str] = []
        self.is_lost = False
        self._faults: list[tuple[str, Exception]] = []
        self._lock = threading.RLock()

    def lose(self) -> None:
        """Fail for good: every operation from now on raises what CUDA does."""
        self.is_lost = True

    def fail_next(self, error: Exception, operation: str = "") -> None:
        """Let the next operation of that kind raise ``error``, once; "" is any.

        Kinds: copy, zero, call, capture, replay, empty, record, wait, synchronize. Several faults may
        wait, for the same kind too.
        """
        with self._lock:
            self._faults.append((operation, error))

    @contextlib.contextmanager
    def entered(self, operation: str) -> Iterator[None]:
        """Hold the device for one operation, unless it is to fail; note the race that it raises."""
        with self._lock:
            self.memory.settle()
            for fault in self._faults:
                if fault[0] in ("", operation):
                    self._faults.remove(fault)
                    raise fault[1]
            if self.is_lost:
                raise RuntimeError(_LOST)
            with self.noting_races():
                yield

    @contextlib.contextmanager
    def noting_races(self) -> Iterator[None]:
        """Hold the device, and note the race that is raised."""
        with self._lock:
            try:
                yield
            except RaceError as error:
                self.races.append(str(error))
                raise


def _nothing(rows: int) -> int:
    return 0


_devices: Final[dict[str, EmulatedDevice]] = {}
_devices_lock: Final = threading.Lock()


def emulated_device(name: str) -> EmulatedDevice:
    """Return this process's device of that name: the one that ``EmulatedGpu(name)`` is on."""
    with _devices_lock:
        return _devices.setdefault(name, EmulatedDevice(name))


def emulated_devices() -> list[EmulatedDevice]:
    """Return the devices that this process has used by name."""
    with _devices_lock:
        return list(_devices.values())
