"""Spans of calls that have ended, in OpenTelemetry's form.

They are made as finished spans, of instants that were taken on the way anyway: so a call that isn't
traced pays nothing for those that are. What a batch's calls share is told once::

    server span of the first ─┬─ receive ─ queue ─ batch ─ reply        (one after another)
                              │                     └─ run
    server span of another  ──┴─ receive ─ queue           ─ reply      (links to the batch span)

The batch span links to the server spans of all its traced calls. It may belong to another trace than most
of them: their callers don't know each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from tensorferry.batching.record import BatchRecord
from tensorferry.device import DeviceRun
from tensorferry.tracing.request import RequestTrace

__all__ = ["MAX_SPANS", "SpanMaker"]

#: Spans that one call has at most: server, receive, queue, reply, and its batch's two.
MAX_SPANS: Final = 6

_SERVICE: Final = "inference.GRPCInferenceService"
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NO_STATE: Final = TraceState()
_UNSET: Final = Status(StatusCode.UNSET)

#: Texts of callers are cut to this: a span is no place for a body.
_MAX_TEXT: Final = 256


class SpanMaker:
    """Makes spans. ``offset_ns`` is what the clock's nanoseconds lack to Unix time."""

    def __init__(
        self, resource: Resource, version: str, offset_ns: int, random: Random | None = None
    ) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("tensorferry", version)
        self._offset_ns = offset_ns
        self._random = random or Random()

    def spans_of(self, traces: Sequence[RequestTrace]) -> list[ReadableSpan]:
        """Return the spans of one batch's traced calls, or of one call that no batch has answered."""
        record = traces[0].record
        # The batch's span goes below one of those that it left with, if such a one is traced; not below
        # one that joined an equal request's run, and came later.
        traces = sorted(traces, key=_submitted_at)
        contexts = [self._context_of(trace) for trace in traces]
        spans: list[ReadableSpan] = []
        links: list[Link] = []
        if record is not None:
            if record.trace is None:
                batch = record.trace = self._child(contexts[0])
                spans += self._batch(record, batch, contexts, traces[0].submitted_at)
                spans += self._call(traces[0], contexts[0], [])
                traces, contexts = traces[1:], contexts[1:]
            # Who is answered in a later tick, because the model keeps the order, links to it too.
            links.append(Link(record.trace))
        for trace, context in zip(traces, contexts, strict=True):
            spans += self._call(trace, context, links)
        return spans

    def _call(self, trace: RequestTrace, context: SpanContext, links: Sequence[Link]) -> list[ReadableSpan]:
        """Return a call's own spans: what it went through until its end, as far as that is known."""
        record, end = trace.record, trace.ended_at
        submitted_at = trace.submitted_at or end
        spans = [
            self._server(trace, context, links),
            self._span("receive", context, trace.received_at, submitted_at),
        ]
        if record is not None:
            # One that joined an equal request's run came after that had left.
            left_at = max(submitted_at, record.started_at)
            hold = {"tensorferry.batch.hold_us": round(record.hold_s * 1e6)}
            spans.append(self._span("queue", context, submitted_at, left_at, hold))
            spans.append(self._span("reply", context, max(record.ended_at, submitted_at), end))
        return spans

    def _server(self, trace: RequestTrace, context: SpanContext, links: Sequence[Link]) -> ReadableSpan:
        parent = trace.parent
        remote = None
        if parent is not None:
            remote = SpanContext(parent.trace_id, parent.span_id, True, _SAMPLED, context.trace_state)
        attributes: dict[str, Any] = {
            "rpc.system": "grpc",
            "rpc.service": _SERVICE,
            "rpc.method": trace.method,
            "rpc.grpc.status_code": trace.code,
            "tensorferry.model": trace.model[:_MAX_TEXT],
        }
        if trace.version:
            attributes["tensorferry.version"] = trace.version
        if trace.request_id:
            attributes["tensorferry.request_id"] = trace.request_id[:_MAX_TEXT]
        if trace.rows:
            attributes["tensorferry.rows"] = trace.rows
        return ReadableSpan(
            f"{_SERVICE}/{trace.method}",
            context,
            remote,
            self._resource,
            attributes,
            links=links,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, trace.details) if trace.code else _UNSET,
            start_time=self._ns(trace.received_at),
            end_time=self._ns(trace.ended_at),
            instrumentation_scope=self._scope,
        )

    def _batch(
        self, record: BatchRecord, batch: SpanContext, contexts: Sequence[SpanContext], joined_at: float
    ) -> list[ReadableSpan]:
        """Return the batch's span, a child of its first traced call's, and the run within it.

        Of a call that joined when the batch had left they are what it saw of them, from ``joined_at`` on.
        """
        attributes: dict[str, Any] = {
            "tensorferry.batch.rows": record.rows,
            "tensorferry.batch.requests": record.requests,
            "tensorferry.batch.reason": record.reason,
            "tensorferry.batch.hold_us": round(record.hold_s * 1e6),
            "tensorferry.batch.stream": record.stream,
            **_on_device(record.result.device),
        }
        run: dict[str, Any] = {
            "tensorferry.run.input_us": record.input_ns // 1000,
            "tensorferry.run.infer_us": record.infer_ns // 1000,
            "tensorferry.run.output_us": record.output_ns // 1000,
        }
        # When the run began isn't known, only how long it took. As in the statistics, what is left of
        # the batch's time is its way back.
        ran_until = min(record.started_at + record.run_s, record.ended_at)
        start = max(record.started_at, joined_at)
        links = [Link(context) for context in contexts]
        return [
            self._span(
                "batch",
                contexts[0],
                start,
                record.ended_at,
                attributes,
                links=links,
                context=batch,
            ),
            self._span("run", batch, start, ran_until, run),
        ]

    def _span(
        self,
        name: str,
        parent: SpanContext,
        start: float,
        end: float,
        attributes: dict[str, Any] | None = None,
        *,
        links: Sequence[Link] = (),
        context: SpanContext | None = None,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context or self._child(parent),
            parent,
            self._resource,
            attributes or {},
            links=links,
            status=_UNSET,
            start_time=self._ns(start),
            end_time=self._ns(max(start, end)),
            instrumentation_scope=self._scope,
        )

    def _context_of(self, trace: RequestTrace) -> SpanContext:
        state = _NO_STATE
        if trace.parent is not None and trace.parent.state:
            state = TraceState(trace.parent.state)
        return SpanContext(trace.trace_id, trace.span_id, False, _SAMPLED, state)

    def _child(self, parent: SpanContext) -> SpanContext:
        span_id = self._random.getrandbits(64) or 1
        return SpanContext(parent.trace_id, span_id, False, _SAMPLED, parent.trace_state)

    def _ns(self, at: float) -> int:
        return round(at * 1e9) + self._offset_ns


def _on_device(run: DeviceRun | None) -> dict[str, Any]:
    """Return what a batch took on a GPU; nothing of one on the CPU."""
    if run is None:
        return {}
    return {
        "tensorferry.device.copy_in_us": run.copy_in_ns // 1000,
        "tensorferry.device.run_us": run.run_ns // 1000,
        "tensorferry.device.copy_out_us": run.copy_out_ns // 1000,
        "tensorferry.device.graph": run.is_graph,
        "tensorferry.device.padded_rows": run.padded_rows,
        "tensorferry.device.out_of_memory": run.out_of_memory,
    }


def _submitted_at(trace: RequestTrace) -> float:
    return trace.submitted_at
