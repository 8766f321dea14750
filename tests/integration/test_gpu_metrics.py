"""A whole server whose GPU is emulated tells of it: to Prometheus, on the live page's feed and by RPC."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.support import PATIENCE_S, fetch, request_of

from tensorferry.testing.models import write_mlp
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

EMULATED = (sys.executable, "-m", "tensorferry.testing.emulated_server", "serve")
ON_GPU = "dynamic_batching { }\ninstance_group { kind: KIND_GPU gpus: 0 }\n"
CALLS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that has answered some calls."""
    root = tmp_path_factory.mktemp("gpu")
    write_mlp(root / "models", options=ON_GPU)
    with ServerProcess(root / "models", root / "log", program=EMULATED) as running:
        with grpc.insecure_channel(running.grpc_address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            for number in range(CALLS):
                features = np.zeros((1 + number % 3, 30), np.float32)
                stub.ModelInfer(request_of("mlp", {"features": features}), timeout=PATIENCE_S)
        yield running


def told(server: ServerProcess) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The series of /metrics by their names."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(fetch(server.http_address, "/metrics")[1].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_prometheus_hears_of_every_batch_on_the_gpu(server: ServerProcess):
    series = told(server)
    batches = series["tensorferry_device_batches_total"]
    assert {labels["graph"] for labels, _ in batches} == {"true", "false"}
    ((_, executed),) = series["tensorferry_run_seconds_count"]
    assert sum(value for _, value in batches) == executed == CALLS
    for name in ("copy_in", "run", "copy_out"):
        ((labels, seconds),) = series[f"tensorferry_device_{name}_seconds_total"]
        assert labels == {"model": "mlp", "version": "1", "device": "cuda:0"}
        assert seconds > 0
    assert series["tensorferry_device_lost"] == [({"model": "mlp", "version": "1"}, 0)]


def test_without_nvml_there_are_no_series_of_gpus_and_the_log_says_why_once(server: ServerProcess):
    for _ in range(3):
        series = told(server)
    assert "nv_gpu_utilization" not in series
    assert server.log().count("no metrics of GPUs") == 1


def test_statistics_tell_what_the_model_holds(server: ServerProcess):
    with grpc.insecure_channel(server.grpc_address) as channel:
        asked = pb.ModelStatisticsRequest(name="mlp")
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        (statistics,) = stub.ModelStatistics(asked, timeout=PATIENCE_S).model_stats
    usage = {(each.type, each.id): each.byte_size for each in statistics.memory_usage}
    assert set(usage) == {("GPU", 0), ("CPU_PINNED", 0)}
    of_device = [
        value
        for labels, value in told(server)["tensorferry_device_memory_bytes"]
        if labels["kind"] != "pinned"
    ]
    assert usage["GPU", 0] == sum(of_device) > 0


def test_top_tells_where_the_model_runs(server: ServerProcess):
    command = [sys.executable, "-m", "tensorferry", "top", "--http", server.http_address]
    done = subprocess.run([*command, "--json"], capture_output=True, timeout=PATIENCE_S, check=True)
    frame = json.loads(done.stdout)
    assert frame["gpus"] == []
    assert frame["models"][0]["device"]["names"] == ["cuda:0"]
    picture = subprocess.run([*command, "--once"], capture_output=True, timeout=PATIENCE_S, check=True)
    assert "on cuda:0:" in picture.stdout.decode()
