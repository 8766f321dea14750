"""What a server holds, seen from outside: memory, threads, descriptors, processes. Linux only."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Footprint", "footprint_of", "settled"]

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LOOK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of a process and its descendants together; ``rss_bytes`` is resident memory, shared pages included."""

    rss_bytes: int
    threads: int
    descriptors: int
    processes: int


def footprint_of(pid: int, with_descendants: bool = True) -> Footprint:
    """Return what the process holds, alone or with those that it started.

    Raises:
        ProcessLookupError: it has ended.
    """
    rss_bytes = threads = descriptors = processes = 0
    for each in _family(pid) if with_descendants else [pid]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a child that has just ended
            where = Path(f"/proc/{each}")
            held = int((where / "statm").read_text().split()[1]) * _PAGE_BYTES
            tasks = len(os.listdir(where / "task"))
            opened = len(os.listdir(where / "fd"))
            rss_bytes, threads, descriptors = rss_bytes + held, threads + tasks, descriptors + opened
            processes += 1
    if not processes:
        raise ProcessLookupError(f"process {pid} has ended")
    return Footprint(rss_bytes, threads, descriptors, processes)


def settled(pid: int, like: Footprint | None = None, patience_s: float = 15.0) -> Footprint:
    """Return the footprint once it is at rest, which is when it holds no more than ``like`` did.

    Without ``like`` it is at rest when nothing but memory has changed for a second. What is still
    more than that after ``patience_s`` is returned as it is.
    """
    give_up_at = time.monotonic() + patience_s
    now = footprint_of(pid)
    same_since = time.monotonic()
    while time.monotonic() < give_up_at:
        if like is not None and all(
            mine <= theirs for mine, theirs in zip(_counts(now), _counts(like), strict=True)
        ):
            break
        if like is None and time.monotonic() - same_since > 1.0:
            break
        time.sleep(_LOOK_EVERY_S)
        before, now = now, footprint_of(pid)
        if _counts(before) != _counts(now):
            same_since = time.monotonic()
    return now


def _counts(held: Footprint) -> tuple[int, int, int]:
    return held.processes, held.threads, held.descriptors


def _family(pid: int) -> list[int]:
    family = [pid]
    for each in family:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                family += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
    return family
