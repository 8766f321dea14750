"""How much of the machine's CPU time and memory is in use; in a container with limits, of those.

Sources: proc(5) for /proc/stat; the kernel's admin-guide/cgroup-v2 (cpu.max, cpu.stat) and
scheduler/sched-bwc for version 1 (cpu.cfs_quota_us, cpuacct.usage).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorferry.execution.host_memory import available_host_bytes, cgroups, lines_of, total_host_bytes

__all__ = ["HostUse", "Use"]

#: The files are read at most so often, and the share of the CPU is over at least so long.
_EVERY_S: Final = 1.0

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Use:
    """``cpu_share`` is from 0 to 1, since the look before; None is unknown."""

    cpu_share: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


class HostUse:
    """Looks when asked, at most once a second. ``root`` is where /proc and /sys are."""

    def __init__(self, root: Path = Path("/"), now: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._now = now
        self._use = Use()
        self._looked_at = now()
        self._cpu_s = _cpu_s(root)

    def now(self) -> Use:
        """Return what is in use. Before the first second is over no CPU share is known."""
        passed_s = self._now() - self._looked_at
        if passed_s >= _EVERY_S:
            cpu_s, before_s = _cpu_s(self._root), self._cpu_s
            self._looked_at += passed_s
            self._cpu_s = cpu_s
            share = None if cpu_s is None or before_s is None else _share(cpu_s, before_s, passed_s)
            self._use = self._looked(share)
        elif self._use.memory_total_bytes is None:
            self._use = self._looked(None)
        return self._use

    def _looked(self, cpu_share: float | None) -> Use:
        total, available = total_host_bytes(self._root), available_host_bytes(self._root)
        used = None if total is None or available is None else max(0, total - available)
        return Use(cpu_share, total, used)


#: Seconds of CPU time used so far, and how many of them there are in a second.
_Cpu = tuple[float, float]


def _share(cpu: _Cpu, before: _Cpu, passed_s: float) -> float:
    return min(1.0, max(0.0, (cpu[0] - before[0]) / (passed_s * cpu[1])))


def _cpu_s(root: Path) -> _Cpu | None:
    """Return the container's, where it has a limit, else the machine's; None if unknown."""
    return _container(root) or _machine(root)


def _container(root: Path) -> _Cpu | None:
    """Return what the cgroup with the least limit has used."""
    found = [each for each in (*_limited_v2(root), *_limited_v1(root)) if each is not None]
    return min(found, key=lambda each: each[1], default=None)


def _limited_v2(root: Path) -> list[_Cpu | None]:
    return [_of_v2(directory) for directory, is_v2 in cgroups(root, "cpu") if is_v2]


def _of_v2(directory: Path) -> _Cpu | None:
    quota = " ".join(lines_of(directory / "cpu.max")).split()
    used = dict(line.split()[:2] for line in lines_of(directory / "cpu.stat") if " " in line)
    if len(quota) != 2 or quota[0] == "max" or "usage_usec" not in used:
        return None
    return int(used["usage_usec"]) / 1e6, int(quota[0]) / int(quota[1])


def _limited_v1(root: Path) -> list[_Cpu | None]:
    """Time is counted by one controller and limited by another, in directories of the same path mostly."""
    used = [directory for directory, is_v2 in cgroups(root, "cpuacct") if not is_v2]
    limited = [directory for directory, is_v2 in cgroups(root, "cpu") if not is_v2]
    return [_of_v1(usage, limit) for usage, limit in zip(used, limited, strict=False)]


def _of_v1(usage: Path, limit: Path) -> _Cpu | None:
    used = lines_of(usage / "cpuacct.usage")
    quota, period = lines_of(limit / "cpu.cfs_quota_us"), lines_of(limit / "cpu.cfs_period_us")
    if not used or not quota or not period or int(quota[0]) <= 0:
        return None
    return int(used[0]) / 1e9, int(quota[0]) / int(period[0])


def _machine(root: Path) -> _Cpu | None:
    lines = lines_of(root / "proc/stat")
    if not lines or not lines[0].startswith("cpu "):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
    ticks = [int(each) for each in lines[0].split()[1:9]]
    cores = sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines)
    return (sum(ticks) - sum(ticks[3:5])) / _TICKS_PER_S, max(1, cores)
