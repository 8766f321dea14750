"""A response's own timing breakdown, through real servers and the clients that people have."""

from __future__ import annotations

import queue

import grpc
import numpy as np
import pytest
from tests.integration.support import PATIENCE_S, error_of, x_request

KEYS = {
    "timing_total_us",
    "timing_queue_us",
    "timing_hold_us",
    "timing_run_us",
    "timing_batch_rows",
    "timing_batch_requests",
    "timing_batch_reason",
}


def timed_request(*values: float):
    request = x_request("gated", *values, request_id="r-1")
    request.parameters["timing"].bool_param = True
    return request


def test_a_response_tells_its_timing_on_request(stub):
    answer = stub.ModelInfer(timed_request(1.0, 2.0), timeout=PATIENCE_S)
    assert set(answer.parameters) == KEYS
    parameters = answer.parameters
    assert parameters["timing_batch_rows"].int64_param >= 2
    assert parameters["timing_batch_requests"].int64_param >= 1
    assert parameters["timing_batch_reason"].string_param
    parts = parameters["timing_queue_us"].int64_param + parameters["timing_run_us"].int64_param
    assert 0 < parts <= parameters["timing_total_us"].int64_param + 2, "each part is rounded"
    assert answer.id == "r-1"
    assert len(answer.raw_output_contents) == 1


def test_nobody_else_is_told(stub):
    assert not stub.ModelInfer(x_request("gated", 1.0), timeout=PATIENCE_S).parameters


def test_each_message_of_a_stream_may_ask(stub):
    requests = [timed_request(1.0), x_request("gated", 1.0)]
    timed, plain = stub.ModelStreamInfer(iter(requests), timeout=PATIENCE_S)
    assert set(timed.infer_response.parameters) == KEYS
    assert not plain.infer_response.parameters


def test_anything_but_a_bool_is_refused(stub):
    request = x_request("gated", 1.0)
    request.parameters["timing"].string_param = "yes"
    error = error_of(lambda: stub.ModelInfer(request, timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'timing' must be true or false" in error.details()


def test_the_unmodified_client_asks_and_reads(server):
    tritonclient = pytest.importorskip("tritonclient.grpc")
    with tritonclient.InferenceServerClient(server.grpc) as client:
        tensor = tritonclient.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), dtype=np.float32))
        result = client.infer("gated", [tensor], parameters={"timing": True})
        assert set(result.get_response().parameters) == KEYS
        answers: queue.SimpleQueue = queue.SimpleQueue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("gated", [tensor], parameters={"timing": True})
        result, error = answers.get(timeout=PATIENCE_S)
        client.stop_stream()
        assert error is None
        assert set(result.get_response().parameters) == KEYS
