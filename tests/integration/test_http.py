"""The HTTP port: probes and metrics."""

from __future__ import annotations

import json

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import Served
from tests.integration.support import error_of, fetch, request_of, sample, samples_of, x_request

from tensorferry.wire import open_inference_pb2 as pb


def test_live_and_ready_say_yes(server: Served):
    assert fetch(server.http, "/healthz/live")[0] == 200
    status, body, kind = fetch(server.http, "/healthz/ready")
    assert status == 200
    assert json.loads(body) == {"ready": True, "not_ready": {}}
    assert kind.startswith("application/json")


def test_an_unknown_path_is_404(server: Served):
    assert fetch(server.http, "/")[0] == 404


def test_metrics_are_prometheus_text_with_types_and_helps(server: Served):
    status, body, kind = fetch(server.http, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["nv_inference_request_success"].type == "counter"
    assert families["nv_inference_pending_request_count"].type == "gauge"
    assert families["tensorferry_batch_rows"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_counters_equal_model_statistics(server: Served, stub):
    for rows in (1, 3, 8):
        stub.ModelInfer(request_of("identity_uint8", {"x": np.zeros((rows, 2), np.uint8)}))
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="identity_uint8")).model_stats
    durations = stats.inference_stats

    def counter(name: str) -> float:
        return sample(server.http, name, "identity_uint8")

    assert counter("nv_inference_request_success_total") == durations.success.count >= 3
    assert counter("nv_inference_count_total") == stats.inference_count >= 12
    assert counter("nv_inference_exec_count_total") == stats.execution_count >= 3
    for name, duration in (
        ("request", durations.success),
        ("queue", durations.queue),
        ("compute_input", durations.compute_input),
        ("compute_infer", durations.compute_infer),
        ("compute_output", durations.compute_output),
    ):
        assert counter(f"nv_inference_{name}_duration_us_total") == duration.ns / 1000, name


def test_the_batch_histogram_is_cumulative_and_adds_up_to_the_batches(server: Served, stub):
    for rows in (1, 2, 8):
        stub.ModelInfer(request_of("identity_int8", {"x": np.zeros((rows, 2), np.int8)}))
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="identity_int8")).model_stats
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples_of(server.http).items()
        if name == "tensorferry_batch_rows_bucket" and ("model", "identity_int8") in labels
    )
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == (float("inf"), stats.execution_count)
    of_one_row = sum(batch.compute_infer.count for batch in stats.batch_stats if batch.batch_size == 1)
    assert dict(buckets)[1.0] == of_one_row
    assert sample(server.http, "tensorferry_batch_rows_sum", "identity_int8") == stats.inference_count


def test_a_failure_is_counted_by_its_reason(server: Served, stub):
    def backend_failures() -> float:
        return sample(server.http, "nv_inference_request_failure_total", "raising", reason="BACKEND")

    before = backend_failures()
    error_of(lambda: stub.ModelInfer(x_request("raising", -1.0)))
    assert backend_failures() == before + 1


def test_nothing_stays_in_flight(server: Served, stub):
    stub.ModelInfer(x_request("raising", 1.0))
    error_of(lambda: stub.ModelInfer(x_request("raising", -1.0)))
    assert samples_of(server.http)["tensorferry_in_flight_bytes", frozenset()] == 0
