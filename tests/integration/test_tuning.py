"""A server whose models run in another datatype than they were saved in, asked by both clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from tests.integration.support import fetch
from torch import nn

from tensorferry.testing.models import Mlp, write_mlp, write_model
from tensorferry.testing.process import ServerProcess
from tensorferry_client import Client

Launch = Callable[..., ServerProcess]

FEATURES = np.random.default_rng(0).normal(size=(16, 30)).astype(np.float32)
BATCHING = "dynamic_batching { }\n"


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


def write_overflowing(root: Path, options: str) -> None:
    """Write a model with a weight that FP16 can't hold."""
    module = nn.Sequential(nn.Linear(30, 1))
    nn.init.constant_(module[0].weight, 1e6)
    config = (
        "max_batch_size: 8\n"
        'input { name: "INPUT__0" data_type: TYPE_FP32 dims: 30 }\n'
        'output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 1 }\n'
    )
    write_model(root, "overflowing", module, config + options)


def test_a_model_in_bf16_answers_both_clients_a_little_off(launch: Launch, tmp_path: Path):
    root = tmp_path / "models"
    write_mlp(root, "plain")
    tuning = parameter("autocast", "bf16") + parameter("ENABLE_WEIGHT_SHARING", "true")
    write_mlp(root, "tuned", options=f"{BATCHING}{tuning}instance_group {{ count: 2 kind: KIND_CPU }}\n")
    write_overflowing(root, parameter("autocast", "fp16"))
    process = launch(root)
    assert process.wait_ready() == "ready, except overflowing/1"
    with torch.inference_mode():
        right = Mlp().eval()(torch.from_numpy(FEATURES)).numpy()
    with Client(process.grpc_address) as client:
        plain, tuned = (
            client.infer(name, {"features": FEATURES}, timeout_s=30.0).outputs["score"]
            for name in ("plain", "tuned")
        )
    np.testing.assert_allclose(plain, right, rtol=1e-5)
    assert tuned.dtype == np.float32
    assert np.any(tuned != right)
    np.testing.assert_allclose(tuned, right, rtol=3e-2, atol=1e-2)
    with triton.InferenceServerClient(process.grpc_address) as stranger:
        given = triton.InferInput("features", [16, 30], "FP32")
        given.set_data_from_numpy(FEATURES)
        again = stranger.infer("tuned", [given]).as_numpy("score")
        config = stranger.get_model_config("tuned").config
    np.testing.assert_allclose(again, tuned, rtol=1e-2)
    assert config.parameters["autocast"].string_value == "bf16"
    reason = json.loads(fetch(process.http_address, "/healthz/ready")[1])["not_ready"]["overflowing/1"]
    assert "values of output 'OUTPUT__0' aren't finite, and are without" in reason
    assert "tuning compared with the plain model" in process.log()
