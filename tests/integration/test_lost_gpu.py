"""A whole server whose model is on a GPU (an emulated one) that fails for good."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.support import PATIENCE_S, x_request, y_of

from tensorferry.app import running
from tensorferry.config import ServerConfig
from tensorferry.execution.backends import torch_gpu
from tensorferry.testing.emulated_gpu import EmulatedDevice, EmulatedGpu
from tensorferry.testing.models import write_identity
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc


@pytest.fixture
def device():
    emulated = EmulatedDevice("cuda:0")
    with torch_gpu.opened_by(lambda _: EmulatedGpu(emulated)):
        yield emulated


def test_every_probe_says_that_the_server_is_neither_ready_nor_live_and_http_says_why(
    device, transport, tmp_path
):
    write_identity(tmp_path, options="dynamic_batching { }\ninstance_group { kind: KIND_GPU gpus: 0 }")
    config = ServerConfig(model_repository=tmp_path, grpc_port=0, http_port=0, transport=transport)

    async def scenario():
        async with (
            asyncio.timeout(PATIENCE_S),
            running(config) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
            aiohttp.ClientSession(f"http://127.0.0.1:{server.http_port}") as http,
        ):
            stub, health = pb_grpc.GRPCInferenceServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            liveness = health.Watch(health_pb2.HealthCheckRequest(service="liveness"))
            for each in (watch, liveness):
                assert (await each.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert (await http.get("/healthz/live")).status == 200
            assert y_of(await stub.ModelInfer(x_request("identity", 7))) == [7.0]
            assert (await http.get("/healthz/ready")).status == 200

            device.lose()
            for _ in range(2):  # the one that finds it, and the next
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ModelInfer(x_request("identity", 7))
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "cuda:0" in (refused.value.details() or "")

            for each in (watch, liveness):
                assert (await each.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                each.cancel()
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="identity"))).ready
            assert not (await stub.ServerLive(pb.ServerLiveRequest())).live
            for path in ("/healthz/ready", "/healthz/live"):
                probe = await http.get(path)
                assert probe.status == 503
                assert "cuda:0" in json.dumps(await probe.json())

    asyncio.run(scenario())
