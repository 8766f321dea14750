"""Requests of many callers in one batch: right answers, deadlines, cancellation and bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import numpy as np
import tritonclient.grpc as triton
from tests.integration.conftest import MAX_WAITING, Served
from tests.integration.support import (
    PATIENCE_S,
    error_of,
    occupy,
    outputs_of,
    request_of,
    sample,
    wait_until,
    x_request,
    y_of,
)

from tensorferry.testing.gate import Gate
from tensorferry.testing.models import MARKER, Mlp
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry_client import Client

Stub = pb_grpc.GRPCInferenceServiceStub


def statistics(stub: Stub, model: str) -> pb.ModelStatistics:
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    return stats


def failures(server: Served, model: str, reason: str) -> float:
    return sample(server.http, "nv_inference_request_failure_total", model, reason=reason)


def test_requests_that_wait_together_run_together(stub: Stub, server: Served, gate: Gate):
    running = occupy(gate, stub, "gated")
    before = statistics(stub, "gated")
    calls = [stub.ModelInfer.future(x_request("gated", number)) for number in range(8)]
    wait_until(lambda: server.waiting("gated") == 8, "all are queued")
    gate.open()
    assert [y_of(call.result(PATIENCE_S)) for call in calls] == [[2.0 * number] for number in range(8)]
    after = statistics(stub, "gated")
    assert y_of(running.result(PATIENCE_S)) == [200.0]
    assert after.inference_count - before.inference_count == 9  # the one that ran, and the eight
    assert after.execution_count - before.execution_count == 3  # in batches of 1, 4 and 4


def test_a_request_that_makes_the_model_raise_fails_alone(stub: Stub, server: Served):
    # This model holds its batch open, so that the 31 requests meet in batches of 16 rows.
    before = statistics(stub, "raising_together")
    values = [MARKER if number == 7 else float(number) for number in range(31)]
    calls = [stub.ModelInfer.future(x_request("raising_together", value)) for value in values]
    errors = {}
    for value, call in zip(values, calls, strict=True):
        try:
            assert y_of(call.result(PATIENCE_S)) == [2.0 * value]
        except grpc.RpcError as error:
            errors[value] = error
    assert list(errors) == [MARKER]
    assert errors[MARKER].code() is grpc.StatusCode.INTERNAL
    after = statistics(stub, "raising_together")
    assert after.inference_stats.success.count - before.inference_stats.success.count == 30
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    # Halved until the poison is alone: fewer runs than requests, so the others did travel together.
    assert after.execution_count - before.execution_count < 30


#: How a call ends whose time runs out behind a busy model: at its deadline, which the caller's own
#: timer may come to first, or at once, where the server knows that the model takes too long.
LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
LATE_REASONS = ("EXPIRED", "CANCELED", "REJECTED")


def test_a_calls_deadline_ends_it_while_the_model_is_busy(stub: Stub, server: Served, gate: Gate):
    running = occupy(gate, stub, "gated")
    before = statistics(stub, "gated")
    ended = sum(failures(server, "gated", reason) for reason in LATE_REASONS)
    calls = [stub.ModelInfer.future(x_request("gated", number), timeout=0.1) for number in range(5)]
    for call in calls:
        assert error_of(lambda call=call: call.result(PATIENCE_S)).code() in LATE
    wait_until(lambda: server.waiting("gated") == 0, "the queue is empty")
    gate.open()
    assert y_of(running.result(PATIENCE_S)) == [200.0]
    after = statistics(stub, "gated")
    assert after.inference_count - before.inference_count == 1, "an expired request was run"
    assert sum(failures(server, "gated", reason) for reason in LATE_REASONS) - ended == 5


def test_a_deadline_that_comes_during_the_run_ends_the_call(stub: Stub, gate: Gate):
    gate.close()
    call = stub.ModelInfer.future(x_request("gated", 1.0), timeout=0.2)
    assert error_of(lambda: call.result(PATIENCE_S)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open()
    assert y_of(stub.ModelInfer(x_request("gated", 2.0))) == [4.0]


def test_a_cancelled_request_that_waits_never_runs(stub: Stub, server: Served, gate: Gate):
    running = occupy(gate, stub, "gated")
    before = statistics(stub, "gated")
    canceled = failures(server, "gated", "CANCELED")
    calls = [stub.ModelInfer.future(x_request("gated", number)) for number in range(10)]
    wait_until(lambda: server.waiting("gated") == 10, "all are queued")
    for call in calls[::2]:
        call.cancel()
    wait_until(lambda: server.waiting("gated") == 5, "the cancelled ones have left the queue")
    gate.open()
    assert [y_of(call.result(PATIENCE_S)) for call in calls[1::2]] == [[2.0 * n] for n in range(1, 10, 2)]
    running.result(PATIENCE_S)
    assert statistics(stub, "gated").inference_count - before.inference_count == 6
    assert failures(server, "gated", "CANCELED") - canceled == 5


def test_a_caller_that_goes_away_takes_its_requests_with_it(stub: Stub, server: Served, gate: Gate):
    running = occupy(gate, stub, "gated")
    with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        leaving = pb_grpc.GRPCInferenceServiceStub(channel)
        calls = [leaving.ModelInfer.future(x_request("gated", number)) for number in range(6)]
        wait_until(lambda: server.waiting("gated") == 6, "all are queued")
    wait_until(lambda: server.waiting("gated") == 0, "the queue is empty")
    assert all(call.done() for call in calls)
    gate.open()
    assert y_of(running.result(PATIENCE_S)) == [200.0]


def test_a_full_queue_refuses_at_once_and_harms_nobody(stub: Stub, server: Served, bounded_gate: Gate):
    running = occupy(bounded_gate, stub, "bounded")
    rejected = failures(server, "bounded", "REJECTED")
    waiting = [stub.ModelInfer.future(x_request("bounded", number)) for number in range(MAX_WAITING)]
    wait_until(lambda: server.waiting("bounded") == MAX_WAITING, "the queue is full")
    for _ in range(3):
        error = error_of(lambda: stub.ModelInfer(x_request("bounded", 9.0)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bounded" in error.details()
        assert f"max_queue_size is {MAX_WAITING}" in error.details()
    assert failures(server, "bounded", "REJECTED") - rejected == 3
    bounded_gate.open()
    assert [y_of(call.result(PATIENCE_S)) for call in waiting] == [[0.0], [2.0], [4.0]]
    running.result(PATIENCE_S)
    assert y_of(stub.ModelInfer(x_request("bounded", 9.0))) == [18.0]


def test_a_busy_model_holds_no_other_up(stub: Stub, gate: Gate):
    running = occupy(gate, stub, "gated")
    assert y_of(stub.ModelInfer(x_request("raising", 3.0))) == [6.0]
    assert not running.done()
    gate.open()
    running.result(PATIENCE_S)


def test_two_thousand_concurrent_requests_of_three_clients_are_all_answered_right(
    server: Served, run: Callable[..., object]
):
    rng = np.random.default_rng(3)
    batches = [rng.standard_normal((rng.integers(1, 9), 30)).astype(np.float32) for _ in range(2000)]
    got: dict[int, np.ndarray] = {}

    def by_triton(numbers: range) -> None:
        with triton.InferenceServerClient(server.grpc) as client:
            for number in numbers:
                given = triton.InferInput("features", list(batches[number].shape), "FP32")
                given.set_data_from_numpy(batches[number])
                got[number] = client.infer("mlp", [given]).as_numpy("score")

    def by_our_client(numbers: range) -> None:
        with Client(server.grpc) as client:
            for number in numbers:
                got[number] = client.infer("mlp", {"features": batches[number]}).outputs["score"]

    async def by_stub(numbers: range) -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            free = asyncio.Semaphore(64)

            async def one(number: int) -> None:
                async with free:
                    answer = await stub.ModelInfer(request_of("mlp", {"features": batches[number]}))
                    got[number] = outputs_of(answer)["score"]

            await asyncio.gather(*(one(number) for number in numbers))

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(by_triton, range(start, 400, 4)) for start in range(4)]
        others += [pool.submit(by_our_client, range(400 + start, 800, 4)) for start in range(4)]
        run(by_stub(range(800, 2000)))
        for other in others:
            other.result(PATIENCE_S)
    assert len(got) == 2000
    expected = offline(np.concatenate(batches))
    start = 0
    for number, batch in enumerate(batches):
        stop = start + len(batch)
        np.testing.assert_allclose(got[number], expected[start:stop], rtol=1e-5, atol=1e-6)
        start = stop


def offline(features: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return Mlp()(torch.from_numpy(features)).numpy()
