"""How much of a GPU's memory torch can still have, and how it says that there is none left."""

from __future__ import annotations

import torch

__all__ = ["free_device_bytes", "is_out_of_memory"]


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
    """Whether torch raised ``error`` because a device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError)
