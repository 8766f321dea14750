"""The way to the collector: bounded, counted, and quiet where there is none."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import pytest
from structlog.testing import capture_logs
from tests.unit.support import run
from tests.unit.tracing.support import Bench

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.tracing import open_tracer

pytest.importorskip("opentelemetry.sdk", reason="the extra otlp isn't installed")

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tensorferry.tracing.export import QUEUE_SPANS, OtlpSink, open_sink
from tensorferry.tracing.spans import SpanMaker


class Collector(SpanExporter):
    """An exporter that takes spans, refuses them, or waits until it is let go."""

    def __init__(self, result=SpanExportResult.SUCCESS, *, is_stuck=False, error=None) -> None:
        self.result = result
        self.error = error
        self.spans = []
        self.is_shut = False
        self.entered = threading.Event()
        self.go_on = threading.Event()
        if not is_stuck:
            self.go_on.set()

    def export(self, spans):
        self.entered.set()
        self.go_on.wait(30.0)
        if self.error is not None:
            raise self.error
        self.spans += spans
        return self.result

    def shutdown(self) -> None:
        self.is_shut = True


def sink_to(collector: Collector, close_s: float = 30.0) -> OtlpSink:
    return OtlpSink(SpanMaker(Resource({}), "1", 0), collector, "collector:4318", close_s)


def traces(count: int):
    tracer = Bench().tracer
    return [tracer.sample(None, None) for _ in range(count)]


def test_spans_arrive_when_the_server_stops():
    collector = Collector()
    sink = sink_to(collector)
    sink.send(traces(3))
    run(sink.close())
    assert sum(span.kind.name == "SERVER" for span in collector.spans) == 3
    assert collector.is_shut
    assert sink.dropped == sink.waiting == 0


def test_a_collector_that_hangs_costs_no_memory_and_what_it_costs_is_counted():
    collector = Collector(is_stuck=True)
    sink = sink_to(collector)
    sink.send(traces(2 * QUEUE_SPANS))
    waiting = sink.waiting
    assert waiting <= QUEUE_SPANS
    dropped = sink.dropped
    assert dropped == 2 * QUEUE_SPANS - waiting // 2, "each refused call here has two spans"
    sink.send(traces(100))
    assert sink.waiting == waiting
    assert sink.dropped == dropped + 100
    collector.go_on.set()
    run(sink.close())
    assert sink.dropped == dropped + 100


@pytest.mark.parametrize(
    "collector",
    [Collector(SpanExportResult.FAILURE), Collector(error=OSError("refused"))],
    ids=["no", "raises"],
)
def test_what_a_collector_does_not_take_is_lost_and_counted(collector):
    with capture_logs() as lines:
        sink = sink_to(collector)
        for _ in range(20):
            sink.send(traces(100))  # more than one batch, so several exports fail
        run(sink.close())
    assert sink.dropped == 2000
    assert len(lines) == 1, "one line, however often it fails"
    assert lines[0]["collector"] == "collector:4318"


def test_the_sdks_own_lines_stay_out_of_the_log(capsys):
    sink = sink_to(Collector(SpanExportResult.FAILURE))
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("no route to %s", "host")
    with capture_logs() as lines:
        sink.send(traces(1))
        run(sink.close())
    assert lines[0]["reason"] == "no route to host"
    assert "no route" not in capsys.readouterr().err


def test_stopping_does_not_wait_for_a_collector_that_hangs():
    collector = Collector(is_stuck=True)
    sink = sink_to(collector, close_s=0.0)

    async def stop():
        sink.send(traces(1))
        await sink.close()

    run(stop())
    assert collector.is_shut
    collector.go_on.set()


# -- opening -------------------------------------------------------------------------------------


def opened(**settings):
    async def opening():
        tracer = open_tracer(ServerConfig(**settings))
        if tracer is not None:
            await tracer.close()
        return tracer

    return asyncio.run(opening())


def test_without_an_endpoint_there_is_no_tracer():
    assert opened() is None


def test_with_an_endpoint_there_is_one_with_the_settings():
    tracer = opened(trace_endpoint="http://127.0.0.1:9/", trace_rate=5)
    assert tracer.describe("")["trace_rate"] == ["5"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4318",
        "grpc://x:4317",
        "http://",
        "http://x:99999",
        "http://x:0",
        "http://[x",
        "http://x?a=1",
        "http://x/ y",
    ],
)
def test_an_endpoint_that_is_none_is_refused(endpoint):
    with pytest.raises(SettingsError, match="--trace-endpoint"):
        opened(trace_endpoint=endpoint)


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "tensorferry.tracing.export")
    with pytest.raises(SettingsError, match=r"pip install 'tensorferry\[otlp\]'"):
        opened(trace_endpoint="http://localhost:4318")


def test_the_resource_is_ours_where_the_environment_says_nothing_else(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.version=9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fraud")
    sink = open_sink("http://127.0.0.1:9", "1.0", 0)
    (span, *_) = sink._maker.spans_of(traces(1))
    attributes = span.resource.attributes
    assert attributes["service.name"] == "fraud"
    assert attributes["service.version"] == "9"
    assert attributes["deployment.environment"] == "test"
    assert attributes["process.pid"] > 0
    run(sink.close())
