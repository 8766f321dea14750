"""Calls and their answers: who waits for outcomes, a stream's message as a call, and traced calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import grpc

from tensorferry.batching.pending import Pending
from tensorferry.service.forms import Decoded, Form
from tensorferry.service.methods import UnaryCall
from tensorferry.service.plans import identify
from tensorferry.service.status import status_of
from tensorferry.tracing.context import Headers, trace_id_of
from tensorferry.tracing.request import RequestTrace
from tensorferry.tracing.tracer import Tracer
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["Answer", "Failures", "StreamCall", "TracedCall", "refuse"]

#: What a stream's message begins with that is an answer: the field's number and, as 2, "length-delimited".
_RESPONSE_TAG: Final = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | 2


class Failures(Protocol):
    """Hears of calls that fail, to count and log them."""

    def count(self, code: grpc.StatusCode) -> bool:
        """Count a call that failed so; whether ``tell`` wants to know more of it."""
        ...

    def tell(
        self, code: grpc.StatusCode, error: BaseException, model: str, request_id: str, trace_id: str = ""
    ) -> None:
        """Take its status, its error, and what it was known by ("" where nothing)."""
        ...


class Answer:
    """Waits for one request's outcome and encodes it. One small object instead of closures."""

    __slots__ = ("call", "failures", "identity", "plan")

    def __init__(self, call: UnaryCall, plan: Form, identity: bytes, failures: Failures | None) -> None:
        self.call = call
        self.plan = plan
        self.identity = identity
        self.failures = failures

    def __call__(self, request: Pending) -> None:
        """Answer the call, or end it with what became of the request."""
        if request.error is not None:
            self.fail(request.error)
            return
        try:
            body = self.plan.encode(self.identity, request)
        except Exception as error:  # an outcome's callback must not raise: the rest of the batch waits
            self.fail(error)
        else:
            self.call.reply(body)

    def fail(self, error: Exception) -> None:
        """End the call with an error."""
        status = status_of(error)
        self.call.fail(*status)
        if self.failures is not None and self.failures.count(status.code):
            identity = self.identity.decode("utf-8", "replace")
            trace_id = trace_id_of(self.call.traceparent)
            self.failures.tell(status.code, error, self.plan.live.spec.name, identity, trace_id)


class StreamCall:
    """One message of a stream as a unary call. Its future gets the message that answers it.

    A failure is an answer too: an ``error_message`` beside the request's id. The future's
    cancellation is the caller's.
    """

    __slots__ = ("_body", "_future", "_on_cancel", "deadline", "traceparent", "tracestate")

    def __init__(self, future: asyncio.Future[bytes], body: bytes, deadline: float, trace: Headers) -> None:
        self._future = future
        self._body = body
        self._on_cancel: Callable[[], None] | None = None
        self.deadline = deadline
        self.traceparent, self.tracestate = trace

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        """What is called when the caller goes away."""
        return self._on_cancel

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        if self._on_cancel is None:
            self._future.add_done_callback(self._ended)
        self._on_cancel = callback

    def reply(self, message: bytes) -> None:
        """Answer with a serialised response."""
        if not self._future.done():
            self._future.set_result(_in_stream(message))

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with an error's text."""
        if not self._future.done():
            answer = pb.ModelStreamInferResponse(error_message=details)
            answer.infer_response.id = identify(self._body)[1]
            self._future.set_result(answer.SerializeToString())

    def _ended(self, future: asyncio.Future[bytes]) -> None:
        callback, self._on_cancel = self._on_cancel, None  # it leads back to the call's request
        if future.cancelled() and callback is not None:
            callback()


class TracedCall:
    """A call that is traced: tells the tracer its outcome."""

    __slots__ = ("_call", "_request", "_tracer", "deadline", "trace")

    def __init__(self, call: UnaryCall, trace: RequestTrace, tracer: Tracer) -> None:
        self._call = call
        self._request: Pending | None = None
        self._tracer = tracer
        self.deadline = call.deadline
        self.trace = trace
        if isinstance(call, StreamCall):
            trace.method = "ModelStreamInfer"

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        """What is called when the caller goes away."""
        return self._call.on_cancel

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self._call.on_cancel = callback

    @property
    def traceparent(self) -> bytes:
        """The context that continues this call's trace."""
        return self.trace.traceparent

    @property
    def tracestate(self) -> bytes | None:
        """What came with the caller's context."""
        return self._call.tracestate

    def submitted(self, plan: Form, identity: bytes, request: Pending) -> None:
        """Note what the call's request is."""
        trace = self.trace
        if not trace.ended_at:  # a piece of a split request may be refused from within the submission
            self._request = request
        trace.submitted_at = request.enqueued_at
        trace.rows = request.bound.rows
        self.named(plan.live.spec.name, identity.decode("utf-8", "replace"), plan.live.spec.version)

    def named(self, model: str, request_id: str, version: int = 0) -> None:
        """Note whom the call is for."""
        trace = self.trace
        trace.model, trace.request_id, trace.version = model, request_id, version

    def reply(self, message: bytes) -> None:
        """Pass the answer on."""
        self._call.reply(message)
        if self._request is not None:
            self.trace.record = self._request.record
        self._end()

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Pass the error on."""
        self._call.fail(code, details)
        self.trace.code, self.trace.details = code.value[0], details
        self._end()

    def _end(self) -> None:
        self._request = None  # it leads back to this call: no cycle for the garbage collector
        self._tracer.ended(self.trace)


def _in_stream(message: bytes) -> bytes:
    """Wrap a serialised response as the message of a stream, whatever is in it and however long it is.

    Not by protobuf, which would parse it and may raise: the rest of the batch waits for its outcome.
    """
    head, size = bytearray((_RESPONSE_TAG,)), len(message)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, message))


def refuse(
    call: UnaryCall, error: Exception, body: bytes, decoded: Decoded | None, failures: Failures | None
) -> None:
    """End a call that didn't get as far as a queue. ``decoded`` is its request where it was understood.

    Whom it was for is found out only for a line that is written or a trace: not for a flood.
    """
    status = status_of(error)
    told = failures if failures is not None and failures.count(status.code) else None
    if told is not None or isinstance(call, TracedCall):
        if decoded is not None:
            spec = decoded[0].live.spec
            model, version, identity = spec.name, spec.version, decoded[1].decode("utf-8", "replace")
        else:
            (model, identity), version = identify(body), 0
        if isinstance(call, TracedCall):
            call.named(model, identity, version)
        if told is not None:
            told.tell(status.code, error, model, identity, trace_id_of(call.traceparent))
    call.fail(*status)
