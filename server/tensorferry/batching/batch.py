"""A batch: requests that run together, their inputs joined and their outputs told apart.

A batch is formed closed and never re-opened. Whoever holds it owns it: the batcher until it
hands it to a stream, the stream until it posts the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorferry.batching.padding import (
    cut_axes,
    cut_outputs,
    lengths_input,
    line_elements,
    longest_bucket,
    padded_input,
)
from tensorferry.batching.pending import DONE, Pending
from tensorferry.batching.record import IDLE, RETRY, BatchRecord
from tensorferry.errors import ModelFailed
from tensorferry.model import BatchInput, ModelSpec
from tensorferry.tensors import Tensor

__all__ = ["Batch"]


class Batch:
    """Requests that share one run of the model.

    All have the same ``bound.key``, but for the bucket where the model pads: then all are padded to
    ``length``, the bucket of the longest of them (0 where nothing is padded).
    """

    __slots__ = ("behind", "hold_s", "length", "reason", "requests", "rows", "spec", "started_at")

    def __init__(
        self,
        spec: ModelSpec,
        requests: list[Pending],
        started_at: float,
        reason: str = IDLE,
        hold_s: float = 0.0,
    ) -> None:
        self.spec = spec
        self.requests = requests
        self.rows = sum([request.bound.rows for request in requests])
        self.length = 0 if spec.padding is None else longest_bucket(spec.padding, requests)
        self.started_at = started_at
        self.reason = reason
        self.hold_s = hold_s
        #: The batch of the same stream that it was started behind; None once that has ended.
        self.behind: Batch | None = None

    def inputs(self) -> list[BatchInput]:
        """The model's inputs for the whole batch, in the order of ``spec.model_inputs``.

        Refers to the requests' bytes; only a request that is padded in several places is copied.
        """
        padding = self.spec.padding
        joined = []
        for index, first in enumerate(self.requests[0].bound.tensors):
            row_shape = first.shape[1:] if self.spec.has_batch_dimension else first.shape
            parts = [request.parts[index] for request in self.requests]
            if padding is not None and first.name in padding.inputs:
                described = self.spec.inputs[index]
                row_shape, parts = padded_input(
                    described, parts, self.requests, self.length, padding.pad_value
                )
            shape = (self.rows, *row_shape) if self.spec.has_batch_dimension else row_shape
            joined.append(BatchInput(first.name, first.datatype, shape, parts))
        if padding is not None and (lengths := lengths_input(self.spec, self.requests)) is not None:
            joined.append(lengths)
        return joined

    @property
    def true_elements(self) -> int:
        """Elements of the padded inputs that callers sent; 0 where nothing is padded."""
        per_unit = line_elements(self.spec)
        return per_unit and per_unit * sum(
            [request.bound.rows * request.bound.length for request in self.requests]
        )

    @property
    def padded_elements(self) -> int:
        """Elements of padding that are run beside the ``true_elements``: the waste."""
        return line_elements(self.spec) * self.rows * self.length - self.true_elements

    def check(self, outputs: Sequence[Tensor]) -> None:
        """Make sure that the outputs' rows can be told apart, and that what is padded can be cut back.

        Raises:
            ModelFailed: an output's first dimension isn't the batch's rows, or its length isn't
                the batch's.
        """
        if self.spec.has_batch_dimension:
            for output in outputs:
                if output.shape[:1] != (self.rows,):
                    raise ModelFailed(
                        f"model {self.spec.name!r}: output {output.name!r} has shape {list(output.shape)}"
                        f" for a batch of {self.rows} rows; its first dimension must be the batch's"
                    )
        if self.length:
            self._check_lengths(outputs)

    def _check_lengths(self, outputs: Sequence[Tensor]) -> None:
        axes = cut_axes(self.spec)
        for output in outputs:
            axis = axes.get(output.name)
            if axis is not None and output.shape[axis : axis + 1] != (self.length,):
                raise ModelFailed(
                    f"model {self.spec.name!r}: output {output.name!r} has shape {list(output.shape)} for"
                    f" inputs padded to {self.length}; it is cut back to each request's own length, so that"
                    f" its dimension {axis} must be {self.length}"
                )

    def deliver(
        self, outputs: Sequence[Tensor], record: BatchRecord | None = None
    ) -> tuple[list[float], int]:
        """Give each request that still wants it its rows of the checked ``outputs``, and the ``record``.

        Returns how long each of those waited for the batch to leave, in seconds, and how many of them
        get their answer after the instant by which they were to have it.
        """
        first_row = late = 0
        waits_s: list[float] = []
        started_at = self.started_at
        ended_at = 0.0 if record is None else record.ended_at
        batch_rows = self.rows if self.spec.has_batch_dimension else 0
        axes = cut_axes(self.spec) if self.length else None
        for request in self.requests:
            if request.state != DONE:
                waits_s.append(started_at - request.enqueued_at)
                if request.limit < ended_at:
                    late += 1
                request.record = record
                if axes and request.bound.length != self.length:
                    own = cut_outputs(outputs, axes, request, first_row, batch_rows)
                    request.finish(own, 0, request.bound.rows if batch_rows else 0)
                else:
                    request.finish(outputs, first_row, batch_rows)
            first_row += request.bound.rows
        return waits_s, late

    def halves(self) -> list[Batch]:
        """Split a batch of several requests in two, to find the one that the model can't take."""
        middle = len(self.requests) // 2
        return [
            Batch(self.spec, part, self.started_at, RETRY)
            for part in (self.requests[:middle], self.requests[middle:])
        ]

    def singles(self) -> list[Batch]:
        """Return a batch for each request, where halving has been tried already (``OutOfDeviceMemory``)."""
        return [Batch(self.spec, [request], self.started_at, RETRY) for request in self.requests]
