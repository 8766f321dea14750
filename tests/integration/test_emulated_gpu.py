"""A whole server whose models are on a GPU, which is emulated: right answers, and nothing races."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from tests.integration.support import PATIENCE_S, sample, x_request, y_of

from tensorferry.testing.models import write_identity, write_mlp
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

PROGRAM = (sys.executable, "-m", "tensorferry.testing.emulated_server", "serve")
ON_GPU = "dynamic_batching { }\ninstance_group { kind: KIND_GPU count: 2 }\n"
CALLERS, CALLS = 6, 40


def test_models_on_an_emulated_gpu_answer_right_and_never_race(tmp_path: Path):
    write_identity(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    write_mlp(tmp_path / "models", max_batch_size=8, options=ON_GPU)
    # Leaving requires the exit status 0, and a race makes it 3.
    with (
        ServerProcess(tmp_path / "models", tmp_path / "log", program=PROGRAM) as process,
        grpc.insecure_channel(process.grpc_address) as channel,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)

        def call(caller: int) -> int:
            right = 0
            for turn in range(CALLS):
                values = [1000.0 * caller + turn] * (1 + turn % 5)
                answer = stub.ModelInfer(x_request("identity", *values), timeout=PATIENCE_S)
                right += y_of(answer) == values
            return right

        assert list(pool.map(call, range(CALLERS))) == [CALLS] * CALLERS
        labels = {"device": "cuda:0"}
        runs = [
            sample(
                process.http_address, "tensorferry_device_batches_total", "identity", graph=graph, **labels
            )
            for graph in ("true", "false")
        ]
        assert sum(runs) > 0
        assert sample(process.http_address, "tensorferry_device_graphs", "mlp", **labels) > 0
