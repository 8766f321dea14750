"""Answers that were given before, kept for requests that ask the same again.

One cache for the server, bounded in bytes; what was used longest ago leaves first. Used on the
loop thread. It knows nothing of requests in flight: ``cached_intake`` does.

A key is the loaded version, the inputs' datatypes and shapes, and a digest of their bytes. Callers
are not trusted, and one must never get the answer to another's data, so the digest is SHA-256,
for which nobody can make two inputs that collide. The bytes themselves would be a third faster to
compare, but an image would fill the cache twice: once as a key. A keyed 128-bit BLAKE2 was slower
than SHA-256 from a hundred bytes on, on a CPU with instructions for SHA.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from tensorferry.batching.pending import Pending
from tensorferry.model import Bound
from tensorferry.tensors import Buffer, Tensor

__all__ = [
    "DEFAULT_RESPONSE_CACHE_BYTES",
    "ENTRY_BYTES",
    "OUTPUT_BYTES",
    "Answer",
    "CacheCounters",
    "CacheSize",
    "CacheStatistics",
    "Key",
    "ResponseCache",
    "key_of",
]

DEFAULT_RESPONSE_CACHE_BYTES: Final = 64 * 2**20

#: What an entry takes beside its outputs: key, digest, place in the order. Measured with tracemalloc
#: on CPython 3.11 (500 bytes, and 130 for each output) and raised by a fourth or more.
ENTRY_BYTES: Final = 640
#: What an output takes beside its data.
OUTPUT_BYTES: Final = 192

#: An entry may take this share of the bound at most: one huge answer must not evict all others.
_LARGEST_SHARE: Final = 8

#: The owner, each input's datatype, shape and size, and the digest of all inputs' bytes.
Key = tuple[int, tuple[tuple[str, tuple[int, ...], int], ...], bytes]


#: What ``Pending.finish`` takes: an answer's outputs in the model's order, and its rows (0 for a
#: model without a batch dimension).
Answer = tuple[list[Tensor], int]

# What is kept: rows as in ``Answer``, bytes that it counts for, and name, datatype, shape and data of
# each output. Plain tuples of plain values, because the garbage collector lets go of those when it
# first sees them; objects it would visit again and again, a microsecond for each answer in the end.
_Entry = tuple[int, int, tuple[tuple[str, str, tuple[int, ...], bytes], ...]]


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How full the cache is."""

    count: int
    byte_size: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """One version's look-ups, as Triton counts them; the times are in nanoseconds.

    A hit is a request that was answered without a run of its own, be it from the cache or
    together with an equal one; its time is that of the look-up. A miss is a run that was answered;
    its time is that of look-up and insertion. Hits and misses together are the requests answered.
    """

    hit_count: int = 0
    hit_ns: int = 0
    miss_count: int = 0
    miss_ns: int = 0


@dataclass(slots=True)
class CacheCounters:
    """The running counts behind ``CacheStatistics``; the times are in seconds."""

    hit_count: int = 0
    hit_s: float = 0.0
    miss_count: int = 0
    miss_s: float = 0.0

    def hit(self, count: int, seconds: float) -> None:
        """Count hits; ``seconds`` is their time together."""
        self.hit_count += count
        self.hit_s += seconds

    def miss(self, seconds: float) -> None:
        """Count a miss."""
        self.miss_count += 1
        self.miss_s += seconds

    def snapshot(self) -> CacheStatistics:
        """Freeze the counts."""
        return CacheStatistics(self.hit_count, int(self.hit_s * 1e9), self.miss_count, int(self.miss_s * 1e9))


def key_of(owner: int, bound: Bound, parts: Sequence[Buffer]) -> Key:
    """Name a request's content. Requests with equal keys get equal answers from a deterministic model.

    The sizes stand beside the shapes, so that where one input ends and the next begins is said
    even for a datatype whose elements vary in size.
    """
    digest = sha256()
    for part in parts:
        digest.update(part)
    described = [
        (tensor.datatype, tensor.shape, len(part)) for tensor, part in zip(bound.tensors, parts, strict=True)
    ]
    return owner, tuple(described), digest.digest()


class ResponseCache:
    """Key -> answer, at most ``max_bytes`` of them together."""

    def __init__(self, max_bytes: int = DEFAULT_RESPONSE_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._byte_size = 0
        # The least recently used first. A library's cache with sizes (cachetools) is this same
        # dictionary with more Python around it, and the look-up is on the way of every request.
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._owners = itertools.count()

    @property
    def is_enabled(self) -> bool:
        """Whether it may hold anything at all."""
        return self._max_bytes > 0

    def new_owner(self) -> int:
        """Return a number that no other loaded version has, or ever had."""
        return next(self._owners)

    def get(self, key: Key) -> Answer | None:
        """Return the answer that is kept under ``key``, and count it as used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return [Tensor(*output) for output in entry[2]], entry[0]

    def keep(self, key: Key, request: Pending) -> None:
        """Copy an answered request's outputs and keep them, unless they are too large.

        Only its own rows are copied: the batch's buffers, which they are views of, go free.
        """
        outputs = request.outputs
        byte_size = ENTRY_BYTES + sum([OUTPUT_BYTES + len(output.data) for output in outputs])
        if byte_size * _LARGEST_SHARE > self._max_bytes:
            return
        own = tuple([(each.name, each.datatype, each.shape, bytes(each.data)) for each in outputs])
        self._drop(key)
        while self._byte_size + byte_size > self._max_bytes:
            self._byte_size -= self._entries.popitem(last=False)[1][1]
        self._entries[key] = (request.rows if request.batch_rows else 0, byte_size, own)
        self._byte_size += byte_size

    def forget(self, owner: int) -> None:
        """Drop all of one owner's entries. Costs a pass over the cache."""
        for key in [key for key in self._entries if key[0] == owner]:
            self._drop(key)

    def size(self) -> CacheSize:
        """Say how full the cache is."""
        return CacheSize(len(self._entries), self._byte_size, self._max_bytes)

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._byte_size -= entry[1]

    def __repr__(self) -> str:
        return f"<ResponseCache {len(self._entries)} answers, {self._byte_size} of {self._max_bytes} bytes>"
