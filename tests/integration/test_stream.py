"""ModelStreamInfer: answers in the order of the requests, whatever becomes of each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import numpy as np
import pytest
from tests.integration.conftest import Served
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
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Stub = pb_grpc.GRPCInferenceServiceStub


class Conversation:
    """A stream that sends when it is told to, and not before."""

    def __init__(self, stub: Stub) -> None:
        self._requests: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
        self.answers = stub.ModelStreamInfer(iter(self._requests.get, None))

    def say(self, request: pb.ModelInferRequest) -> None:
        self._requests.put(request)

    def hear(self) -> pb.ModelStreamInferResponse:
        return next(self.answers)

    def finish(self) -> None:
        """Half-close: no more requests."""
        self._requests.put(None)


@pytest.fixture
def conversation(stub: Stub) -> Iterator[Conversation]:
    """A conversation that is cancelled in the end, if it isn't over."""
    opened = Conversation(stub)
    yield opened
    opened.finish()
    opened.answers.cancel()


def test_each_answer_comes_when_it_is_ready_and_not_at_the_end(conversation: Conversation):
    for number in range(3):
        conversation.say(x_request("raising", number, request_id=str(number)))
        answer = conversation.hear()
        assert answer.error_message == ""
        assert answer.infer_response.id == str(number)
        assert y_of(answer.infer_response) == [2.0 * number]


def test_answers_keep_the_requests_order_when_a_later_one_is_ready_first(
    conversation: Conversation, stub: Stub, gate: Gate
):
    running = occupy(gate, stub, "gated")
    conversation.say(x_request("gated", 1.0, request_id="slow"))
    conversation.say(x_request("raising", 2.0, request_id="fast"))
    counted = stub.ModelStatistics(pb.ModelStatisticsRequest(name="raising")).model_stats[0].inference_count
    conversation.say(x_request("raising", 3.0, request_id="later"))
    wait_until(
        lambda: (
            stub.ModelStatistics(pb.ModelStatisticsRequest(name="raising")).model_stats[0].inference_count
            > counted
        ),
        "the fast one has been answered by its model",
    )
    gate.open()
    assert [conversation.hear().infer_response.id for _ in range(3)] == ["slow", "fast", "later"]
    running.result(PATIENCE_S)


def test_several_models_in_one_stream(stub: Stub):
    features = np.random.default_rng(2).standard_normal((2, 30)).astype(np.float32)
    alone = outputs_of(stub.ModelInfer(request_of("mlp", {"features": features})))["score"]
    requests = [
        request_of("mlp", {"features": features}),
        x_request("versioned", 5.0),
        request_of("plain", {"x": np.ones((2, 3), np.float32)}),
        request_of("identity_int64", {"x": np.array([[1, -2]])}),
    ]
    answers = [answer.infer_response for answer in stub.ModelStreamInfer(iter(requests))]
    assert [answer.model_name for answer in answers] == ["mlp", "versioned", "plain", "identity_int64"]
    np.testing.assert_allclose(outputs_of(answers[0])["score"], alone, rtol=1e-6)
    assert outputs_of(answers[3])["y"].tolist() == [[1, -2]]


def test_an_error_stands_in_its_place_with_its_requests_id(stub: Stub):
    requests = [
        x_request("raising", 1.0, request_id="a"),
        x_request("absent", 2.0, request_id="b"),
        x_request("raising", -1.0, request_id="c"),  # the model raises
        x_request("raising", 4.0, request_id="d"),
    ]
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    assert "absent" in answers[1].error_message
    assert "error id" in answers[2].error_message
    assert y_of(answers[3].infer_response) == [8.0]


def test_half_close_ends_the_stream_once_all_is_answered(conversation: Conversation, stub: Stub, gate: Gate):
    running = occupy(gate, stub, "gated")
    for number in range(5):
        conversation.say(x_request("gated", number))
    conversation.finish()
    gate.open()
    assert [y_of(answer.infer_response) for answer in conversation.answers] == [
        [2.0 * number] for number in range(5)
    ]
    assert conversation.answers.code() is grpc.StatusCode.OK
    running.result(PATIENCE_S)


def test_a_stream_without_a_request_ends_well(stub: Stub):
    answers = stub.ModelStreamInfer(iter(()))
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_five_hundred_pipelined_messages_are_answered_in_order(stub: Stub):
    requests = [x_request("raising", number, request_id=str(number)) for number in range(500)]
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(500)]
    assert [y_of(answer.infer_response) for answer in answers] == [[2.0 * number] for number in range(500)]


