"""A version must give what its golden file expects before it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import torch
from tests.integration.support import error_of, fetch, request_of, x_request, y_of

from tensorferry.testing.models import Mlp, write_mlp, write_model, write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]


def write_golden_mlp(root: Path, name: str, error: float = 0.0) -> None:
    """Write ``Mlp`` with a golden file of 100 rows made in torch, one of them wrong by ``error``."""
    directory = write_mlp(root, name)
    features = np.random.default_rng(0).random((100, 30), np.float32)
    with torch.inference_mode():
        score = Mlp().eval()(torch.from_numpy(features)).numpy()
    score[77, 0] += error
    np.savez(directory / "1" / "golden.npz", **{"inputs/features": features, "outputs/score": score})


def write_golden_raising(root: Path, name: str, expected: float) -> None:
    """Write a model that doubles, with a golden file in JSON that expects ``expected`` for 2."""
    directory = write_raising(root, name)
    content = {"inputs": {"x": [[2]]}, "outputs": {"y": [[expected]]}}
    (directory / "1" / "golden.json").write_text(json.dumps(content), encoding="utf-8")


def test_versions_that_fail_their_golden_file_do_not_serve_and_say_where_they_differ(
    launch: Launch, tmp_path: Path
):
    root = tmp_path / "models"
    write_golden_mlp(root, "good")
    write_golden_mlp(root, "wrong", error=0.25)
    write_golden_raising(root, "good_json", 4.0)
    write_golden_raising(root, "wrong_json", 5.0)
    process = launch(root)
    assert sorted(process.wait_ready().removeprefix("ready, except ").split(", ")) == [
        "wrong/1",
        "wrong_json/1",
    ]
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        features = np.zeros((1, 30), np.float32)
        assert stub.ModelInfer(request_of("good", {"features": features})).outputs
        assert y_of(stub.ModelInfer(x_request("good_json", 4.0))) == [8.0]
        error = error_of(lambda: stub.ModelInfer(request_of("wrong", {"features": features})))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        reasons = {each.name: each.reason for each in index if each.state == "UNAVAILABLE"}
    assert sorted(reasons) == ["wrong", "wrong_json"]
    assert f"{root / 'wrong' / '1' / 'golden.npz'}: output 'score', row 77, index [0]:" in reasons["wrong"]
    assert "1 of 100 values differ, the most by 0.25" in reasons["wrong"]
    assert "output 'y', row 0, index [0]: expected 5, got 4" in reasons["wrong_json"]
    assert "row 77, index [0]" in process.log()
    assert "row 77" in json.loads(fetch(process.http_address, "/healthz/ready")[1])["not_ready"]["wrong/1"]


def test_check_finds_what_a_golden_file_would_refuse(tmp_path: Path):
    write_golden_raising(tmp_path, "wrong", 5.0)
    write_golden_mlp(tmp_path, "good")
    command = [sys.executable, "-m", "tensorferry", "check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "expected 5, got 4" in done.stdout + done.stderr


def test_golden_file_of_a_model_without_configuration_names_the_tensors_as_loading_does(
    launch: Launch, tmp_path: Path
):
    directory = write_model(tmp_path / "models", "plain", Mlp(), None)
    features = np.zeros((2, 30), np.float32)
    with torch.inference_mode():
        score = Mlp().eval()(torch.from_numpy(features)).numpy()
    np.savez(directory / "1" / "golden.npz", **{"inputs/INPUT__0": features, "outputs/OUTPUT__0": score})
    assert launch(tmp_path / "models").wait_ready() == "ready"
