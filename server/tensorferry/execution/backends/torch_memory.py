"""How much of a GPU's memory torch can still have, and how it says that there is none left."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["free_device_bytes", "is_out_of_memory", "words_of"]

_FULL: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def free_device_bytes(device: str) -> int | None:
    """Return the free memory of ``device`` (``cuda:0``), in bytes, with what torch holds in its cache.

    None if there is no such device: loading says that better.
    """
    try:
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    except (RuntimeError, AssertionError, ValueError):  # torch without CUDA asserts
        return None
    return free + max(0, cached)


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
