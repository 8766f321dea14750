"""Requests of more rows than a batch may have: run in pieces, answered as one.

The splitter stands before the batcher. A request that fits passes straight through. A larger one
becomes pieces of at most ``max_batch_size`` rows, which are views of its data and ordinary requests to
the batcher: each has the whole's deadline, timeout and priority, takes a place in the queue, and is
counted there as a request; ``Splitter.statistics`` puts the counts right.

Contracts:

* ``submit`` either raises, and no piece is left behind, or the whole's ``on_done`` will be called
  exactly once.
* The first piece to fail fails the whole, and the others are cancelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tensorferry.batching.pending import DONE, Intake, Pending
from tensorferry.batching.statistics import BatcherStatistics, compute_of, failure_reason
from tensorferry.errors import Cancelled, ModelFailed, TensorferryError
from tensorferry.model import Bound, ModelSpec
from tensorferry.tensors import Tensor

__all__ = ["Splitter"]


class _Split:
    """A request in pieces, from its submission to its outcome."""

    __slots__ = ("left", "pieces", "request", "submitted")

    def __init__(self, request: Pending, max_rows: int, on_done: Callable[[_Split, Pending], None]) -> None:
        self.request = request
        #: In the order of the request's rows.
        self.pieces = list(_cut(request, max_rows, partial(on_done, self)))
        self.submitted = 0
        #: Pieces that have no answer yet.
        self.left = len(self.pieces)


class Splitter:
    """An intake that submits requests to ``inner``; those that a batch can't hold, in pieces."""

    def __init__(self, inner: Intake, spec: ModelSpec) -> None:
        self._inner = inner
        self._name = spec.name
        self._max_rows = spec.max_batch_size
        #: The requests that have been split and have no outcome yet.
        self._splits: dict[Pending, _Split] = {}
        self._surplus = _Surplus()

    def submit(self, request: Pending) -> None:
        """Submit a request, or all of its pieces at once.

        Raises:
            TensorferryError: as ``inner``, for the request or any of its pieces; nothing is queued then.
        """
        if request.bound.rows <= self._max_rows:
            self._inner.submit(request)
            return
        split = self._splits[request] = _Split(request, self._max_rows, self._piece_done)
        try:
            for piece in split.pieces:
                self._inner.submit(piece)
                if not split.submitted:
                    request.enqueued_at = piece.enqueued_at
                split.submitted += 1
                if request not in self._splits:
                    # A piece has failed already, and so has the whole; perhaps not this one.
                    self._abandon(split)
                    self._surplus.count(piece)
                    return
        except Exception as error:
            has_outcome = request not in self._splits
            self._abandon(split)
            if not has_outcome:
                self._surplus.count_outcomes(split)
            elif isinstance(error, TensorferryError):
                self._surplus.failures[failure_reason(error)] += 1
                return  # the caller has been told of an earlier piece's failure, and is told once
            # The request is the caller's again: its pieces' outcomes concern nobody any more.
            request.state = DONE
            raise

    def cancel(self, request: Pending) -> None:
        """Give a request up, with all its pieces."""
        if request.bound.rows <= self._max_rows:
            self._inner.cancel(request)
        elif (split := self._splits.get(request)) is not None:
            self._fail(split, Cancelled("the caller cancelled the request"))

    def statistics(self, inner: BatcherStatistics) -> BatcherStatistics:
        """Return the batcher's counts with a split request counted once: as answered, late or failed.

        Its times are those of the piece that was answered last. Only the distributions and
        ``failure_ns`` go on counting each piece.
        """
        surplus = self._surplus.copy()
        for split in self._splits.values():
            surplus.count_outcomes(split)
        return surplus.taken_from(inner)

    def __repr__(self) -> str:
        return f"<Splitter {len(self._splits)} split requests in flight>"

    def _piece_done(self, split: _Split, piece: Pending) -> None:
        if split.request not in self._splits:
            return  # the whole has its outcome
        if piece.error is not None:
            self._fail(split, piece.error)
            return
        split.left -= 1
        if split.left:
            return
        try:
            outputs = _rejoined(split)
        except ModelFailed as error:
            self._fail(split, ModelFailed(f"model {self._name!r}: {error}"))
            return
        del self._splits[split.request]
        self._surplus.count_outcomes(split)
        self._surplus.count(piece, -1)  # the time of the whole is that of the last to be answered
        split.request.record = piece.record
        split.request.finish(outputs, 0, split.request.bound.rows)

    def _fail(self, split: _Split, error: TensorferryError) -> None:
        self._abandon(split)
        self._surplus.count_outcomes(split)
        self._surplus.failures[failure_reason(error)] -= 1  # the whole's own
        split.request.fail(error)

    def _abandon(self, split: _Split) -> None:
        """Cancel what is left of a request's pieces; from now on none of them is listened to."""
        self._splits.pop(split.request, None)
        for piece in split.pieces[: split.submitted]:
            if piece.state != DONE:
                self._inner.cancel(piece)


