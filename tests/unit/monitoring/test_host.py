"""The machine's CPU time and memory, read from a /proc and a /sys of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorferry.monitoring.host import HostUse, Use

MEMORY = "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 23 0:28 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
)


class Host:
    """A directory with files as on a machine, and a clock that is set by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.at = 0.0
        self.write("proc/meminfo", MEMORY)
        self.stat(busy=0, idle=0)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def stat(self, busy: int, idle: int) -> None:
        """Two cores' ticks, of which there are a hundred in a second."""
        self.write("proc/stat", f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 0\ncpu1 0\nbtime 7\n")

    def use(self) -> HostUse:
        return HostUse(self.root, lambda: self.at)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_machines_share_is_of_all_its_cores(host: Host):
    use = host.use()
    host.stat(busy=100, idle=300)
    host.at = 2.0
    assert use.now() == Use(0.25, 1000 * 1024, 600 * 1024)


def test_within_a_second_the_answer_stays(host: Host):
    use = host.use()
    host.at = 0.5
    assert use.now() == Use(None, 1000 * 1024, 600 * 1024)
    host.stat(busy=100, idle=0)
    host.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 1 kB\n")
    host.at = 0.9
    assert use.now() == Use(None, 1000 * 1024, 600 * 1024)
    host.at = 1.0
    assert use.now() == Use(0.5, 1000 * 1024, 999 * 1024)


def test_a_containers_limits_are_what_there_is(host: Host):
    host.write("proc/self/cgroup", "0::/\n")
    host.write("proc/self/mountinfo", V2_MOUNT)
    host.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
    host.write("sys/fs/cgroup/memory.max", f"{500 * 1024}\n")
    host.write("sys/fs/cgroup/memory.current", f"{200 * 1024}\n")
    host.write("sys/fs/cgroup/memory.stat", "inactive_file 0\n")
    host.write("sys/fs/cgroup/cpu.stat", "usage_usec 1000000\n")
    use = host.use()
    host.write("sys/fs/cgroup/cpu.stat", "usage_usec 1250000\n")
    host.at = 1.0
    assert use.now() == Use(0.5, 500 * 1024, 200 * 1024)


def test_so_are_those_of_the_first_version_of_cgroups(host: Host):
    host.write("proc/self/cgroup", "4:cpu:/\n3:cpuacct:/\n")
    host.write("proc/self/mountinfo", V1_MOUNTS)
    host.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    host.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    host.write("sys/fs/cgroup/cpuacct/cpuacct.usage", "0\n")
    use = host.use()
    host.write("sys/fs/cgroup/cpuacct/cpuacct.usage", "1000000000\n")
    host.at = 1.0
    assert use.now().cpu_share == 0.5


@pytest.mark.parametrize("limit", ["max 100000", "", "?"])
def test_a_container_without_a_limit_has_the_machine(host: Host, limit: str):
    host.write("proc/self/cgroup", "0::/\n")
    host.write("proc/self/mountinfo", V2_MOUNT)
    host.write("sys/fs/cgroup/cpu.max", limit)
    host.write("sys/fs/cgroup/cpu.stat", "usage_usec 0\n")
    use = host.use()
    host.stat(busy=200, idle=0)
    host.at = 1.0
    assert use.now().cpu_share == 1.0


def test_where_there_is_nothing_to_read_nothing_is_known(tmp_path: Path):
    at = [0.0]
    use = HostUse(tmp_path, lambda: at[0])
    at[0] = 5.0
    assert use.now() == Use(None, None, None)
