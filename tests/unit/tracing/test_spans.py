"""What the spans of calls tell: of the call, of its batch, and who belongs to whom."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.unit.tracing.support import SAMPLED, Bench, batch_record

from tensorferry.batching.record import BatchRecord
from tensorferry.device import DeviceRun

pytest.importorskip("opentelemetry.sdk", reason="the extra otlp isn't installed")

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, StatusCode

from tensorferry.tracing.spans import MAX_SPANS, SpanMaker

OFFSET_NS = 1_000_000_000_000_000_000


def record() -> BatchRecord:
    """A batch that left at 2.0 and was back at 3.0, of which it ran 0.6 s."""
    return batch_record(started_at=2.0, ended_at=3.0)


def trace(bench: Bench, batch: BatchRecord | None = None, parent: bytes | None = None):
    """A call that came at 1.0, was queued at 1.5 and ended at 3.5."""
    made = bench.tracer.sample(parent, b"vendor=1" if parent else None)
    made.received_at, made.submitted_at, made.ended_at = 1.0, 1.5, 3.5
    made.model, made.version, made.request_id, made.rows = "m", 3, "r-7", 2
    made.record = batch
    return made


def maker() -> SpanMaker:
    return SpanMaker(Resource({"service.name": "tensorferry"}), "1.2", OFFSET_NS)


def by_name(spans):
    found = {}
    for span in spans:
        found.setdefault(span.name.rpartition("/")[2], []).append(span)
    return found


def seconds(span) -> tuple[float, float]:
    return (span.start_time - OFFSET_NS) / 1e9, (span.end_time - OFFSET_NS) / 1e9


def test_the_parts_of_a_call_follow_each_other_and_sum_up():
    spans = by_name(maker().spans_of([trace(Bench(), record())]))
    (server,) = spans["ModelInfer"]
    parts = [spans[name][0] for name in ("receive", "queue", "batch", "reply")]
    assert [seconds(part) for part in parts] == [(1.0, 1.5), (1.5, 2.0), (2.0, 3.0), (3.0, 3.5)]
    assert all(before.end_time == after.start_time for before, after in pairwise(parts))
    assert seconds(server) == (1.0, 3.5)
    assert all(part.parent.span_id == server.context.span_id for part in parts)
    (run,) = spans["run"]
    assert run.parent.span_id == spans["batch"][0].context.span_id
    assert seconds(run) == (2.0, 2.6)
    assert sum(len(each) for each in spans.values()) == MAX_SPANS


def test_attributes_say_what_was_called_and_how_it_ran():
    spans = by_name(maker().spans_of([trace(Bench(), record())]))
    (server,) = spans["ModelInfer"]
    assert server.name == "inference.GRPCInferenceService/ModelInfer"
    assert server.kind is SpanKind.SERVER
    assert dict(server.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "tensorferry.model": "m",
        "tensorferry.version": 3,
        "tensorferry.request_id": "r-7",
        "tensorferry.rows": 2,
    }
    assert server.status.status_code is StatusCode.UNSET
    assert dict(spans["batch"][0].attributes) == {
        "tensorferry.batch.rows": 5,
        "tensorferry.batch.requests": 3,
        "tensorferry.batch.reason": "hold",
        "tensorferry.batch.hold_us": 250_000,
        "tensorferry.batch.stream": 1,
    }
    assert dict(spans["run"][0].attributes) == {
        "tensorferry.run.input_us": 100_000,
        "tensorferry.run.infer_us": 400_000,
        "tensorferry.run.output_us": 100_000,
    }


def test_a_batch_that_ran_on_a_gpu_says_what_it_took_there():
    batch = record()
    device = DeviceRun(2_500_000, 7_000_000, 300_000, is_graph=True, padded_rows=3)
    batch.result = replace(batch.result, device=device)
    attributes = dict(by_name(maker().spans_of([trace(Bench(), batch)]))["batch"][0].attributes)
    assert {name: value for name, value in attributes.items() if name.startswith("tensorferry.device")} == {
        "tensorferry.device.copy_in_us": 2500,
        "tensorferry.device.run_us": 7000,
        "tensorferry.device.copy_out_us": 300,
        "tensorferry.device.graph": True,
        "tensorferry.device.padded_rows": 3,
        "tensorferry.device.out_of_memory": False,
    }


def test_the_callers_trace_goes_on():
    (server,) = by_name(maker().spans_of([trace(Bench(), record(), SAMPLED)]))["ModelInfer"]
    assert server.context.trace_id == server.parent.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert server.parent.span_id == 0xB7AD6B7169203331
    assert server.parent.is_remote
    assert dict(server.context.trace_state) == {"vendor": "1"}


def test_a_batch_is_told_once_and_linked_with_all_its_calls():
    bench, batch = Bench(), record()
    spans = by_name(maker().spans_of([trace(bench, batch) for _ in range(3)]))
    servers = spans["ModelInfer"]
    assert len(servers) == 3
    (shared,) = spans["batch"]
    assert [link.context.span_id for link in shared.links] == [each.context.span_id for each in servers]
    assert shared.parent.span_id == servers[0].context.span_id
    assert not servers[0].links
    for other in servers[1:]:
        assert [link.context for link in other.links] == [shared.context]
        assert other.context.trace_id != shared.context.trace_id
    assert len(spans["run"]) == 1


def test_who_is_answered_in_a_later_tick_links_to_the_batch_too():
    bench, batch, spans_of = Bench(), record(), maker().spans_of
    first = by_name(spans_of([trace(bench, batch)]))
    later = by_name(spans_of([trace(bench, batch)]))
    assert "batch" not in later
    assert later["ModelInfer"][0].links[0].context == first["batch"][0].context


def test_a_refused_call_has_its_status_and_what_is_known():
    bench = Bench()
    refused = bench.tracer.sample(None, None)
    refused.received_at, refused.ended_at = 1.0, 1.25
    refused.code, refused.details, refused.model = 8, "the queue is full", "m"
    spans = by_name(maker().spans_of([refused]))
    (server,) = spans["ModelInfer"]
    assert server.status.status_code is StatusCode.ERROR
    assert server.status.description == "the queue is full"
    assert server.attributes["rpc.grpc.status_code"] == 8
    assert "tensorferry.version" not in server.attributes
    assert sorted(spans) == ["ModelInfer", "receive"]
    assert seconds(spans["receive"][0]) == (1.0, 1.25)


def test_who_joined_a_run_that_had_left_waited_for_no_batch():
    follower = trace(Bench(), record())
    follower.submitted_at = 2.5
    spans = by_name(maker().spans_of([follower]))
    assert seconds(spans["queue"][0]) == (2.5, 2.5)
    assert seconds(spans["reply"][0]) == (3.0, 3.5)
    assert seconds(spans["batch"][0]) == (2.5, 3.0), "no part of a call begins before it"
    assert seconds(spans["run"][0]) == (2.5, 2.6)


def test_the_batch_belongs_to_one_that_it_left_with():
    bench, batch = Bench(), record()
    follower, lead = trace(bench, batch), trace(bench, batch)
    follower.received_at = follower.submitted_at = 2.75
    spans = by_name(maker().spans_of([follower, lead]))
    assert spans["batch"][0].parent.span_id == lead.span_id
    assert seconds(spans["batch"][0]) == (2.0, 3.0)
    assert [len(span.links) for span in spans["ModelInfer"]] == [0, 1]


def test_long_texts_of_callers_are_cut():
    long = trace(Bench())
    long.model = long.request_id = "x" * 100_000
    (server,) = by_name(maker().spans_of([long]))["ModelInfer"]
    assert len(server.attributes["tensorferry.model"]) == 256
    assert len(server.attributes["tensorferry.request_id"]) == 256
