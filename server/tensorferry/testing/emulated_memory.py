"""The memory of an emulated device: blocks of bytes on the CPU whose accesses are watched.

Every block is memory of its own, so that an address says which block a tensor is in. A block lives as
long as a tensor does that views it. torch hands freed device memory on to the next that asks on the same
lane, without waiting for other lanes that still use it ("CUDA semantics: CUDA streams"); so a freed block
that one may still use is remembered as its lane's ``Freed``.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from tensorferry.testing.emulated_races import Access, Agent, History, RaceError

__all__ = ["POISON", "Block", "Budget", "Memory", "bytes_of", "span"]

#: What fills memory that nothing has been written to: NaN as floating point, -1 as a signed integer.
POISON: Final = 0xFF

#: torch's allocator rounds sizes up to this.
_GRANULE_BYTES: Final = 512


@dataclass(slots=True)
class Budget:
    """The bytes of a device, counted as torch's caching allocator counts them.

    ``graphs`` is what the pools of graphs keep beside the graphs' outputs; ``cached`` was freed and is
    not given back. ``peak`` is the most of ``allocated``.
    """

    capacity: int
    allocated: int = 0
    graphs: int = 0
    cached: int = 0
    peak: int = 0

    @property
    def reserved(self) -> int:
        """What torch has taken of the device."""
        return self.allocated + self.graphs + self.cached

    def check(self, size: int) -> None:
        """Check that there is room for ``size`` bytes more.

        Raises:
            torch.OutOfMemoryError: there isn't.
        """
        free = self.capacity - self.allocated - self.graphs
        if size > free:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. The emulated GPU has a total capacity"
                f" of {self.capacity} bytes of which {max(free, 0)} are free."
            )

    def allocate(self, size: int) -> None:
        """Take ``size`` bytes.

        Raises:
            torch.OutOfMemoryError: there is no room.
        """
        self.check(size)
        self.allocated += size
        self.cached = max(0, min(self.cached - size, self.capacity - self.allocated - self.graphs))
        self.peak = max(self.peak, self.allocated)

    def free(self, size: int) -> None:
        """Give ``size`` bytes back to torch, which keeps them."""
        self.allocated -= size
        self.cached += size


@dataclass(slots=True, eq=False)
class Block:
    """Memory in one piece. ``owner`` is the lane that torch took it for; None for pinned memory, and pools'.

    ``is_pinned``: on the host. ``views`` are the byte ranges that the host holds views of.
    """

    base: int
    size: int
    history: History
    owner: Agent | None
    is_pinned: bool
    counted: int = 0
    views: dict[int, tuple[int, int]] = field(default_factory=dict)
    _written: list[tuple[int, int]] = field(default_factory=list)

    def access(self, access: Access) -> None:
        """Take in an access.

        Raises:
            RaceError: it races with another, reads what was never written, or writes what the host views.
        """
        if access.end <= access.start:
            return
        self.history.add(access)
        if not access.writes:
            if not any(low <= access.start and access.end <= high for low, high in self._written):
                raise RaceError(f"{self.history.name}: {access}, where nothing was written before")
            return
        for low, high in list(self.views.values()):
            if low < access.end and access.start < high:
                raise RaceError(f"{self.history.name}: {access}, and the host still holds a view of them")
        self._note_written(access.start, access.end)

    def forget_writes(self) -> None:
        """Nothing of it is worth reading any more."""
        self._written = []

    def _note_written(self, start: int, end: int) -> None:
        apart = []
        for low, high in self._written:
            if low <= end and start <= high:
                start, end = min(start, low), max(end, high)
            else:
                apart.append((low, high))
        self._written = [*apart, (start, end)]


class Memory:
    """All blocks of one device, pinned ones too. Not thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self.budget = Budget(capacity_bytes)
        self._blocks: dict[int, Block] = {}
        self._made = 0
        # Tensors die on any thread, and in the middle of anything.
        self._dead: deque[tuple[int, History]] = deque()
        self._dead_graphs: deque[list[int]] = deque()
        #: By lane: what was freed while another might still use it.
        self._freed: dict[Agent, list[History]] = {}

    def take(self, size: int, what: str, owner: Agent | None, is_pinned: bool = False) -> torch.Tensor:
        """Return ``size`` bytes as a tensor of uint8, poisoned.

        Raises:
            torch.OutOfMemoryError: there is no room.
        """
        self.settle()
        counted = 0 if is_pinned else -(-size // _GRANULE_BYTES) * _GRANULE_BYTES
        self.budget.allocate(counted)
        memory = np.full(max(size, 1), POISON, np.uint8)
        base = memory.ctypes.data
        # The allocator may have given us the address of a block that died in this very moment; its notice
        # is here, or comes late, and isn't about the new one.
        if base in self._blocks:
            self._remove(base)
        self._made += 1
        history = History(f"{what} {self._made} ({size} bytes)")
        self._blocks[base] = Block(base, size, history, owner, is_pinned, counted)
        weakref.finalize(memory, self._dead.append, (base, history)).atexit = False
        with torch.inference_mode(mode=False):
            return torch.from_numpy(memory)[:size]

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        """Return the block that the tensor is in; None if it isn't from here, as a model's weights."""
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def frees_graphs_with(self, pool: object, size: list[int]) -> None:
        """Take ``size[0]`` bytes off ``budget.graphs`` when ``pool`` dies."""
        weakref.finalize(pool, self._dead_graphs.append, size).atexit = False

    def settle(self) -> None:
        """Take note of the blocks, and the pools, that have died."""
        while self._dead:
            base, history = self._dead.popleft()
            block = self._blocks.get(base)
            if block is not None and block.history is history:
                self._remove(base)
        while self._dead_graphs:
            size = self._dead_graphs.popleft()[0]
            self.budget.graphs -= size
            self.budget.cached += size

    def check_reuse(self, lane: Agent) -> None:
        """Check that ``lane`` may be given any memory that was freed on it.

        Raises:
            RaceError: another lane may still use some of it.
        """
        freed = self._freed.pop(lane, [])
        for history in freed:
            access = history.unfinished(lane)
            if access is not None:
                raise RaceError(
                    f"{history.name} was freed, and torch may give it out again on {lane.name}, while"
                    f" nothing orders that behind {access}"
                )

    def _remove(self, base: int) -> None:
        block = self._blocks.pop(base)
        if block.is_pinned:
            return  # torch's host allocator itself waits for the copies that use it
        self.budget.free(block.counted)
        if block.owner is not None and block.history.unfinished(block.owner) is not None:
            self._freed.setdefault(block.owner, []).append(block.history)


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes that a tensor reaches over in its storage, from the first up to behind the last."""
    size = tensor.element_size()
    start = int(tensor.storage_offset()) * size
    if tensor.numel() == 0:
        return start, start
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + (sum((length - 1) * int(stride) for length, stride in steps) + 1) * size


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return all bytes that a tensor reaches over, as a tensor of uint8 on the same memory."""
    low, high = span(tensor)
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())[low:high]
