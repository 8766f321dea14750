"""Shared memory that callers have registered: the objects behind Triton's system shared memory extension.

An object is a POSIX shared memory object, which is a file under /dev/shm that some process has made. A
region is a stretch of one, and has a name.

Regions are read and written by their descriptor and never mapped. Whoever may write to an object may also
truncate it, at any time, and a process that touches a mapped page that was cut off is killed by SIGBUS; no
seal guards a file under /dev/shm. A read behind the end only comes back short. What is read is a copy, so
that what was checked is what the model gets, whatever the caller writes meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from tensorferry.errors import AlreadyExists, InvalidRequest, NotFound, QueueFull, RequestError, Unsupported
from tensorferry.tensors import Buffer

__all__ = ["MOST_BYTES", "MOST_REGIONS", "OFF", "Place", "Region", "Regions"]

_DIRECTORY: Final = "/dev/shm"

#: Each holds a descriptor, of which a process often has 1024.
MOST_REGIONS: Final = 512
#: Of all regions' objects together, as large as they were when registered. A descriptor keeps an object's
#: memory although it was unlinked: callers that die without a word must not fill the machine.
MOST_BYTES: Final = 64 * 2**30

_LONGEST_NAME: Final = 256
_KEY: Final = re.compile(r"/?([A-Za-z0-9._-]{1,250})")
#: Files beside the objects: POSIX semaphores, and what OpenMP's runtime keeps for this very process.
_RESERVED: Final = ("sem.", "__KMP_REGISTERED_LIB_")

#: Below this a bytes object is cheaper than an array. Large arrays get huge pages from numpy.
_ARRAY_BYTES: Final = 64 * 1024

OFF: Final = (
    "shared memory isn't offered here, because the server's setting shared_memory is off;"
    " send the data itself, or start the server with --shared-memory on"
)


class Place(NamedTuple):
    """Where a tensor lies: ``byte_size`` bytes from ``offset`` of a region."""

    region: str
    offset: int
    byte_size: int


class Region:
    """A registered stretch of an object. ``offset`` and ``byte_size`` are bytes of the object.

    ``held_bytes`` is what the object took when it was registered. The descriptor is closed when nobody
    holds the region any more: a request that is in flight goes on with it after it was unregistered.
    Reading and writing are for any thread.
    """

    __slots__ = ("__weakref__", "_fd", "byte_size", "held_bytes", "key", "name", "offset", "ticket")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, directory: str = _DIRECTORY) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        #: Tells one registration from another of the same name.
        self.ticket = ""
        self._fd = _opened(key, directory)
        weakref.finalize(self, os.close, self._fd)
        self.held_bytes = os.fstat(self._fd).st_size
        if offset + byte_size > self.held_bytes:
            raise InvalidRequest(
                f"shared memory region {name!r} would end at byte {offset + byte_size} of object {key!r},"
                f" which has {self.held_bytes}"
            )

    def check(self, place: Place) -> None:
        """Check that a place is inside.

        Raises:
            InvalidRequest: it isn't.
        """
        if place.offset + place.byte_size > self.byte_size:
            raise InvalidRequest(
                f"{place.byte_size} bytes from offset {place.offset} end behind shared memory region"
                f" {self.name!r}, which has {self.byte_size}"
            )

    def read(self, place: Place) -> Buffer:
        """Return a copy of the bytes at a place that was checked.

        Raises:
            InvalidRequest: the object doesn't reach so far any more.
        """
        start, size = self.offset + place.offset, place.byte_size
        if size < _ARRAY_BYTES:
            data = os.pread(self._fd, size, start)
            if len(data) < size:
                raise self._cut(start + size)
            return data
        array = np.empty(size, np.uint8)
        done = 0
        while done < size:  # one call takes 2 GiB at most
            count = os.preadv(self._fd, [array[done:].data], start + done)
            if not count:
                raise self._cut(start + size)
            done += count
        return array.data.toreadonly()

    def write(self, place: Place, data: Buffer) -> None:
        """Write ``data`` to the beginning of a place that was checked and is large enough.

        Raises:
            InvalidRequest: the object doesn't reach so far any more, or can't be written to.
        """
        start, view = self.offset + place.offset, memoryview(data)
        if os.fstat(self._fd).st_size < start + len(view):
            raise self._cut(start + len(view))
        try:
            while len(view):
                count = os.pwrite(self._fd, view, start)
                start, view = start + count, view[count:]
        except OSError as error:
            full = "; /dev/shm is full" if error.errno == errno.ENOSPC else ""
            raise InvalidRequest(
                f"shared memory region {self.name!r} can't be written to: {error.strerror}{full}"
            ) from None

    def _cut(self, end: int) -> InvalidRequest:
        size = os.fstat(self._fd).st_size
        return InvalidRequest(
            f"object {self.key!r} of shared memory region {self.name!r} now has {size} bytes, and the tensor"
            f" ends at {end}: it was truncated after the region was registered; register it anew"
        )


class Regions:
    """All registered regions by name, of one server process. Used on the loop thread.

    It is a group of settings (``control.adjusting.Adjustable``), for then every process hears of a region,
    those too that start later: (name -> its object, offset, byte_size and ticket; None takes it away).
    ``most_copied_bytes`` bounds what large tensors, which are copied on other threads, take before they are
    submitted. ``directory`` is where the objects are.
    """

    def __init__(self, is_on: bool, most_copied_bytes: int = 2**30, directory: str = _DIRECTORY) -> None:
        self.is_on = is_on
        self.most_copied_bytes = most_copied_bytes
        self._directory = directory
        self._regions: dict[str, Region] = {}

    def get(self, place: Place) -> Region:
        """Return the region of a place that is inside it.

        Raises:
            NotFound: no such region is registered.
            InvalidRequest: the place isn't inside.
        """
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"no shared memory region {place.region!r} is registered; register it first")
        region.check(place)
        return region

    def describe(self, scope: str) -> dict[str, Any]:
        """Return every region's object (its key), offset and size by name. There is one scope, the server."""
        return {
            name: {"object": each.key, "offset": each.offset, "byte_size": each.byte_size}
            for name, each in self._regions.items()
        }

    def apply(self, scope: str, change: Mapping[str, Any]) -> None:
        """Register and unregister regions: all that are named, or none.

        Raises:
            Unsupported: shared memory is off.
            AlreadyExists: another region has the name.
            InvalidRequest, NotFound: the region can't be what was asked for.
            QueueFull: there are as many regions as there may be.
        """
        if not self.is_on:
            raise Unsupported(OFF)
        regions = dict(self._regions)
        for name, wanted in change.items():
            if wanted is None:
                regions.pop(name, None)
            elif name not in regions or regions[name].ticket != wanted["ticket"]:
                regions[name] = self._registered(regions, name, wanted)
        self._regions = regions

    def _registered(self, regions: Mapping[str, Region], name: str, wanted: Mapping[str, Any]) -> Region:
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidRequest(f"a shared memory region's name has 1 to {_LONGEST_NAME} characters")
        if name in regions:
            raise AlreadyExists(
                f"a shared memory region {name!r} is registered already; unregister it, or take another name"
            )
        if len(regions) >= MOST_REGIONS:
            raise QueueFull(
                f"{len(regions)} shared memory regions are registered, and there may be {MOST_REGIONS};"
                " unregister some, or put several tensors into one"
            )
        if not wanted["byte_size"]:
            raise InvalidRequest(f"shared memory region {name!r} would be empty; give its byte_size")
        region = Region(name, wanted["object"], wanted["offset"], wanted["byte_size"], self._directory)
        region.ticket = wanted["ticket"]
        held = region.held_bytes + sum([each.held_bytes for each in regions.values()])
        if held > MOST_BYTES:
            raise QueueFull(
                f"with {name!r} the objects of all shared memory regions would have {held} bytes, and"
                f" {MOST_BYTES} are allowed; unregister some"
            )
        return region


