"""A GPU's memory: how much torch can still have, what models hold, and how torch says that it ran out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final

import torch

__all__ = ["Holding", "free_device_bytes", "is_out_of_memory", "kept_by_graphs", "words_of"]

_FULL: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


#: By device and address, the weights that some copy counts: shared ones count once.
_weights: Final[set[tuple[str, int]]] = set()
#: By device, the bytes that graphs keep to work in.
_graphs: Final[Counter[str]] = Counter()
_counting: Final = threading.Lock()


class Holding:
    """What one copy of a model holds on ``device``, until it is closed. ``owned`` are its weights."""

    def __init__(self, device: str, owned: Iterable[torch.Tensor]) -> None:
        self._device = device
        self._addresses: dict[int, int] = {}
        self._graph_bytes = 0
        with _counting:
            for tensor in owned:
                storage = tensor.untyped_storage()
                if (device, storage.data_ptr()) not in _weights:
                    self._addresses[storage.data_ptr()] = storage.nbytes()
            _weights.update((device, address) for address in self._addresses)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that no other copy counts."""
        return sum(self._addresses.values())

    def keep_for_graphs(self, size: int) -> None:
        """Note that graphs keep ``size`` bytes to work in: torch counts those as cached, to use again."""
        with _counting:
            self._graph_bytes += size
            _graphs[self._device] += size

    def close(self) -> None:
        """Count nothing of it any more."""
        with _counting:
            _weights.difference_update((self._device, address) for address in self._addresses)
            _graphs[self._device] -= self._graph_bytes
            self._graph_bytes = 0
            self._addresses = {}


def kept_by_graphs(device: str) -> int:
    """Return the bytes that the graphs of all models keep on ``device`` to work in."""
    return _graphs[device]


def free_device_bytes(device: str) -> int | None:
    """Return the free memory of ``device`` (``cuda:0``), in bytes, with what torch holds in its cache.

    Not with what graphs keep of that: nobody else is given it. None if there is no such device:
    loading says that better.
    """
    try:
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    except (RuntimeError, AssertionError, ValueError):  # torch without CUDA asserts
        return None
    return free + max(0, cached - kept_by_graphs(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised ``error`` because a device's memory is full.

    torch's own error for that comes as another one through TorchScript's interpreter, and drivers and
    libraries that take memory themselves have errors of their own.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _FULL)


def words_of(error: BaseException) -> str:
    """Return the line of ``error`` that says that memory ran out, or all of it where none does."""
    text = str(error)
    return next((line for line in text.splitlines() if any(each in line for each in _FULL)), text)
