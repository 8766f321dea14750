"""How much memory this process can still take: the machine's, and that of every cgroup it is in.

Sources: proc(5) for MemAvailable; the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory for the
limits. A container's limit is that of a cgroup, which /proc/meminfo doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["available_host_bytes", "cgroups", "lines_of", "total_host_bytes"]

_ROOT: Final = Path("/")

#: For version 2 and 1: the limit, the usage, and the field of memory.stat with the page cache that
#: the kernel drops first when memory runs short; it is counted in the usage.
_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_host_bytes(root: Path = _ROOT) -> int | None:
    """Return the bytes that can still be taken before the kernel kills a process; None if unknown.

    The least of the machine's MemAvailable and, for the process's cgroup and each above it that has
    a limit, the limit less what is used and can't be dropped. ``root`` is where /proc and /sys are.
    """
    machine = _machine_bytes(root, "MemAvailable")
    known = [each for each in (machine, *_cgroup_bytes(root)) if each is not None]
    return max(0, min(known)) if known else None


def total_host_bytes(root: Path = _ROOT) -> int | None:
    """Return the bytes of the machine's memory, or the least limit of a cgroup; None if unknown."""
    limits = (_number(directory / (_V2 if is_v2 else _V1)[0]) for directory, is_v2 in cgroups(root))
    known = [each for each in (_machine_bytes(root, "MemTotal"), *limits) if each is not None]
    return min(known) if known else None


def _machine_bytes(root: Path, field: str) -> int | None:
    for line in lines_of(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def _cgroup_bytes(root: Path) -> Iterator[int | None]:
    for directory, is_v2 in cgroups(root):
        names = _V2 if is_v2 else _V1
        limit, usage = _number(directory / names[0]), _number(directory / names[1])
        if limit is not None and usage is not None:
            yield limit - usage + _field(directory / "memory.stat", names[2])


def cgroups(root: Path = _ROOT, controller: str = "memory") -> Iterator[tuple[Path, bool]]:
    """Return the directories of the process's cgroups, from its own upwards; True where of version 2.

    Of version 1 only those of ``controller``.
    """
    for line in lines_of(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for mounted_path, mount_point in _mounts(root, "cgroup" if controllers else "cgroup2", controller):
            relative = f"{path}/".removeprefix(f"{mounted_path}/")
            top = root / mount_point.lstrip("/")
            parts = [each for each in relative.split("/") if each not in ("", "..")]
            for count in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:count]), not controllers


def _mounts(root: Path, kind: str, controller: str) -> Iterator[tuple[str, str]]:
    """Return, for each mount of that kind with the controller's files, which cgroup it shows and where."""
    for line in lines_of(root / "proc/self/mountinfo"):
        fields = line.split()
        if "-" not in fields or len(fields) < fields.index("-") + 4:
            continue
        dash = fields.index("-")
        if fields[dash + 1] == kind and (kind == "cgroup2" or controller in fields[dash + 3].split(",")):
            yield fields[3].rstrip("/"), fields[4]


def lines_of(path: Path) -> list[str]:
    """Return a file's lines; none where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Return a file's number; None if it isn't there or says "max"."""
    lines = lines_of(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _field(path: Path, name: str) -> int:
    for line in lines_of(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
