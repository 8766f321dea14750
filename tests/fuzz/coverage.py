"""Which code of an extension a run has reached, where it was built to tell (``tools/instrumented.py``)."""

from __future__ import annotations

import ctypes
from types import ModuleType

import numpy as np

MAP_BYTES = 1 << 16


def _buckets() -> np.ndarray:
    """How often, roughly: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, more; each a bit."""
    table = np.zeros(256, np.uint8)
    for bit, (low, high) in enumerate(
        ((1, 1), (2, 2), (3, 3), (4, 7), (8, 15), (16, 31), (32, 127), (128, 255))
    ):
        table[low : high + 1] = 1 << bit
    return table


class Coverage:
    """What all runs so far have reached. Without instrumentation nothing ever is new."""

    def __init__(self, module: ModuleType) -> None:
        library = ctypes.CDLL(module.__file__)
        self.is_there = hasattr(library, "coverage_map")
        if not self.is_there:
            return
        self._map = np.ctypeslib.as_array((ctypes.c_uint8 * MAP_BYTES).in_dll(library, "coverage_map"))
        self._seen = np.zeros(MAP_BYTES, np.uint8)
        self._table = _buckets()

    @property
    def edges(self) -> int:
        """Edges reached so far."""
        return int(np.count_nonzero(self._seen)) if self.is_there else 0

    def start(self) -> None:
        """Begin a run."""
        if self.is_there:
            self._map[:] = 0

    def is_new(self) -> bool:
        """Whether the run since ``start`` reached something for the first time, or oftener than before."""
        if not self.is_there:
            return False
        reached = self._table[self._map]
        new = bool((reached & ~self._seen).any())
        self._seen |= reached
        return new

    def forget(self) -> None:
        """Begin anew."""
        if self.is_there:
            self._seen[:] = 0
