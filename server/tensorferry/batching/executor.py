"""What a batcher asks of the streams that run its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tensorferry.batching.batch import Batch
from tensorferry.errors import TensorferryError
from tensorferry.model import RunResult

__all__ = ["BatchOutcome", "Executor"]


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch: a result or an error, one of them None; and the stream that ran it."""

    batch: Batch
    result: RunResult | None
    error: TensorferryError | None
    stream: int = 0


class Executor(Protocol):
    """The streams that run one model's batches. Called and calling back on the loop thread.

    ``start`` may be called while ``idle`` is positive. It takes the batch over and calls ``done``
    exactly once: later, or before it returns (a stream that runs on the loop thread).

    A stream on a GPU takes a batch while another runs there: its inputs are copied meanwhile. Such a
    batch is started while ``idle`` is 0 and ``spare`` is positive, and its ``behind`` is set, by ``start``,
    to the batch that it follows; ``follow_at`` says when one is best started. The batches of one stream
    come back in the order in which they were started; the batcher sets ``behind`` to None then.
    """

    @property
    def idle(self) -> int:
        """Streams that would start a batch at once."""
        ...

    @property
    def spare(self) -> int:
        """Places for a batch behind one that runs; 0 where no stream takes any."""
        ...

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return the instant from which on a batch in a spare place loses nothing by being started.

        That is when the run before it is expected to be back, less what its outputs take on the way, and
        what the new inputs take to reach the device. Infinite with no spare place. ``expected`` gives the
        seconds of a run by its rows.
        """
        ...

    def start(self, batch: Batch, done: Callable[[BatchOutcome], None]) -> None:
        """Run a batch on an idle stream; with none idle, behind another in a spare place."""
        ...
