"""The registry of shared memory regions: what may be registered, and what becomes of it then."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from tensorferry.errors import AlreadyExists, InvalidRequest, NotFound, QueueFull, Unsupported
from tensorferry.service import shared_memory
from tensorferry.service.shared_memory import MOST_BYTES, MOST_REGIONS, Place, Regions


def wanted(key="/object", offset=0, byte_size=100, ticket="1"):
    return {"object": key, "offset": offset, "byte_size": byte_size, "ticket": ticket}


@pytest.fixture
def shm(tmp_path):
    """A directory in the place of /dev/shm, with an object of 100 bytes: 0, 1, 2..."""
    (tmp_path / "object").write_bytes(bytes(range(100)))
    return tmp_path


@pytest.fixture
def regions(shm):
    return Regions(True, directory=str(shm))


def descriptors(directory):
    """How many descriptors this process has of files in a directory."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(directory)) for link in links if os.path.islink(link))


def test_a_region_is_listed_and_read_until_it_is_unregistered(regions):
    regions.apply("", {"r": wanted(offset=10, byte_size=50)})
    assert regions.describe("") == {"r": {"object": "/object", "offset": 10, "byte_size": 50}}
    assert regions.get(Place("r", 5, 3)).read(Place("r", 5, 3)) == bytes((15, 16, 17))
    regions.apply("", {"r": None})
    assert regions.describe("") == {}
    with pytest.raises(NotFound, match="'r'"):
        regions.get(Place("r", 5, 3))


def test_unregistering_what_is_not_registered_is_no_error(regions):
    regions.apply("", {"r": None})


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", ".", "..", "/..", "../object", "/../object", "a/b", "/a/b", "//object", "/object/"),
        *("object\0", "object\n", "ob ject", "\u00f6bject", "a" * 251, "sem.lock", "/sem.lock"),
        "__KMP_REGISTERED_LIB_1_0",
    ],
)
def test_a_key_that_is_no_plain_name_is_refused(regions, key):
    with pytest.raises(InvalidRequest, match="key"):
        regions.apply("", {"r": wanted(key)})


@pytest.mark.parametrize("key", ["object", "/object", "..object", "a.b_c-D9"])
def test_a_key_may_have_a_slash_before_it(regions, shm, key):
    (shm / key.lstrip("/")).write_bytes(bytes(100))
    regions.apply("", {"r": wanted(key)})


def test_a_symbolic_link_is_not_followed(regions, shm):
    (shm / "link").symlink_to(shm / "object")
    with pytest.raises(InvalidRequest, match="link"):
        regions.apply("", {"r": wanted("/link")})


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_no_regular_file_is_refused_without_waiting(regions, shm, kind):
    if kind == "fifo":
        os.mkfifo(shm / kind)
    elif kind == "directory":
        (shm / kind).mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(shm / kind))
    with pytest.raises(InvalidRequest, match=kind):
        regions.apply("", {"r": wanted(kind)})
    assert descriptors(shm) == 0


def test_an_object_that_is_not_there_is_not_found(regions):
    with pytest.raises(NotFound, match="--ipc=host"):
        regions.apply("", {"r": wanted("/absent")})


@pytest.mark.parametrize(
    ("offset", "byte_size"), [(0, 101), (1, 100), (100, 1), (2**64 - 1, 2**64 - 1), (0, 0)]
)
def test_a_region_must_be_inside_its_object(regions, shm, offset, byte_size):
    with pytest.raises(InvalidRequest, match="'r'"):
        regions.apply("", {"r": wanted(offset=offset, byte_size=byte_size)})
    assert descriptors(shm) == 0


@pytest.mark.parametrize("name", ["", "n" * 257])
def test_a_name_must_be_a_short_text(regions, name):
    with pytest.raises(InvalidRequest, match="name"):
        regions.apply("", {name: wanted()})


