"""``grpc.health.v1`` and server reflection."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.integration.support import PATIENCE_S, error_of, x_request, y_of

from tensorferry.service.inference import SERVICE
from tensorferry.wire import open_inference_pb2 as pb

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def health(channel: grpc.Channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", SERVICE, "liveness", "mlp", "versioned"])
def test_health_check_says_serving(health: health_pb2_grpc.HealthStub, service: str):
    assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_health_check_of_an_unknown_service_is_not_found(health: health_pb2_grpc.HealthStub):
    error = error_of(lambda: health.Check(health_pb2.HealthCheckRequest(service="absent")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_begins_with_the_present_state(health: health_pb2_grpc.HealthStub):
    known = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_S)
    assert next(known).status == SERVING
    known.cancel()
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="absent"), timeout=PATIENCE_S)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_lists_the_services(channel: grpc.Channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
        "tensorferry.ModelRollout",
    ]


def test_reflection_describes_every_method(channel: grpc.Channel):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    described = {method.name for method in pool.FindServiceByName(SERVICE).methods}
    assert described == {
        method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    assert pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Watch"].server_streaming


def test_a_request_can_be_built_and_sent_from_reflection_alone(channel: grpc.Channel):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    request = message_factory.GetMessageClass(method.input_type)(model_name="raising", id="reflected")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 1]).contents.fp32_contents.extend([1.5, 2.5])
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    response = call(request.SerializeToString())
    assert response.id == "reflected"
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [3.0, 5.0]


def test_reflection_of_an_unknown_symbol_is_an_answer_and_no_failure(channel: grpc.Channel, stub):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    with pytest.raises(KeyError):
        pool.FindServiceByName("absent.Service")
    assert y_of(stub.ModelInfer(x_request("raising", 1.0))) == [2.0]
