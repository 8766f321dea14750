"""A server of one model in every format: the same answers, whatever the file is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tests.formats import MAKERS
from tests.integration.support import error_of

from tensorferry import cli
from tensorferry.testing.models import Mlp
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

CONFIG = (
    "max_batch_size: 8\n"
    'input { name: "features" data_type: TYPE_FP32 dims: 30 }\n'
    'output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 1 }\n'
    "dynamic_batching { }\n"
)

PRESENT = [maker for maker in MAKERS if not maker.missing()]


def write_all(root: Path) -> None:
    """Write the MLP in every format that can be made here, each as a model of the format's name."""
    for maker in PRESENT:
        maker.write(Mlp(), root / maker.name / "1" / maker.filename, (torch.zeros(2, 30),))
        (root / maker.name / "config.pbtxt").write_text(CONFIG, encoding="utf-8")


def request_of(model: str, features: np.ndarray) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[features.tobytes()])
    request.inputs.add(name="features", datatype="FP32", shape=features.shape)
    return request


def test_every_format_answers_as_the_module_does(launch: Callable[..., ServerProcess], tmp_path: Path):
    root = tmp_path / "models"
    write_all(root)
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.pt2").write_bytes(b"garbage")
    process = launch(root)
    process.wait_ready()
    features = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    with torch.inference_mode():
        expected = Mlp()(torch.from_numpy(features)).numpy()
    with grpc.insecure_channel(process.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for maker in PRESENT:
            answer = stub.ModelInfer(request_of(maker.name, features))
            scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(3, 1)
            np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6, err_msg=maker.name)
            metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=maker.name))
            assert metadata.platform == maker.platform
        error = error_of(lambda: stub.ModelInfer(request_of("broken", features)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_check_says_each_versions_format_and_what_it_could_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    maker = PRESENT[0]
    maker.write(Mlp(), tmp_path / "mlp" / "1" / maker.filename, (torch.zeros(2, 30),))
    (tmp_path / "mlp" / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    monkeypatch.setenv("PATH", "")  # compiling takes long
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"mlp: ok\n  version 1: {maker.platform}\n"
    assert cli.main(["check", str(tmp_path), "--formats"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pt2", "yes", "yes"] in [line[:3] for line in lines]
