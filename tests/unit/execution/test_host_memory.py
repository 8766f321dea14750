"""The memory that is left, read from copies of what Linux says in /proc and /sys."""

from __future__ import annotations

import pytest

from tensorferry.execution.host_memory import available_host_bytes

MIB = 2**20
NO_LIMIT = 9223372036854771712  # what version 1 says for none
MEMINFO = "MemTotal:        8388608 kB\nMemFree:          100000 kB\nMemAvailable:    4194304 kB\n"
V2_MOUNT = "30 20 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNT = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


@pytest.fixture
def write(tmp_path):
    def written(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text), encoding="utf-8")

    return written


@pytest.fixture
def v2(write):
    """A cgroup of version 2 with a limit in MiB ("max" for none), its usage and droppable cache."""
    write("proc/meminfo", MEMINFO)
    write("proc/self/mountinfo", V2_MOUNT.format(shown="/"))

    def written(path, limit, usage=0, inactive=0):
        where = f"sys/fs/cgroup{path}"
        write(f"{where}/memory.max", f"{limit if limit == 'max' else limit * MIB}\n")
        write(f"{where}/memory.current", f"{usage * MIB}\n")
        write(f"{where}/memory.stat", f"anon 5\ninactive_file {inactive * MIB}\nactive_file 7\n")

    return written


def test_without_a_limit_it_is_what_the_machine_has_available(tmp_path, write):
    write("proc/meminfo", MEMINFO)
    assert available_host_bytes(tmp_path) == 4096 * MIB


def test_nothing_is_known_where_there_is_no_proc(tmp_path):
    assert available_host_bytes(tmp_path) is None


def test_page_cache_that_can_be_dropped_counts_as_free(tmp_path, write, v2):
    write("proc/self/cgroup", "0::/box\n")
    v2("/box", limit=1000, usage=900, inactive=300)
    assert available_host_bytes(tmp_path) == 400 * MIB


@pytest.mark.parametrize(
    ("outer", "inner", "expected"), [(500, 1000, 400), (2000, 700, 600), ("max", 700, 600)]
)
def test_nearest_limit_of_all_cgroups_above_holds(tmp_path, write, v2, outer, inner, expected):
    write("proc/self/cgroup", "0::/outer/inner\n")
    v2("/outer", outer, usage=100)
    v2("/outer/inner", inner, usage=100)
    assert available_host_bytes(tmp_path) == expected * MIB


def test_limit_above_the_machine_changes_nothing(tmp_path, write, v2):
    write("proc/self/cgroup", "0::/box\n")
    v2("/box", limit=100_000, usage=1)
    assert available_host_bytes(tmp_path) == 4096 * MIB


def test_usage_above_the_limit_leaves_nothing(tmp_path, write, v2):
    write("proc/self/cgroup", "0::/box\n")
    v2("/box", limit=100, usage=101)
    assert available_host_bytes(tmp_path) == 0


def test_cgroup_that_is_the_root_of_the_containers_view_is_found(tmp_path, write, v2):
    write("proc/self/cgroup", "0::/\n")
    v2("", limit=300, usage=100)
    assert available_host_bytes(tmp_path) == 200 * MIB


def write_v1(write, where, limit, usage, inactive=0):
    write(f"{where}/memory.limit_in_bytes", limit)
    write(f"{where}/memory.usage_in_bytes", usage)
    write(f"{where}/memory.stat", f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def test_limits_of_version_1_hold_too(tmp_path, write):
    write("proc/meminfo", MEMINFO)
    write("proc/self/mountinfo", V1_MOUNT.format(shown="/"))
    write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/outer/inner\n0::/\n")
    write_v1(write, "sys/fs/cgroup/memory", NO_LIMIT, 5 * MIB)
    write_v1(write, "sys/fs/cgroup/memory/outer", 800 * MIB, 300 * MIB, inactive=50 * MIB)
    write_v1(write, "sys/fs/cgroup/memory/outer/inner", NO_LIMIT, 200 * MIB)
    assert available_host_bytes(tmp_path) == 550 * MIB


def test_container_whose_mount_shows_its_own_cgroup_alone_is_found(tmp_path, write):
    write("proc/meminfo", MEMINFO)
    write("proc/self/mountinfo", V1_MOUNT.format(shown="/docker/abc"))
    write("proc/self/cgroup", "4:memory:/docker/abc\n")
    write_v1(write, "sys/fs/cgroup/memory", 800 * MIB, 300 * MIB)
    assert available_host_bytes(tmp_path) == 500 * MIB


def test_this_machine_says_something_sensible():
    available = available_host_bytes()
    assert available is not None
    assert 0 < available < 2**50
