"""How large and how long everything is: on a GPU, and in a rehearsal, where only the flow matters.

Rules for this file: numbers alone, no imports beyond the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["REAL", "REHEARSAL", "Bert", "ResNet", "Scale", "Seconds"]


@dataclass(frozen=True, slots=True)
class ResNet:
    """Images are ``3 x size x size``; ``layers`` are the bottlenecks of each stage, ``width`` the first's."""

    size: int
    width: int
    layers: tuple[int, int, int, int]
    classes: int
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bert:
    """An encoder's shape; ``buckets`` are the lengths in tokens that its sequences are padded to.

    Lengths are drawn between ``shortest`` and the last bucket, log-normally around ``median``. A turn of
    the bare loop has ``turn`` batches.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    buckets: tuple[int, ...]
    shortest: int
    median: int
    turn: int
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long each thing is measured, or is thought to take, in seconds.

    ``loop`` is one bare loop, ``settle`` what a case runs before it counts, ``case`` what it counts.
    The others are for the plan alone: what the models' writing, a bare process beside its loops, and a
    server's start and stop may take.
    """

    limit: float
    loop: float
    settle: float
    case: float
    models: float
    process: float
    server: float


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of everything. ``in_flight`` are the fraud model's, ``link_bytes`` what one copy moves.

    ``clients`` processes send.
    """

    is_rehearsal: bool
    resnet: ResNet
    bert: Bert
    fraud_rows: int
    in_flight: tuple[int, int]
    images_per_call: int
    clients: int
    link_bytes: int
    repeats: int
    seconds: Seconds

    @property
    def device(self) -> str:
        """What the bare loop runs on, as torch names it."""
        return "cpu" if self.is_rehearsal else "cuda:0"


REAL: Final = Scale(
    is_rehearsal=False,
    resnet=ResNet(224, 64, (3, 4, 6, 3), 1000, (32, 64, 128, 256)),
    bert=Bert(12, 768, 12, 3072, 30522, (16, 32, 64, 96, 128), 8, 40, 40, (32, 64, 128)),
    fraud_rows=512,
    in_flight=(128, 1024),
    images_per_call=8,
    clients=6,
    link_bytes=256 * 2**20,
    repeats=5,
    seconds=Seconds(530.0, 1.0, 1.0, 4.0, 15.0, 20.0, 40.0),
)
REHEARSAL: Final = Scale(
    is_rehearsal=True,
    resnet=ResNet(16, 4, (1, 1, 1, 1), 5, (2, 4)),
    bert=Bert(1, 16, 2, 32, 50, (4, 8), 2, 4, 8, (2, 4)),
    fraud_rows=8,
    in_flight=(4, 16),
    images_per_call=2,
    clients=2,
    link_bytes=2**16,
    repeats=2,
    seconds=Seconds(900.0, 0.02, 0.1, 0.2, 5.0, 8.0, 8.0),
)
