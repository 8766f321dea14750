"""Which share of the requests a request belongs to: sticky by key, exact over time without one.

A key's hash is a point in [0, 1), and the shares are intervals there, in their order. The same key
and salt always give the same point, in every process; so a share that comes first and grows keeps
the keys it had, and those it wins come from the shares after it.

Requests without a key take the multiples of the golden ratio instead, modulo 1, from a point that
the salt gives (the additive recurrence; see L. Kuipers and H. Niederreiter, Uniform Distribution of
Sequences, 1974, chapter 2). Of any n in a row, each interval gets its part of n with a deviation
that grows as log n, where chance would have the square root.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

__all__ = ["Split"]

_POINTS: Final = 1 << 64
#: 2**64 divided by the golden ratio, made odd.
_STRIDE: Final = 0x9E3779B97F4A7C15


class Split:
    """Shares of the requests, each above 0; they are taken relative to their sum.

    ``salt`` decides which keys belong to which share: splits of different salts are independent.
    """

    __slots__ = ("_bounds", "_hash", "_point", "shares")

    def __init__(self, salt: bytes, shares: Sequence[float]) -> None:
        if not shares or not all(share > 0 for share in shares):
            raise ValueError(f"shares must be above 0: {list(shares)}")
        # BLAKE2's own salt has 16 bytes, and costs nothing. Copying a hash is faster than making one.
        self._hash: Final = blake2b(digest_size=8, salt=blake2b(salt, digest_size=16).digest())
        self._bounds: Final = _bounds_of(shares)
        #: What each arm gets, adding up to 1.
        self.shares: Final = tuple(share / sum(shares) for share in shares)
        self._point = int.from_bytes(self._hash.digest(), "little")

    def choose(self, key: bytes) -> int:
        """Return the index of the share that a key belongs to."""
        hashed = self._hash.copy()
        hashed.update(key)
        return self._index(int.from_bytes(hashed.digest(), "little"))

    def choose_any(self) -> int:
        """Return the index of the share that is next, for a request without a key."""
        self._point = point = (self._point + _STRIDE) % _POINTS
        return self._index(point)

    def _index(self, point: int) -> int:
        # A loop, since there are two or three shares nearly always.
        index = 0
        for bound in self._bounds:
            if point < bound:
                return index
            index += 1
        return index


def _bounds_of(shares: Sequence[float]) -> tuple[int, ...]:
    """Return where each share but the last ends, of 2**64 points."""
    total = sum(shares)
    bounds = []
    end = 0.0
    for share in shares[:-1]:
        end += share
        bounds.append(int(end / total * _POINTS))
    return tuple(bounds)
