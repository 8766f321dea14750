"""A batch: requests that run together, their inputs joined and their outputs told apart.

A batch is formed closed and never re-opened. Whoever holds it owns it: the batcher until it
hands it to a stream, the stream until it posts the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorferry.batching.pending import DONE, Pending
from tensorferry.errors import ModelFailed
from tensorferry.model import BatchInput, ModelSpec
from tensorferry.tensors import Tensor

__all__ = ["Batch"]


class Batch:
    """Requests that share one run of the model. All have the same ``bound.key``."""

    __slots__ = ("requests", "rows", "spec", "started_at")

    def __init__(self, spec: ModelSpec, requests: list[Pending], started_at: float) -> None:
        self.spec = spec
        self.requests = requests
        self.rows = sum([request.bound.rows for request in requests])
        self.started_at = started_at

    def inputs(self) -> list[BatchInput]:
        """The model's inputs for the whole batch. Refers to the requests' bytes and copies none."""
        joined = []
        for index, first in enumerate(self.requests[0].bound.tensors):
            shape = (self.rows, *first.shape[1:]) if self.spec.has_batch_dimension else first.shape
            parts = [request.parts[index] for request in self.requests]
            joined.append(BatchInput(first.name, first.datatype, shape, parts))
        return joined

    def check(self, outputs: Sequence[Tensor]) -> None:
        """Make sure that the outputs' rows can be told apart.

        Raises:
            ModelFailed: an output's first dimension isn't the batch's rows.
        """
        if not self.spec.has_batch_dimension:
            return
        for output in outputs:
            if output.shape[:1] != (self.rows,):
                raise ModelFailed(
                    f"model {self.spec.name!r}: output {output.name!r} has shape {list(output.shape)}"
                    f" for a batch of {self.rows} rows; its first dimension must be the batch's"
                )

    def deliver(self, outputs: Sequence[Tensor]) -> tuple[int, float]:
        """Give each request that still wants it its rows of the checked ``outputs``.

        Returns how many those were, and the sum of the times that they waited, in seconds.
        """
        answered = first_row = 0
        waited_s = 0.0
        batch_rows = self.rows if self.spec.has_batch_dimension else 0
        for request in self.requests:
            if request.state != DONE:
                answered += 1
                waited_s += self.started_at - request.enqueued_at
                request.finish(outputs, first_row, batch_rows)
            first_row += request.bound.rows
        return answered, waited_s

    def halves(self) -> list[Batch]:
        """Split a batch of several requests in two, to find the one that the model can't take."""
        middle = len(self.requests) // 2
        return [
            Batch(self.spec, part, self.started_at)
            for part in (self.requests[:middle], self.requests[middle:])
        ]
