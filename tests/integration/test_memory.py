"""A model that would not fit is refused; the process and the other models live on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import grpc
from tests.integration.support import error_of, x_request, y_of

from tensorferry.testing.models import write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]
TEBIBYTE = 2**40


def test_model_larger_than_the_machine_is_refused_and_the_others_serve(launch: Launch, tmp_path: Path):
    root = tmp_path / "models"
    write_raising(root, "good")
    for name in ("huge", "huge_too"):
        directory = write_raising(root, name)
        with (directory / "1" / "model.pt").open("wb") as file:
            file.truncate(TEBIBYTE)  # a hole: it takes nothing on the disk
    process = launch(root)
    assert sorted(process.wait_ready().removeprefix("ready, except ").split(", ")) == ["huge/1", "huge_too/1"]
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert y_of(stub.ModelInfer(x_request("good", 4.0))) == [8.0]
        error = error_of(lambda: stub.ModelInfer(x_request("huge", 4.0)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "would not fit: it needs about 1415578 MiB of memory for 1 copy" in error.details()
        assert "memory_reserve_bytes" in error.details()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_reserve_that_is_larger_than_the_machine_lets_nothing_in(launch: Launch, tmp_path: Path):
    write_raising(tmp_path / "models")
    process = launch(tmp_path / "models", "--memory-reserve-bytes", str(TEBIBYTE))
    assert process.wait_ready() == "ready, except raising/1"
    assert "1048576 MiB are to stay free" in process.log()
