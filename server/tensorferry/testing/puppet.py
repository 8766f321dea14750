"""An executor that the test drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import TensorferryError
from tensorferry.model import BatchInput, RunResult
from tensorferry.tensors import Tensor

__all__ = ["PuppetExecutor", "echo"]

Behaviour = Callable[[Sequence[BatchInput]], list[Tensor]]


def echo(inputs: Sequence[BatchInput]) -> list[Tensor]:
    """Return every input as the output of the same name."""
    return [Tensor(each.name, each.datatype, each.shape, b"".join(each.parts)) for each in inputs]


class PuppetExecutor:
    """Takes up to ``streams`` batches and finishes one only when ``finish`` is called.

    With ``inline`` it finishes each batch inside ``start``, as a stream on the loop thread does.
    """

    def __init__(self, streams: int = 1, behaviour: Behaviour = echo, inline: bool = False) -> None:
        self.started: list[Batch] = []
        self._streams = streams
        self._behaviour = behaviour
        self._inline = inline
        self._running: list[tuple[Batch, Callable[[BatchOutcome], None]]] = []

    @property
    def idle(self) -> int:
        """Streams that would start a batch at once."""
        return self._streams - len(self._running)

    @property
    def spare(self) -> int:
        """Places behind a batch that runs."""
        return 0

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return when a batch in a spare place is best started."""
        return math.inf

    @property
    def running(self) -> list[Batch]:
        """The batches that were started and not finished."""
        return [batch for batch, _ in self._running]

    def start(self, batch: Batch, done: Callable[[BatchOutcome], None]) -> None:
        """Take the batch over."""
        assert self.idle > 0, "the batcher started a batch with no stream idle"
        self.started.append(batch)
        self._running.append((batch, done))
        if self._inline:
            self.finish()

    def finish(self, error: TensorferryError | None = None) -> None:
        """Finish the batch that was started first: with the behaviour's outputs, or ``error``."""
        batch, done = self._running.pop(0)
        if error is None:
            try:
                outputs = self._behaviour(batch.inputs())
            except TensorferryError as raised:
                error = raised
        if error is not None:
            done(BatchOutcome(batch, None, error))
        else:
            done(BatchOutcome(batch, RunResult(outputs, 1, 2, 3), None))
