"""Sends spans to an OTLP/HTTP collector, and does no harm where there is none.

The SDK's ``BatchSpanProcessor`` sends from a thread of its own, out of a bounded queue. What it would leave
out when the queue is full is left out here, by whole traces, and counted; so it never has to. A
collector that is away is tried anew with each batch; the traces of a batch that it didn't take are
lost and counted, and the log hears of it once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from tensorferry.tracing.request import RequestTrace
from tensorferry.tracing.spans import MAX_SPANS, SpanMaker

__all__ = ["CLOSE_S", "QUEUE_SPANS", "OtlpSink", "open_sink"]

_log = structlog.get_logger("tensorferry.tracing")

#: Spans that may wait for the collector: some 5 MB.
QUEUE_SPANS: Final = 4096
_BATCH_SPANS: Final = 512
_DELAY_MS: Final = 1000.0
#: How long what is left may take to be sent when the server stops.
CLOSE_S: Final = 2.0
#: How long the collector may take to answer; its retries are within it.
_TIMEOUT_S: Final = 5.0
_LOG_INTERVAL_S: Final = 60.0

#: The SDK's own words on failed exports: one line for each, which is a flood.
_LOGGERS: Final = ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal")


class _Delivery(SpanExporter):
    """Counts what an exporter was given and what it lost. Used on the processor's thread."""

    def __init__(self, inner: SpanExporter, collector: str) -> None:
        self._inner = inner
        self._collector = collector
        self._logged_at = float("-inf")
        self._is_shut = False
        self.taken = 0
        self.lost = 0
        self.reason = ""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, for as long as the exporter's timeout."""
        try:
            result = self._inner.export(spans)
        except Exception as error:  # of the exporter's or of what is below it: all mean not delivered
            self.reason = str(error)
            result = SpanExportResult.FAILURE
        self.taken += len(spans)
        if result is not SpanExportResult.SUCCESS:
            self.lost += sum(span.kind is SpanKind.SERVER for span in spans)
            self._complain()
        return result

    def _complain(self) -> None:
        now = time.monotonic()
        if now < self._logged_at + _LOG_INTERVAL_S:
            return
        self._logged_at = now
        _log.warning(
            "traces not delivered: is the collector of --trace-endpoint up?",
            collector=self._collector,
            lost=self.lost,
            reason=self.reason[:200],
        )

    def shutdown(self) -> None:
        """Called by the processor, or else by us: the exporter is told once."""
        if not self._is_shut:
            self._is_shut = True
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held here."""
        return True


class _LastWords(logging.Handler):
    """Takes the SDK's log lines from the log, and keeps the last for ours."""

    def __init__(self, delivery: _Delivery) -> None:
        super().__init__(logging.WARNING)
        self._delivery = delivery

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._delivery.reason = record.getMessage()


class OtlpSink:
    """A ``Sink`` that sends to a collector. ``send`` and ``dropped`` are the loop thread's.

    ``close`` takes ``close_s`` seconds at most.
    """

    def __init__(
        self, maker: SpanMaker, exporter: SpanExporter, collector: str = "", close_s: float = CLOSE_S
    ) -> None:
        self._maker = maker
        self._close_s = close_s
        self._delivery = _Delivery(exporter, collector)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.handlers = [_LastWords(self._delivery)]
        self._processor = BatchSpanProcessor(
            self._delivery,
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH_SPANS,
        )
        self._given = 0
        self._left_out = 0

    @property
    def dropped(self) -> int:
        """Traces that found the queue full, or that the collector didn't take."""
        return self._left_out + self._delivery.lost

    @property
    def waiting(self) -> int:
        """Spans that are queued or on their way."""
        return self._given - self._delivery.taken

    def send(self, traces: Sequence[RequestTrace]) -> None:
        """Make spans of calls that have ended, and queue them. Takes some 20 us for each."""
        groups: dict[int, list[RequestTrace]] = {}
        for trace in traces:
            groups.setdefault(id(trace.record or trace), []).append(trace)
        for group in groups.values():
            room = max(0, (QUEUE_SPANS - self.waiting) // MAX_SPANS)
            self._left_out += max(0, len(group) - room)
            if room:
                self._queue(group[:room])

    def _queue(self, group: Sequence[RequestTrace]) -> None:
        spans = self._maker.spans_of(group)
        self._given += len(spans)
        for span in spans:
            self._processor.on_end(span)

    async def close(self) -> None:
        """Send what is left, for ``close_s`` at most; what isn't sent by then is lost."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon: a collector that takes the connection and says nothing must not keep the process.
        thread = threading.Thread(target=shut_down, name="traces-close", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(self._close_s):
                await done.wait()
            thread.join()  # saying so was the last thing that it did
        except TimeoutError:
            self._delivery.shutdown()
            _log.warning("traces left behind: the collector took too long", spans=self.waiting)


def open_sink(endpoint: str, version: str, offset_ns: int) -> OtlpSink:
    """Return a sink that sends to ``endpoint``, a checked base URL.

    What OpenTelemetry's own environment variables say of headers, certificates, compression and the
    resource holds.
    """
    address = urlsplit(endpoint)
    path = address.path.rstrip("/")
    if not path.endswith("/v1/traces"):
        path += "/v1/traces"
    url = f"{address.scheme}://{address.netloc}{path}"
    own: dict[str, str | int] = {
        "service.name": "tensorferry",
        "service.version": version,
        "process.pid": os.getpid(),
    }
    resource = Resource(own).merge(OTELResourceDetector().detect())
    exporter = OTLPSpanExporter(url, timeout=_TIMEOUT_S)
    return OtlpSink(SpanMaker(resource, version, offset_ns), exporter, address.netloc.rpartition("@")[2])