class _Surplus:
    """What the batcher counts of pieces beyond what it would of the requests that they are pieces of."""

    def __init__(self) -> None:
        self.answered = 0
        self.late = 0
        self.queue_ns = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        self.failures = Counter[str]()

    def copy(self) -> _Surplus:
        """Return the counts of this moment."""
        other = _Surplus()
        vars(other).update(vars(self))
        other.failures = self.failures.copy()
        return other

    def count_outcomes(self, split: _Split) -> None:
        """Count the pieces that have an outcome."""
        for piece in split.pieces[: split.submitted]:
            if piece.state == DONE:
                self.count(piece)

    def count(self, piece: Pending, times: int = 1) -> None:
        """Count a piece as the batcher has."""
        record = piece.record
        if piece.error is not None:
            self.failures[failure_reason(piece.error)] += times
        elif record is not None:
            input_ns, infer_ns, output_ns = compute_of(record)
            self.answered += times
            self.late += times * (piece.limit < record.ended_at)
            self.queue_ns += times * int((record.started_at - piece.enqueued_at) * 1e9)
            self.input_ns += times * input_ns
            self.infer_ns += times * infer_ns
            self.output_ns += times * output_ns

    def taken_from(self, counts: BatcherStatistics) -> BatcherStatistics:
        """Return ``counts`` less these."""
        failures = {reason: count - self.failures[reason] for reason, count in counts.failures.items()}
        total_ns = self.queue_ns + self.input_ns + self.infer_ns + self.output_ns
        return replace(
            counts,
            success_count=counts.success_count - self.answered,
            success_ns=counts.success_ns - total_ns,
            failure_count=sum(failures.values()),
            failures=failures,
            late_count=counts.late_count - self.late,
            queue_ns=counts.queue_ns - self.queue_ns,
            compute_input_ns=counts.compute_input_ns - self.input_ns,
            compute_infer_ns=counts.compute_infer_ns - self.infer_ns,
            compute_output_ns=counts.compute_output_ns - self.output_ns,
        )


def _cut(request: Pending, max_rows: int, on_done: Callable[[Pending], None]) -> Iterator[Pending]:
    bound = request.bound
    for first in range(0, bound.rows, max_rows):
        rows = min(max_rows, bound.rows - first)
        tensors = []
        for tensor, data in zip(bound.tensors, request.parts, strict=True):
            row_bytes = len(data) // bound.rows
            part = memoryview(data)[first * row_bytes : (first + rows) * row_bytes]
            tensors.append(Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), part))
        yield Pending(
            Bound(tensors, rows, bound.key, bound.length),
            on_done,
            request.deadline,
            timeout_s=request.timeout_s,
            priority=request.priority,
        )


def _rejoined(split: _Split) -> list[Tensor]:
    """Join the pieces' outputs in the order of the request's rows.

    Raises:
        ModelFailed: the pieces' outputs are of unlike datatypes or row shapes.
    """
    joined = []
    for of_pieces in zip(*[piece.outputs for piece in split.pieces], strict=True):
        first = of_pieces[0]
        for other in of_pieces:
            if (other.datatype, other.shape[1:]) != (first.datatype, first.shape[1:]):
                raise ModelFailed(
                    f"output {first.name!r} is {first.datatype} of row shape {list(first.shape[1:])} for one"
                    f" piece of a split request and {other.datatype} of {list(other.shape[1:])} for another,"
                    " so that they can't be joined; send no more than max_batch_size rows at once"
                )
        data = b"".join([each.data for each in of_pieces])
        shape = (split.request.bound.rows, *first.shape[1:])
        joined.append(Tensor(first.name, first.datatype, shape, data))
    return joined
