"""A repository as a Triton user has it, for the PyTorch backend: served and called without a change."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from tests.integration.support import PATIENCE_S
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from tensorferry.testing.models import save
from tensorferry.testing.process import ServerProcess

FEATURES = 30


class Scale(nn.Module):
    """Standardises transactions before the model sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1.0, 1.0, FEATURES))
        self.register_buffer("deviation", torch.linspace(0.5, 2.0, FEATURES))

    def forward(self, raw: Tensor) -> Tensor:
        """``raw`` FP32 [rows, 30] to the same shape."""
        return (raw - self.mean) / self.deviation


class Net(nn.Module):
    """30 features to a score; ``shift`` tells one version from another."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.layer = nn.Linear(FEATURES, 1)
        for parameter in self.parameters():
            parameter.data.uniform_(-0.3, 0.3, generator=generator)
        self.shift = shift

    def forward(self, features: Tensor) -> Tensor:
        """``features`` FP32 [rows, 30] to FP32 [rows, 1]."""
        return torch.sigmoid(self.layer(features) + self.shift)


class Decide(nn.Module):
    """A score to a decision and to the margin that it was made with: two outputs."""

    def forward(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """``score`` FP32 [rows, 1] to INT64 and FP32 [rows, 1]."""
        return (score > 0.5).to(torch.int64), torch.abs(score - 0.5)


class Join(nn.Module):
    """Two inputs without a batch dimension."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """FP32 [4] and FP32 [4] to FP32 [4]."""
        return left - right


SCALE = """\
name: "scale"
platform: "pytorch_libtorch"
max_batch_size: 32
input [
  {
    name: "INPUT__0"
    data_type: TYPE_FP32
    dims: [ 30 ]
  }
]
output [
  {
    name: "OUTPUT__0"
    data_type: TYPE_FP32
    dims: [ 30 ]
  }
]
instance_group [
  {
    kind: KIND_CPU
  }
]
dynamic_batching { }
parameters: { key: "DISABLE_OPTIMIZED_EXECUTION" value: { string_value: "true" } }
parameters: { key: "INFERENCE_MODE" value: { string_value: "true" } }
"""

NET = """\
# Scores card payments.
name: "net"
backend: "pytorch"
default_model_filename: "model.pt"
max_batch_size: 32

input [ { name: "INPUT__0", data_type: TYPE_FP32, dims: [ 30 ] } ]
output [ { name: "OUTPUT__0", data_type: TYPE_FP32, dims: [ 1 ] } ]

instance_group [ { name: "workers", count: 2, kind: KIND_CPU } ]

dynamic_batching {
  preferred_batch_size: [ 8, 16 ]
  max_queue_delay_microseconds: 200000
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 20000000
    allow_timeout_override: true
    max_queue_size: 1000
  }
}

version_policy: { latest { num_versions: 2 } }

model_warmup [
  {
    name: "one random row"
    batch_size: 1
    inputs { key: "INPUT__0" value: { data_type: TYPE_FP32 dims: [ 30 ] random_data: true } }
  },
  {
    name: "a full batch of zeros"
    batch_size: 32
    count: 2
    inputs { key: "INPUT__0" value: { data_type: TYPE_FP32 dims: [ 30 ] zero_data: true } }
  }
]

