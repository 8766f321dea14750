"""Memory that the server and a model's process share: where a batch's tensors lie.

A region is an anonymous file (``memfd_create``) that both sides map. It is sealed against
shrinking: a mapped page that a faulty child cuts off would kill the server at its next access.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from tensorferry.model import BatchInput

__all__ = ["ALIGNMENT", "OutputRegions", "Region", "SharedMemory", "aligned", "copy_into"]

#: Where tensors begin, in bytes: a cache line, which is also what vector instructions want.
ALIGNMENT: Final = 64

_LEAST_BYTES: Final = 64 * 1024
#: Outputs up to this size are copied out: that takes less time than lending their region.
_COPIED_BYTES: Final = 64 * 1024
#: A part of this size and above is copied without holding the GIL.
_LARGE_BYTES: Final = 256 * 1024
#: Regions for outputs. As many less one may be read while the next run writes to the last.
_OUTPUT_REGIONS: Final = 4


def aligned(offset: int) -> int:
    """Return the next offset, in bytes, at which a tensor may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def copy_into(view: memoryview, offset: int, part: bytes | bytearray | memoryview) -> int:
    """Copy ``part`` to ``offset`` of ``view``; return the offset behind it, in bytes."""
    end = offset + len(part)
    if end - offset < _LARGE_BYTES:
        view[offset:end] = part
    else:
        np.copyto(np.frombuffer(view[offset:end], np.uint8), np.frombuffer(part, np.uint8))
    return end


class Region:
    """One shared region, mapped from its first to its last byte. It grows and never shrinks.

    Without ``fd`` a new one is made; with it, another process's region is mapped.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("tensorferry-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.fd = fd
        self.view = memoryview(b"")

    def reserve(self, byte_size: int) -> memoryview:
        """Return a view of at least ``byte_size`` bytes, growing the region if it is smaller."""
        if byte_size > len(self.view):
            size = os.fstat(self.fd).st_size
            if size < byte_size:
                size = max(_LEAST_BYTES, 1 << (byte_size - 1).bit_length())
                os.ftruncate(self.fd, size)
            self.view = memoryview(mmap.mmap(self.fd, size))
        return self.view

    def holds(self, byte_size: int) -> bool:
        """Whether the region is so large, whoever made it so."""
        return byte_size <= len(self.view) or byte_size <= os.fstat(self.fd).st_size

    def close(self) -> None:
        """Give the region up. What still views it keeps its memory."""
        self.view = memoryview(b"")
        os.close(self.fd)


class OutputRegions:
    """The regions that the child writes outputs to, in turn. Used by whoever runs the model.

    Large outputs are read in place: their region is lent, and not written to again until the last
    view of them is dropped, on whichever thread. Small ones, and all while every other region is
    lent, are copied out.
    """

    def __init__(self) -> None:
        self.regions: Final = [Region() for _ in range(_OUTPUT_REGIONS)]
        #: The region that the next run writes to.
        self.current = 0
        # The one thing that other threads touch, when they drop the last view: append is atomic.
        self._free: deque[int] = deque(range(1, _OUTPUT_REGIONS))
        self._lent: list[weakref.ref[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] | None]
        self._lent = [None] * _OUTPUT_REGIONS

    def take(self, byte_size: int) -> memoryview:
        """Return what the child wrote to the first ``byte_size`` bytes: safe to read for ever."""
        view = self.regions[self.current].reserve(byte_size)[:byte_size]
        if byte_size <= _COPIED_BYTES:
            return memoryview(bytes(view))
        array = np.frombuffer(view, np.uint8)
        if not self._free:
            return array.copy().data.toreadonly()  # numpy copies without the GIL
        number = self.current
        # A memoryview of the array, and every slice of it, keeps the array alive.
        self._lent[number] = weakref.ref(array, lambda _: self._free.append(number))
        self.current = self._free.popleft()
        return array.data.toreadonly()

    def close(self) -> None:
        """Give the regions up."""
        for region in self.regions:
            region.close()


class SharedMemory:
    """The regions of one model in the server: one for inputs, several for outputs.

    They outlive its child processes, so that what an earlier one answered stays readable.
    """

    def __init__(self) -> None:
        self.inputs: Final = Region()
        self.outputs: Final = OutputRegions()

    @property
    def fds(self) -> list[int]:
        """What a child is to map: the inputs' region, then the outputs'."""
        return [self.inputs.fd, *[region.fd for region in self.outputs.regions]]

    def place(self, inputs: Sequence[BatchInput]) -> list[tuple[str, str, tuple[int, ...], int, int]]:
        """Copy a batch's inputs into their region: the one copy.

        Returns for each its name, datatype, shape, offset and bytes.
        """
        tensors = []
        offset = 0
        for item in inputs:
            byte_size = sum([len(part) for part in item.parts])
            tensors.append((item.name, item.datatype, item.shape, offset, byte_size))
            offset = aligned(offset + byte_size)
        view = self.inputs.reserve(offset)
        for item, tensor in zip(inputs, tensors, strict=True):
            end = tensor[3]
            for part in item.parts:
                end = copy_into(view, end, part)
        return tensors

    def close(self) -> None:
        """Give all regions up."""
        self.inputs.close()
        self.outputs.close()