def _opened(key: str, directory: str) -> int:
    """Open an object as shm_open does, and nothing but a shared memory object; return its descriptor.

    Raises:
        InvalidRequest: the key is no object's, or this process mustn't use it.
        NotFound: there is no such object.
    """
    found = _KEY.fullmatch(key)
    if found is None or found[1] in (".", "..") or found[1].startswith(_RESERVED):
        raise InvalidRequest(
            f"{key[:_LONGEST_NAME]!r} is no key of a shared memory object; it is one name of letters, digits,"
            f" '.', '_' and '-', with or without a '/' before it, and none of {', '.join(_RESERVED)}..."
        )
    # O_NONBLOCK: a FIFO or a device is found out below, and mustn't be waited for here.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(os.path.join(directory, found[1]), flags)
    except OSError as error:
        raise _refusal(key, error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):
            os.close(fd)
        raise InvalidRequest(f"{key!r} is no shared memory object: /dev/shm has something else by that name")
    return fd


def _refusal(key: str, error: OSError) -> RequestError:
    if error.errno == errno.ENOENT:
        return NotFound(
            f"there is no shared memory object {key!r} where the server runs; if it runs in a container,"
            " does it share /dev/shm with the caller (--ipc=host, or a common volume)?"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InvalidRequest(
            f"the server's user may not both read and write shared memory object {key!r}; give it the rights"
        )
    return InvalidRequest(f"shared memory object {key!r} can't be opened: {error.strerror}")
