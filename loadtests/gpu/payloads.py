"""What is sent to the models and what the bare loop is fed with: the same values, seeded.

No torch here: the processes that send don't load it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.gpu.scale import Bert, Scale

__all__ = ["CHECKED", "Mix", "checked_call", "images", "mix_of", "rows_of_fraud", "sequences"]

#: Calls that each model is checked with, of one row each, all unlike.
CHECKED = 16
_DRAWN = 20_000
#: Patches along each side of an image.
_PATCHES = 4

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Mix:
    """Which lengths come how often. ``turn`` holds a bucket in tokens for each batch of a turn.

    ``lengths`` are drawn lengths by bucket.
    """

    turn: tuple[int, ...]
    lengths: dict[int, NDArray[np.int64]]

    def of(self, bucket: int, count: int, seed: int) -> NDArray[np.int64]:
        """Return ``count`` lengths that are padded to ``bucket``."""
        return np.random.default_rng(seed).choice(self.lengths[bucket], count)

    @property
    def mean_tokens(self) -> float:
        """The mean length over a turn."""
        return float(np.mean([self.lengths[bucket].mean() for bucket in self.turn]))


def mix_of(shape: Bert) -> Mix:
    """Return the lengths of a made-up traffic: log-normal, from ``shortest`` to the last bucket.

    The shares of the buckets are rounded to whole batches of a turn (largest remainders), so that
    callers and bare loop have exactly the same.
    """
    draw = np.random.default_rng(11)
    drawn = np.rint(shape.median * draw.lognormal(0.0, 0.6, _DRAWN)).astype(np.int64)
    drawn = np.clip(drawn, shape.shortest, shape.buckets[-1])
    place = np.searchsorted(shape.buckets, drawn)
    exact = np.bincount(place, minlength=len(shape.buckets)) / _DRAWN * shape.turn
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact)[: shape.turn - counts.sum()]:
        counts[index] += 1
    turn = np.repeat(shape.buckets, counts)
    draw.shuffle(turn)
    lengths = {
        bucket: drawn[place == number] for number, bucket in enumerate(shape.buckets) if counts[number]
    }
    return Mix(tuple(turn.tolist()), lengths)


def images(scale: Scale, rows: int, seed: int, *, is_bytes: bool) -> Array:
    """Return ``rows`` images, UINT8 or FP16 [rows, 3, size, size]: coarse patches of colour, and noise.

    Of noise alone a network makes nearly the same of every image, and of one whose pixels are in disorder.
    """
    size, draw = scale.resnet.size, np.random.default_rng(seed)
    patches = draw.standard_normal((rows, 3, _PATCHES, _PATCHES), dtype=np.float32)
    pixels = patches.repeat(size // _PATCHES, axis=2).repeat(size // _PATCHES, axis=3)
    pixels += 0.5 * draw.standard_normal(pixels.shape, dtype=np.float32)
    if is_bytes:
        return np.clip(128 + 60 * pixels, 0, 255).astype(np.uint8)
    return pixels.astype(np.float16)


def sequences(shape: Bert, lengths: NDArray[np.int64], seed: int) -> list[NDArray[np.int32]]:
    """Return sequences of words, INT32 [length] each."""
    draw = np.random.default_rng(seed)
    return [draw.integers(1, shape.vocabulary, each, dtype=np.int32) for each in lengths.tolist()]


def rows_of_fraud(rows: int, seed: int) -> NDArray[np.float32]:
    """Return made-up transactions, FP32 [rows, 30]."""
    return np.random.default_rng(seed).standard_normal((rows, 30), dtype=np.float32)


def checked_call(scale: Scale, model: str, number: int) -> Array:
    """Return what ``model`` is asked with in one of ``CHECKED`` calls: its only input, with one row."""
    if model == "bert":
        mix = mix_of(scale.bert)
        lengths = mix.of(mix.turn[number % len(mix.turn)], 1, number)
        return sequences(scale.bert, lengths, number)[0].reshape(1, -1)
    if model == "fraud":
        return rows_of_fraud(1, number)
    return images(scale, 1, number, is_bytes=model.endswith("uint8"))
