"""A model that raises, or returns what it shouldn't: the caller gets an id, the log the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import grpc
import torch
from tests.integration.conftest import Served
from tests.integration.support import error_of, wait_until, x_request, y_of
from torch import Tensor, nn

from tensorferry.testing.models import MARKER, write_model
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

CONFIG = (
    "max_batch_size: 16\n"
    'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
    'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    "dynamic_batching { }\n"
)


class WrongShape(nn.Module):
    """Loses a row if a row is 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x[1:] if bool((x == 1.0).any()) else x


class WrongDatatype(nn.Module):
    """Answers in FP64 if a row is 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float64) if bool((x == 1.0).any()) else x


def _lines(server: Served, reference: str) -> str:
    return "".join(line for line in server.process.log().splitlines() if reference in line)


def test_the_caller_gets_a_short_message_with_an_id_that_the_log_has(
    server: Served, stub: pb_grpc.GRPCInferenceServiceStub
):
    error = error_of(lambda: stub.ModelInfer(x_request("raising", 8192.125, MARKER)))
    assert error.code() is grpc.StatusCode.INTERNAL
    message = error.details()
    assert "'raising'" in message
    for forbidden in ("Traceback", "File ", "the marker is in the batch", "\n", "8192.125"):
        assert forbidden not in message
    (reference,) = re.findall(r"error id ([0-9a-f]+)", message)
    # Lines are written by a thread: what was raised, and which call failed by it.
    wait_until(lambda: "call failed" in _lines(server, reference), "the log says which call failed")
    assert _lines(server, reference).count("model raised") == 1
    log = server.process.log()
    logged = log[log.index("model raised") :]
    assert "the marker is in the batch" in logged
    assert "Traceback" in logged
    assert "8192.125" not in log, "a caller's data is in the log"
    assert y_of(stub.ModelInfer(x_request("raising", 3.0))) == [6.0]


def test_every_failure_has_an_id_of_its_own(stub: pb_grpc.GRPCInferenceServiceStub):
    messages = [error_of(lambda: stub.ModelInfer(x_request("raising", MARKER))).details() for _ in range(3)]
    assert len({re.findall(r"error id ([0-9a-f]+)", message)[0] for message in messages}) == 3


def test_an_answer_that_is_not_what_the_configuration_says_is_the_models_fault(
    launch: Callable[..., ServerProcess], tmp_path: Path
):
    write_model(tmp_path / "models", "shape", WrongShape(), CONFIG)
    write_model(tmp_path / "models", "datatype", WrongDatatype(), CONFIG)
    process = launch(tmp_path / "models")
    assert process.wait_ready() == "ready"
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for model, named in (("shape", ("2 rows", "1")), ("datatype", ("'y'", "FP64", "FP32"))):
            error = error_of(lambda model=model: stub.ModelInfer(x_request(model, 5.0, 1.0)))
            assert error.code() is grpc.StatusCode.INTERNAL
            for name in (f"'{model}'", *named):
                assert name in error.details()
            assert y_of(stub.ModelInfer(x_request(model, 5.0))) == [5.0]
            (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
            assert stats.inference_stats.fail.count == 1
