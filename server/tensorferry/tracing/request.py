"""What is known of one traced call, until its spans are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensorferry.tracing.context import Parent

if TYPE_CHECKING:
    from tensorferry.batching.record import BatchRecord

__all__ = ["RequestTrace"]


class RequestTrace:
    """One traced call. The instants are of the engine's clock in seconds; 0.0: it didn't come to that.

    ``received_at``: its bytes were known; ``submitted_at``: it was handed to the model's queue;
    ``ended_at``: its outcome was handed to the transport. ``record`` is the batch that answered it, if one
    did. ``code`` is the gRPC status's number.
    """

    __slots__ = (
        "code",
        "details",
        "ended_at",
        "method",
        "model",
        "parent",
        "received_at",
        "record",
        "request_id",
        "rows",
        "span_id",
        "submitted_at",
        "trace_id",
        "version",
    )

    def __init__(self, trace_id: int, span_id: int, parent: Parent | None, received_at: float) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent = parent
        self.received_at = received_at
        self.submitted_at = 0.0
        self.ended_at = 0.0
        self.method = "ModelInfer"
        self.model = ""
        self.version = 0
        self.request_id = ""
        self.rows = 0
        self.record: BatchRecord | None = None
        self.code = 0
        self.details = ""

    @property
    def traceparent(self) -> bytes:
        """The header that continues this call's trace."""
        return b"00-%032x-%016x-01" % (self.trace_id, self.span_id)
