"""How much of a GPU's memory torch can still have."""

from __future__ import annotations

import torch

__all__ = ["free_device_bytes"]


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
