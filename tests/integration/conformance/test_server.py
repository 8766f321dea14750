"""The server itself, as each client sees it: inference, streams, errors, health and reflection."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests.integration.conformance.calls import Call, Client, Outcome
from tests.integration.conformance.clients import CLIENTS
from tests.integration.conftest import Served
from tests.integration.support import occupy, request_of, wait_until, x_request, y_of

from tensorferry.testing.gate import Gate
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

INFERENCE = "/inference.GRPCInferenceService/"
Stub = pb_grpc.GRPCInferenceServiceStub


@pytest.fixture(scope="module", params=CLIENTS)
def caller(request: pytest.FixtureRequest, server: Served) -> Iterator[Client]:
    """A client, connected to the session's server."""
    connected = CLIENTS[request.param](server.grpc)
    yield connected
    connected.close()


def unary(caller: Client, path: str, request: Message) -> Outcome:
    return caller.start(Call(path, (request.SerializeToString(),))).outcome()


def bidi(path: str, *requests: Message) -> Call:
    return Call(path, tuple(request.SerializeToString() for request in requests), True, True)


def test_an_inference_is_answered_with_the_bytes_that_grpcio_gets(caller: Client, stub: Stub):
    features = np.random.default_rng(5).standard_normal((3, 30)).astype(np.float32)
    request = request_of("mlp", {"features": features}, request_id="one")
    outcome = unary(caller, INFERENCE + "ModelInfer", request)
    assert (outcome.code, outcome.details) == (grpc.StatusCode.OK, "")
    assert outcome.messages == (stub.ModelInfer(request).SerializeToString(),)


def test_a_large_tensor_passes(caller: Client):
    request = request_of("bytes", {"x": np.arange(750_000, dtype=np.float32).reshape(1, -1)})
    outcome = unary(caller, INFERENCE + "ModelInfer", request)
    assert outcome.code is grpc.StatusCode.OK
    answer = pb.ModelInferResponse.FromString(outcome.messages[0])
    assert answer.raw_output_contents == request.raw_input_contents


@pytest.mark.parametrize(
    "request_",
    [x_request("absent", 1.0), x_request("mlp", 1.0), x_request("raising", -1.0)],
    ids=["model", "input", "raises"],
)
def test_an_error_has_the_status_and_the_text_that_grpcio_gets(
    caller: Client, stub: Stub, request_: pb.ModelInferRequest
):
    with pytest.raises(grpc.RpcError) as seen:
        stub.ModelInfer(request_)
    outcome = unary(caller, INFERENCE + "ModelInfer", request_)
    assert outcome.code is seen.value.code()
    # What the model raises is answered with an error id, which is another each time.
    assert outcome.details.partition("error id")[0] == seen.value.details().partition("error id")[0]


def test_a_stream_of_inferences_is_answered_in_order(caller: Client):
    requests = [x_request("raising", number, request_id=str(number)) for number in range(20)]
    requests.insert(7, x_request("absent", 1.0, request_id="bad"))
    outcome = caller.start(bidi(INFERENCE + "ModelStreamInfer", *requests)).outcome()
    assert outcome.code is grpc.StatusCode.OK
    answers = [pb.ModelStreamInferResponse.FromString(message) for message in outcome.messages]
    assert [answer.infer_response.id for answer in answers] == [request.id for request in requests]
    assert [bool(answer.error_message) for answer in answers] == [request.id == "bad" for request in requests]
    assert y_of(answers[-1].infer_response) == [38.0]


def test_an_inference_that_is_cancelled_leaves_the_queue(
    caller: Client, stub: Stub, server: Served, gate: Gate
):
    running = occupy(gate, stub, "gated")
    waiting = caller.start(Call(INFERENCE + "ModelInfer", (x_request("gated", 1.0).SerializeToString(),)))
    wait_until(lambda: server.waiting("gated") == 1, "the second request waits")
    waiting.cancel()
    assert waiting.outcome().code is grpc.StatusCode.CANCELLED
    wait_until(lambda: server.waiting("gated") == 0, "the cancelled request is gone")
    assert not running.done()


def test_an_inference_past_its_deadline_leaves_the_queue(
    caller: Client, stub: Stub, server: Served, gate: Gate
):
    running = occupy(gate, stub, "gated")
    request = x_request("gated", 1.0).SerializeToString()
    outcome = caller.start(Call(INFERENCE + "ModelInfer", (request,), timeout_s=0.1)).outcome()
    # At its deadline, or at once where the server knows by now that this model takes longer.
    assert outcome.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    wait_until(lambda: server.waiting("gated") == 0, "the late request is gone")
    assert not running.done()


def test_health_is_checked(caller: Client):
    outcome = unary(caller, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
    assert health_pb2.HealthCheckResponse.FromString(outcome.messages[0]).status == 1
    outcome = unary(caller, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="absent"))
    assert outcome.code is grpc.StatusCode.NOT_FOUND


def test_health_is_watched_until_the_deadline(caller: Client):
    request = health_pb2.HealthCheckRequest().SerializeToString()
    watch = Call("/grpc.health.v1.Health/Watch", (request,), response_streaming=True, timeout_s=0.2)
    outcome = caller.start(watch).outcome()
    assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [health_pb2.HealthCheckResponse.FromString(each).status for each in outcome.messages] == [1]


def test_reflection_lists_the_services(caller: Client):
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    outcome = caller.start(bidi(path, request, request)).outcome()
    assert (outcome.code, len(outcome.messages)) == (grpc.StatusCode.OK, 2)
    answer = reflection_pb2.ServerReflectionResponse.FromString(outcome.messages[1])
    services = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
