"""A repository with something wrong in it, and one that isn't loaded yet."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.support import PATIENCE_S, error_of, fetch, wait_until, x_request, y_of

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import Mlp, write_mlp, write_model, write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

MODEL_TENSORS = (
    'input { name: "features" data_type: TYPE_FP32 dims: 30 }\n'
    'output { name: "score" data_type: TYPE_FP32 dims: 1 }\n'
)


def write_broken(root: Path) -> dict[str, str]:
    """Write one model for each way to be broken; return a word that its reason must have."""
    (root / "corrupt" / "1").mkdir(parents=True)
    (root / "corrupt" / "1" / "model.pt").write_bytes(b"PK\x03\x04 not a model")
    (root / "empty").mkdir()
    write_model(root, "misspelt", Mlp(), "max_batch_size: 8\nmax_batchsize: 8\n" + MODEL_TENSORS)
    write_model(root, "misshapen", Mlp(), "max_batch_size: 8\n" + MODEL_TENSORS.replace("30", "31"))
    write_model(root, "renamed", Mlp(), 'name: "other"\nmax_batch_size: 8\n' + MODEL_TENSORS)
    return {
        "corrupt/1": "is not a TorchScript model",
        "empty": "no version directory",
        "misspelt": "max_batchsize",
        "misshapen/1": "raises on a batch of 1 rows",
        "renamed": "'other'",
    }


@pytest.fixture
def broken(launch: Launch, tmp_path: Path) -> tuple[ServerProcess, dict[str, str], str]:
    """A server of one good model and every broken one; their reasons' words; its ready line."""
    reasons = write_broken(tmp_path / "models")
    write_raising(tmp_path / "models", "good")
    process = launch(tmp_path / "models")
    return process, reasons, process.wait_ready()


def test_broken_models_leave_the_others_serving_and_are_named_with_their_reasons(
    broken: tuple[ServerProcess, dict[str, str], str],
):
    process, reasons, line = broken
    assert line.startswith("ready, except ")
    assert sorted(line.removeprefix("ready, except ").split(", ")) == sorted(reasons)

    status, body, _ = fetch(process.http_address, "/healthz/ready")
    assert status == 503
    not_ready = json.loads(body)["not_ready"]
    assert sorted(not_ready) == sorted(reasons)
    assert fetch(process.http_address, "/healthz/live")[0] == 200
    assert fetch(process.http_address, "/metrics")[0] == 200

    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert y_of(stub.ModelInfer(x_request("good", 4.0))) == [8.0]
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        states = {f"{model.name}/{model.version}".rstrip("/"): model for model in index}
        for name, word in reasons.items():
            model = name.partition("/")[0]
            assert states[name].state == "UNAVAILABLE"
            assert word in states[name].reason
            assert word in not_ready[name]
            assert word in process.log()
            assert not stub.ModelReady(pb.ModelReadyRequest(name=model)).ready
            error = error_of(lambda model=model: stub.ModelInfer(x_request(model, 1.0)))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert word in error.details()
        ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        assert [model.name for model in ready] == ["good"]
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="good")).status == SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service="corrupt")).status == NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.fixture
def loading(launch: Launch, tmp_path: Path) -> Iterator[tuple[ServerProcess, Gate]]:
    """A server that listens while its model's warm-up waits at a closed gate."""
    gate = write_gated(tmp_path / "models")
    gate.close()
    process = launch(tmp_path / "models")
    process.wait_listening()
    yield process, gate
    gate.open()


def test_a_model_that_loads_is_unavailable_until_it_is_ready(loading: tuple[ServerProcess, Gate]):
    process, gate = loading
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=2 * PATIENCE_S)
        # From the first moment, when not even the model's file has been read:
        assert next(watch).status == NOT_SERVING
        error = error_of(lambda: stub.ModelInfer(x_request("gated", 1.0)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "'gated'" in error.details()
        assert "LOADING" in error.details()
        wait_until(lambda: gate.entered > 0, "the warm-up runs")
        assert (
            error_of(lambda: stub.ModelInfer(x_request("gated", 1.0))).code() is grpc.StatusCode.UNAVAILABLE
        )
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="gated")).ready
        assert error_of(lambda: stub.ModelInfer(x_request("other", 1.0))).code() is grpc.StatusCode.NOT_FOUND
        (model,) = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert (model.name, model.state) == ("gated", "LOADING")
        status, body, _ = fetch(process.http_address, "/healthz/ready")
        assert (status, json.loads(body)["not_ready"]) == (503, {"gated/1": "LOADING"})
        assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
        gate.open()
        assert process.wait_ready() == "ready"
        assert next(watch).status == SERVING
        watch.cancel()
        assert fetch(process.http_address, "/healthz/ready")[0] == 200
        assert y_of(stub.ModelInfer(x_request("gated", 1.0))) == [2.0]


def test_a_server_that_still_loads_stops_when_it_is_told_to(loading: tuple[ServerProcess, Gate]):
    process, gate = loading
    wait_until(lambda: gate.entered > 0, "the warm-up runs")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_two_models_load_at_the_same_time_and_the_ready_one_serves(launch: Launch, tmp_path: Path):
    gate = write_gated(tmp_path / "models")
    gate.close()
    write_mlp(tmp_path / "models")
    write_raising(tmp_path / "models")
    process = launch(tmp_path / "models")
    process.wait_listening()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        wait_until(lambda: stub.ModelReady(pb.ModelReadyRequest(name="raising")).ready, "one is ready")
        assert y_of(stub.ModelInfer(x_request("raising", 1.0))) == [2.0]
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        gate.open()
        assert process.wait_ready() == "ready"
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