def test_more_messages_than_a_stream_holds_wait_for_their_turn(
    conversation: Conversation, stub: Stub, server: Served, gate: Gate
):
    running = occupy(gate, stub, "gated")
    for number in range(300):
        conversation.say(x_request("gated", number))
    wait_until(lambda: server.waiting("gated") >= 100, "the stream has filled its bound")
    assert server.waiting("gated") <= 130
    conversation.finish()
    gate.open()
    answers = list(conversation.answers)
    assert [y_of(answer.infer_response) for answer in answers] == [[2.0 * number] for number in range(300)]
    running.result(PATIENCE_S)


def test_cancelling_a_stream_cancels_what_waits(
    conversation: Conversation, stub: Stub, server: Served, gate: Gate
):
    running = occupy(gate, stub, "gated")
    canceled = sample(server.http, "nv_inference_request_failure_total", "gated", reason="CANCELED")
    for number in range(20):
        conversation.say(x_request("gated", number))
    wait_until(lambda: server.waiting("gated") == 20, "all are queued")
    conversation.answers.cancel()
    wait_until(lambda: server.waiting("gated") == 0, "the queue is empty")
    assert (
        sample(server.http, "nv_inference_request_failure_total", "gated", reason="CANCELED") == canceled + 20
    )
    gate.open()
    assert y_of(running.result(PATIENCE_S)) == [200.0]


def test_cancelling_a_stream_that_is_full_leaves_nothing_behind(
    conversation: Conversation, stub: Stub, server: Served, gate: Gate
):
    running = occupy(gate, stub, "gated")
    for number in range(300):
        conversation.say(x_request("gated", number))
    wait_until(lambda: server.waiting("gated") >= 100, "the stream has filled its bound")
    conversation.answers.cancel()
    wait_until(lambda: server.waiting("gated") == 0, "the queue is empty")
    gate.open()
    assert y_of(running.result(PATIENCE_S)) == [200.0]


def test_a_streams_deadline_ends_it_and_what_waits(stub: Stub, server: Served, gate: Gate):
    running = occupy(gate, stub, "gated")
    requests: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
    answers = stub.ModelStreamInfer(iter(requests.get, None), timeout=0.3)
    for number in range(3):
        requests.put(x_request("gated", number))
    # Messages that the server had refused in time may come before the end of the stream.
    assert error_of(lambda: [None for answer in answers if "deadline" in answer.error_message]).code() is (
        grpc.StatusCode.DEADLINE_EXCEEDED
    )
    requests.put(None)
    wait_until(lambda: server.waiting("gated") == 0, "the queue is empty")
    gate.open()
    running.result(PATIENCE_S)


def test_a_requests_timeout_in_a_stream_is_its_own(conversation: Conversation, stub: Stub, gate: Gate):
    running = occupy(gate, stub, "gated")
    hurried = x_request("gated", 1.0, request_id="hurried")
    hurried.parameters["timeout"].int64_param = 20_000
    conversation.say(hurried)
    conversation.say(x_request("gated", 2.0, request_id="patient"))
    answer = conversation.hear()
    assert answer.infer_response.id == "hurried"
    assert "was not run" in answer.error_message
    gate.open()
    assert y_of(conversation.hear().infer_response) == [4.0]
    running.result(PATIENCE_S)


def test_many_streams_at_once(server: Served, run: Callable[..., object]):
    async def talk(stub: Stub, which: int) -> list[list[float]]:
        requests = [x_request("raising", which * 100 + number) for number in range(50)]
        return [y_of(answer.infer_response) async for answer in stub.ModelStreamInfer(iter(requests))]

    async def scenario():
        import asyncio

        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            return await asyncio.gather(*(talk(stub, which) for which in range(20)))

    expected = [[[2.0 * (which * 100 + number)] for number in range(50)] for which in range(20)]
    assert run(scenario()) == expected


def test_bytes_that_are_no_request_are_an_error_message(channel: grpc.Channel):
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    bodies = [b"\xff", x_request("raising", 3.0).SerializeToString()]
    refused, answered = list(call(iter(bodies)))
    assert "inference.ModelInferRequest" in refused.error_message
    assert y_of(answered.infer_response) == [6.0]