def test_a_name_that_is_taken_is_refused_and_the_same_registration_told_twice_is_not(regions):
    regions.apply("", {"r": wanted()})
    with pytest.raises(AlreadyExists, match="'r'"):
        regions.apply("", {"r": wanted(ticket="2")})
    before = regions.get(Place("r", 0, 1))
    regions.apply("", {"r": wanted()})
    assert regions.get(Place("r", 0, 1)) is before


def test_all_of_a_change_is_carried_out_or_nothing(regions, shm):
    with pytest.raises(NotFound):
        regions.apply("", {"good": wanted(), "bad": wanted("/absent")})
    assert regions.describe("") == {}
    assert descriptors(shm) == 0


def test_there_may_be_so_many_regions(regions):
    regions.apply("", {f"r{number}": wanted() for number in range(MOST_REGIONS)})
    with pytest.raises(QueueFull, match=str(MOST_REGIONS)):
        regions.apply("", {"one more": wanted()})
    regions.apply("", {"r0": None, "one more": wanted()})


def test_objects_may_have_so_many_bytes_together(regions, shm):
    os.truncate(shm / "object", MOST_BYTES // 2 + 1)
    regions.apply("", {"a": wanted()})
    with pytest.raises(QueueFull, match=str(MOST_BYTES)):
        regions.apply("", {"b": wanted()})


def test_shared_memory_that_is_off_says_how_to_turn_it_on(shm):
    with pytest.raises(Unsupported, match="--shared-memory on"):
        Regions(False, directory=str(shm)).apply("", {"r": wanted()})


def test_a_place_must_be_inside_its_region(regions):
    regions.apply("", {"r": wanted(offset=10, byte_size=50)})
    regions.get(Place("r", 49, 1))
    with pytest.raises(InvalidRequest, match="'r', which has 50"):
        regions.get(Place("r", 49, 2))


def test_who_holds_a_region_goes_on_with_it_after_it_was_unregistered(regions, shm):
    regions.apply("", {"r": wanted()})
    held = regions.get(Place("r", 0, 4))
    regions.apply("", {"r": None})
    os.unlink(shm / "object")
    assert held.read(Place("r", 0, 4)) == bytes(range(4))
    held.write(Place("r", 0, 4), b"\xff\xff")
    assert held.read(Place("r", 0, 4)) == b"\xff\xff\2\3"
    assert descriptors(shm) == 1
    del held
    assert descriptors(shm) == 0


@pytest.mark.parametrize("size", [100, shared_memory._ARRAY_BYTES + 1])
def test_what_was_truncated_is_refused_and_never_made_longer(regions, shm, size):
    (shm / "object").write_bytes(bytes(size))
    regions.apply("", {"r": wanted(byte_size=size)})
    place = Place("r", 0, size)
    region = regions.get(place)
    assert len(region.read(place)) == size
    os.truncate(shm / "object", size - 1)
    with pytest.raises(InvalidRequest, match=f"now has {size - 1} bytes"):
        region.read(place)
    with pytest.raises(InvalidRequest, match=f"now has {size - 1} bytes"):
        region.write(place, bytes(size))
    assert (shm / "object").stat().st_size == size - 1
    os.truncate(shm / "object", 0)
    with pytest.raises(InvalidRequest, match="truncated"):
        region.read(place)


@pytest.mark.parametrize("size", [64, shared_memory._ARRAY_BYTES + 1])
def test_what_was_read_does_not_change_with_the_object(regions, shm, size):
    (shm / "object").write_bytes(b"\1" * size)
    regions.apply("", {"r": wanted(byte_size=size)})
    place = Place("r", 0, size)
    data = regions.get(place).read(place)
    (shm / "object").write_bytes(b"\2" * size)
    assert bytes(data) == b"\1" * size
    assert memoryview(data).readonly


def test_an_object_that_cannot_be_written_to_is_a_fault_of_the_request(regions):
    regions.apply("", {"r": wanted()})
    region = regions.get(Place("r", 60, 4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(InvalidRequest, match="'r' can't be written to"):
            region.write(Place("r", 60, 4), b"1234")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
