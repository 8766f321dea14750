"""An executor that the test drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.device import DeviceRun
from tensorferry.errors import TensorferryError
from tensorferry.model import BatchInput, RunResult
from tensorferry.tensors import Tensor

__all__ = ["PuppetExecutor", "echo"]

Behaviour = Callable[[Sequence[BatchInput]], list[Tensor]]


def echo(inputs: Sequence[BatchInput]) -> list[Tensor]:
    """Return every input as the output of the same name."""
    return [Tensor(each.name, each.datatype, each.shape, b"".join(each.parts)) for each in inputs]


class PuppetExecutor:
    """Takes up to ``slots`` batches on each of ``streams``, and finishes one only when ``finish`` is called.

    With one slot a stream takes nothing behind what it runs, as on a CPU. With ``inline`` it finishes each
    batch inside ``start``, as a stream on the loop thread does.
    """

    def __init__(
        self, streams: int = 1, behaviour: Behaviour = echo, inline: bool = False, slots: int = 1
    ) -> None:
        self.started: list[Batch] = []
        #: The instant that ``follow_at`` names while there is a spare place.
        self.best_instant = math.inf
        self._streams = streams
        self._slots = slots
        self._behaviour = behaviour
        self._inline = inline
        self._running: list[tuple[Batch, Callable[[BatchOutcome], None]]] = []
        #: What each stream has, the batch that runs first.
        self._held: list[list[Batch]] = [[] for _ in range(streams)]

    @property
    def idle(self) -> int:
        """Streams that would start a batch at once."""
        return self._held.count([])

    @property
    def spare(self) -> int:
        """Places behind a batch that runs."""
        return sum([self._slots - len(held) for held in self._held if held])

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return when a batch in a spare place is best started: when the test says."""
        return self.best_instant if self.spare else math.inf

    @property
    def running(self) -> list[Batch]:
        """The batches that were started and not finished."""
        return [batch for batch, _ in self._running]

    def start(self, batch: Batch, done: Callable[[BatchOutcome], None]) -> None:
        """Take the batch over: on an idle stream, else behind the shortest line."""
        assert self.idle or self.spare, "the batcher started a batch with no place for it"
        held = min(self._held, key=len)
        batch.behind = held[-1] if held else None
        held.append(batch)
        self.started.append(batch)
        self._running.append((batch, done))
        if self._inline:
            self.finish()

    def finish(
        self,
        error: TensorferryError | None = None,
        device: DeviceRun | None = None,
        batch: Batch | None = None,
    ) -> None:
        """Finish ``batch``, or the one that was started first: with the behaviour's outputs, or ``error``.

        ``device`` is what a GPU says of the run.
        """
        index = 0 if batch is None else self.running.index(batch)
        batch, done = self._running.pop(index)
        stream = next(number for number, held in enumerate(self._held) if batch in held)
        assert self._held[stream].pop(0) is batch, "a stream finishes its batches in their order"
        if error is None:
            try:
                outputs = self._behaviour(batch.inputs())
            except TensorferryError as raised:
                error = raised
        if error is not None:
            done(BatchOutcome(batch, None, error, stream))
        else:
            done(BatchOutcome(batch, RunResult(outputs, 1, 2, 3, device), None, stream))