parameters {
  key: "INTRA_OP_THREAD_COUNT"
  value { string_value: "1" }
}
parameters {
  key: "INTER_OP_THREAD_COUNT"
  value { string_value: "1" }
}
parameters [
  { key: "ENABLE_JIT_EXECUTOR" value: { string_value: "true" } },
  { key: "ENABLE_JIT_PROFILING" value: { string_value: "false" } },
  { key: "ENABLE_NVFUSER" value: { string_value: "false" } },
  { key: "ENABLE_TENSOR_FUSER" value: { string_value: "false" } },
  { key: "ENABLE_WEIGHT_SHARING" value: { string_value: "true" } },
  { key: "ENABLE_CACHE_CLEANING" value: { string_value: "true" } },
  { key: "DISABLE_CUDNN" value: { string_value: "false" } }
]
"""

DECIDE = """\
name: "decide"
platform: "pytorch_libtorch"
max_batch_size: 32
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "OUTPUT__0" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 1 ] }
version_policy { all { } }
response_cache { enable: true }
"""

JOIN = """\
platform: "pytorch_libtorch"
max_batch_size: 0
input [
  { name: "LEFT__0" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "RIGHT__1" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [ { name: "DIFFERENCE__0" data_type: TYPE_FP32 dims: [ 4 ] } ]
version_policy { specific { versions: [ 1, 3 ] } }
"""

PIPELINE = """\
name: "pipeline"
platform: "ensemble"
max_batch_size: 32
input [ { name: "TRANSACTION" data_type: TYPE_FP32 dims: [ 30 ] } ]
output [
  { name: "DECISION" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "SCORE" data_type: TYPE_FP32 dims: [ 1 ] }
]
ensemble_scheduling {
  step [
    {
      model_name: "scale"
      model_version: -1
      input_map { key: "INPUT__0" value: "TRANSACTION" }
      output_map { key: "OUTPUT__0" value: "scaled" }
    },
    {
      model_name: "net"
      model_version: -1
      input_map { key: "INPUT__0" value: "scaled" }
      output_map { key: "OUTPUT__0" value: "SCORE" }
    },
    {
      model_name: "decide"
      model_version: -1
      input_map { key: "INPUT__0" value: "SCORE" }
      output_map { key: "OUTPUT__0" value: "DECISION" }
    }
  ]
}
"""

SHIFTS = {1: -1.0, 2: 0.0, 3: 1.0}


def write_repository(root: Path) -> None:
    """Write five models: each a directory with ``config.pbtxt`` and a numbered directory for each version."""
    for version, shift in SHIFTS.items():
        save(Net(shift), root / "net" / str(version) / "model.pt")
        save(Join(), root / "join" / str(version) / "model.pt")
    for version in (1, 2):
        save(Decide(), root / "decide" / str(version) / "model.pt")
    save(Scale(), root / "scale" / "1" / "model.pt")
    (root / "pipeline" / "1").mkdir(parents=True)
    configs = {"scale": SCALE, "net": NET, "decide": DECIDE, "join": JOIN, "pipeline": PIPELINE}
    for name, text in configs.items():
        (root / name / "config.pbtxt").write_text(text, encoding="utf-8")


def given(name: str, array: np.ndarray) -> triton.InferInput:
    datatype = {"float32": "FP32", "int64": "INT64"}[str(array.dtype)]
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def transactions(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(0.0, 2.0, (rows, FEATURES)).astype(np.float32)


def run(module: nn.Module, array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(array)).numpy()


@dataclass(frozen=True)
class Migrated:
    """A server of the repository, and a client of it."""

    process: ServerProcess
    client: triton.InferenceServerClient

    def net(self, rows: np.ndarray, version: str = "") -> np.ndarray:
        return self.client.infer("net", [given("INPUT__0", rows)], version).as_numpy("OUTPUT__0")


@pytest.fixture(scope="module")
def migrated(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrated]:
    directory = tmp_path_factory.mktemp(f"triton-{transport}")
    write_repository(directory / "models")
    flags = ["--transport", transport, "--model-control-mode", "explicit", "--load-model", "*"]
    server = ServerProcess(directory / "models", directory / "log", flags=flags)
    with server as process, triton.InferenceServerClient(process.grpc_address) as client:
        yield Migrated(process, client)


def test_every_model_is_ready_at_the_start(migrated: Migrated):
    assert migrated.client.is_server_ready()
    index = migrated.client.get_model_repository_index().models
    assert {(each.name, each.version, each.state) for each in index} == {
        ("decide", "1", "READY"),
        ("decide", "2", "READY"),
        ("join", "1", "READY"),
        ("join", "3", "READY"),
        ("net", "2", "READY"),
        ("net", "3", "READY"),
        ("pipeline", "1", "READY"),
        ("scale", "1", "READY"),
    }


def test_the_metadata_has_the_names_shapes_and_platform_of_the_configuration(migrated: Migrated):
    metadata = migrated.client.get_model_metadata("net")
    assert (metadata.platform, list(metadata.versions)) == ("pytorch_libtorch", ["2", "3"])
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("INPUT__0", "FP32", [-1, 30])
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.outputs] == [
        ("OUTPUT__0", "FP32", [-1, 1])
    ]
    assert migrated.client.get_model_metadata("pipeline").platform == "ensemble"


def test_the_configuration_comes_back_as_it_was_written(migrated: Migrated):
    config = migrated.client.get_model_config("net").config
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("workers", 2, group.KIND_CPU)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200_000
    assert config.version_policy.latest.num_versions == 2
    assert [each.name for each in config.model_warmup] == ["one random row", "a full batch of zeros"]
    assert config.parameters["ENABLE_WEIGHT_SHARING"].string_value == "true"


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_model_answers_what_pytorch_answers(migrated: Migrated, rows: int):
    scores = migrated.net(transactions(rows))
    np.testing.assert_allclose(scores, run(Net(SHIFTS[3]), transactions(rows)), atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_a_version_that_the_policy_serves_answers_by_its_number(migrated: Migrated, version: int):
    scores = migrated.net(transactions(5), str(version))
    np.testing.assert_allclose(scores, run(Net(SHIFTS[version]), transactions(5)), atol=1e-6)


@pytest.mark.parametrize(("model", "version"), [("net", "1"), ("join", "2")])
def test_a_version_that_the_policy_leaves_out_is_not_found(migrated: Migrated, model: str, version: str):
    with pytest.raises(InferenceServerException, match=f"has no version {version} here") as refused:
        migrated.client.get_model_metadata(model, version)
    assert refused.value.status() == "StatusCode.NOT_FOUND"


def test_outputs_are_told_apart_by_the_index_in_their_names(migrated: Migrated):
    score = np.array([[0.75], [0.25]], np.float32)
    answer = migrated.client.infer("decide", [given("INPUT__0", score)])
    assert answer.as_numpy("OUTPUT__0").tolist() == [[1], [0]]
    assert answer.as_numpy("OUTPUT__1").tolist() == [[0.25], [0.25]]


def test_inputs_are_told_apart_by_the_index_in_their_names(migrated: Migrated):
    left, right = np.full(4, 5, np.float32), np.full(4, 2, np.float32)
    # Sent the other way round: the names say which is which.
    answer = migrated.client.infer("join", [given("RIGHT__1", right), given("LEFT__0", left)])
    assert answer.as_numpy("DIFFERENCE__0").tolist() == [3.0] * 4


def test_requests_that_come_together_run_together(migrated: Migrated):
    def counts() -> tuple[int, int]:
        (stats,) = migrated.client.get_inference_statistics("net", "3").model_stats
        return stats.inference_count, stats.execution_count

    rows_before, runs_before = counts()
    answers: queue.SimpleQueue[tuple[triton.InferResult, Exception | None]] = queue.SimpleQueue()
    inputs = [given("INPUT__0", transactions(1))]
    for _ in range(16):
        migrated.client.async_infer("net", inputs, lambda result, error: answers.put((result, error)))
    expected = run(Net(SHIFTS[3]), transactions(1))
    for _ in range(16):
        answer, error = answers.get(timeout=PATIENCE_S)
        assert error is None
        np.testing.assert_allclose(answer.as_numpy("OUTPUT__0"), expected, atol=1e-6)
    rows, runs = counts()
    assert rows - rows_before == 16
    assert runs - runs_before < 16


@pytest.mark.parametrize("rows", [1, 7])
def test_an_ensemble_answers_what_its_models_answer_one_after_the_other(migrated: Migrated, rows: int):
    answer = migrated.client.infer("pipeline", [given("TRANSACTION", transactions(rows))])
    scores = run(Net(SHIFTS[3]), run(Scale(), transactions(rows)))
    np.testing.assert_allclose(answer.as_numpy("SCORE"), scores, atol=1e-6)
    assert answer.as_numpy("DECISION").tolist() == (scores > 0.5).astype(np.int64).tolist()
    assert answer.get_response().model_name == "pipeline"


def test_a_model_is_taken_away_and_brought_back_by_the_client(migrated: Migrated):
    def states() -> set[str]:
        index = migrated.client.get_model_repository_index().models
        return {each.state for each in index if each.name == "join"}

    migrated.client.unload_model("join")
    assert states() == {"UNAVAILABLE"}
    migrated.client.load_model("join")
    assert states() == {"READY"}
    assert migrated.client.is_model_ready("join", "1")
    assert migrated.client.is_model_ready("join", "3")


def test_a_configuration_that_the_server_has_told_is_taken_back_with_a_change(migrated: Migrated):
    config = migrated.client.get_model_config("decide", as_json=True)["config"]
    config["max_batch_size"] = 4
    migrated.client.load_model("decide", config=json.dumps(config))
    assert migrated.client.get_model_config("decide").config.max_batch_size == 4
    migrated.client.load_model("decide")
    assert migrated.client.get_model_config("decide").config.max_batch_size == 32
