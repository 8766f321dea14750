"""The scores that were given lately, so that labels which come later find theirs.

A label says how it really was (1: fraud, 0: not), and comes minutes to weeks after the score. Kept
are a hash of the key and the score, 16 bytes, in a ring: nothing here has to be let go of one by
one, and a key that the caller gave (a card's, say) isn't in the memory in clear.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import numpy as np

__all__ = ["MAX_SCORES", "ScoreMemory"]

#: Scores remembered of an arm, in each process.
MAX_SCORES: Final = 200_000


def _digest(key: bytes) -> int:
    # 8 bytes: among 200,000 keys, two that differ meet with a probability of 1e-9.
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


class ScoreMemory:
    """Key -> score, the newest ``max_scores`` of them; and key -> (score, label), as many."""

    def __init__(self, max_scores: int = MAX_SCORES) -> None:
        self._max = max_scores
        self._keys = array("Q")
        self._scores = array("d")
        self._next = 0
        self._labelled: dict[int, tuple[float, int]] = {}

    def remember(self, key: bytes, score: float) -> None:
        """Keep a score; if the key was there before, the newer score is the one that labels find."""
        digest = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
        if len(self._keys) < self._max:
            self._keys.append(digest)
            self._scores.append(score)
            return
        index = self._next
        self._keys[index] = digest
        self._scores[index] = score
        self._next = index + 1 if index + 1 < self._max else 0

    def match(self, labels: Iterable[tuple[bytes, int]]) -> list[tuple[float, int]]:
        """Return (score, label) for the labels whose key is remembered, in their order.

        Costs up to some 20 ms with a full memory, however many labels there are.
        """
        return [pair for _, pair in self._matched(labels)]

    def learn(self, labels: Iterable[tuple[bytes, int]]) -> int:
        """Match the labels and keep the pairs; return how many matched.

        A label that is fed back again replaces the first, so that a file may be sent twice.
        """
        matched = self._matched(labels)
        for digest, pair in matched:
            self._labelled.pop(digest, None)
            self._labelled[digest] = pair
        surplus = len(self._labelled) - self._max
        if surplus > 0:
            self._labelled = dict(list(self._labelled.items())[surplus:])
        return len(matched)

    @property
    def pairs(self) -> list[tuple[float, int]]:
        """(score, label) of all that was learned: those of several processes are joined end to end."""
        return list(self._labelled.values())

    def __len__(self) -> int:
        return len(self._keys)

    def _matched(self, labels: Iterable[tuple[bytes, int]]) -> list[tuple[int, tuple[float, int]]]:
        wanted = [(_digest(key), label) for key, label in labels]
        if not wanted or not self._keys:
            return []
        # From the oldest to the newest, so that the newest of a key is what the dictionary keeps.
        keys = np.roll(np.array(self._keys, dtype=np.uint64), -self._next)
        scores = np.roll(np.array(self._scores, dtype=np.float64), -self._next)
        asked = np.array([digest for digest, _ in wanted], dtype=np.uint64)
        where = np.flatnonzero(np.isin(keys, asked))
        found = dict(zip(keys[where].tolist(), scores[where].tolist(), strict=True))
        return [(digest, (found[digest], label)) for digest, label in wanted if digest in found]

    def __repr__(self) -> str:
        return f"<ScoreMemory {len(self._keys)} scores, {len(self._labelled)} labelled>"
