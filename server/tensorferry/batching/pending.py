"""One request in flight.

A request is in exactly one state, and the states only move forward::

    WAITING -> RUNNING -> DONE
       └──────────────────^     (expired, cancelled, refused)

``finish`` and ``fail`` deliver the outcome exactly once; a second delivery is ignored, which is
what a cancellation during the run needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tensorferry.batching.record import BatchRecord
from tensorferry.errors import TensorferryError
from tensorferry.model import Bound
from tensorferry.tensors import Buffer, Tensor, rows_of

__all__ = ["DONE", "NEVER", "RUNNING", "WAITING", "Intake", "Pending"]

WAITING: Final = 0
RUNNING: Final = 1
DONE: Final = 2

#: A deadline that never comes. A float, so that comparing needs no test for None.
NEVER: Final = float("inf")


class Pending:
    """A request from submission to outcome.

    ``bound`` says what its tensors are, ``parts`` holds their data: one buffer for each of the
    model's inputs. (Apart, because requests that look alike share one ``bound``.)
    ``deadline`` and ``enqueued_at`` are instants of the engine's clock in seconds. ``timeout_s`` is
    the request's own wish for how long it may wait (0: none), ``priority`` its level (1 is the
    highest; 0: the model's default). ``on_done`` is called on the loop thread, exactly once, with
    this object; by then it has its outputs or its ``error``. It must not raise.
    ``split_key`` is what the caller is known by in a rollout: its key, else the request's id.
    ``record`` is the batch that answered it; None before, after an error, and for an answer that was kept.

    The batcher's own: ``level`` (an index, 0 is the highest priority; of one that was
    delayed, the last), ``entry`` (its place in the expiry heap), ``due`` (an instant that
    orders the queue), ``limit`` (the instant by which the answer must be there: the nearest of
    deadline and objective; NEVER if there is none), ``call_deadline`` (``deadline`` as the caller
    set it: the queue's own timeout may be nearer).
    """

    __slots__ = (
        "batch_outputs",
        "batch_rows",
        "bound",
        "byte_size",
        "call_deadline",
        "deadline",
        "due",
        "enqueued_at",
        "entry",
        "error",
        "first_row",
        "level",
        "limit",
        "on_done",
        "parts",
        "priority",
        "record",
        "split_key",
        "state",
        "timeout_s",
    )

    def __init__(
        self,
        bound: Bound,
        on_done: Callable[[Pending], None],
        deadline: float = NEVER,
        parts: Sequence[Buffer] | None = None,
        timeout_s: float = 0.0,
        priority: int = 0,
    ) -> None:
        self.bound = bound
        self.on_done = on_done
        self.deadline = self.call_deadline = self.limit = deadline
        self.level = 0
        self.due = 0.0
        self.entry: list[Any] | None = None
        self.timeout_s = timeout_s
        self.priority = priority
        self.split_key = b""
        self.parts = [tensor.data for tensor in bound.tensors] if parts is None else parts
        self.byte_size = bound.byte_size
        self.enqueued_at = 0.0
        self.state = WAITING
        self.batch_outputs: Sequence[Tensor] = ()
        self.first_row = 0
        self.batch_rows = 0
        self.record: BatchRecord | None = None
        self.error: TensorferryError | None = None

    @property
    def rows(self) -> int:
        """Rows that this request adds to a batch."""
        return self.bound.rows

    @property
    def outputs(self) -> list[Tensor]:
        """The answer: this request's rows of each of the batch's outputs, as views."""
        if not self.batch_rows:
            return list(self.batch_outputs)
        return [rows_of(each, self.first_row, self.bound.rows) for each in self.batch_outputs]

    def finish(self, outputs: Sequence[Tensor], first_row: int = 0, batch_rows: int = 0) -> None:
        """Deliver the answer, unless an outcome has been delivered already.

        ``outputs`` are the batch's; the answer is ``rows`` of its ``batch_rows`` rows, from
        ``first_row`` on. 0 ``batch_rows``: all of the outputs are the answer.
        """
        if self.state != DONE:
            self.state = DONE
            self.batch_outputs = outputs
            self.first_row = first_row
            self.batch_rows = batch_rows
            self.on_done(self)

    def fail(self, error: TensorferryError) -> None:
        """Deliver an error, unless an outcome has been delivered already."""
        if self.state != DONE:
            self.state = DONE
            self.error = error
            self.on_done(self)

    def __repr__(self) -> str:
        state = ("waiting", "running", "done")[self.state]
        return f"<Pending {self.rows} rows, {state}>"


class Intake(Protocol):
    """Takes requests: the batcher, or what stands before it. Both methods are as ``Batcher``'s."""

    def submit(self, request: Pending) -> None:
        """Take a request, or raise."""
        ...

    def cancel(self, request: Pending) -> None:
        """Give a request up that was submitted here."""
        ...
