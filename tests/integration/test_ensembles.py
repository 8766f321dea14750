"""A chain of models behind one name, served by a real server and called with tritonclient."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from tests.integration.support import PATIENCE_S
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tensorferry.testing.models import MARKER, Mlp, write_identity, write_mlp, write_model, write_raising
from tensorferry.testing.process import ServerProcess

THRESHOLD = 0.5

#: Long enough that requests sent at once meet, whatever the machine is doing.
TOGETHER = "dynamic_batching { max_queue_delay_microseconds: 200000 }"


class Scaler(nn.Module):
    """Standardises 30 features, each with a mean and a deviation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-2.0, 2.0, 30))
        self.register_buffer("deviation", torch.linspace(0.5, 4.0, 30))

    def forward(self, raw: Tensor) -> Tensor:
        """``raw`` FP32 [rows, 30] to the same shape."""
        return (raw - self.mean) / self.deviation


class Decision(nn.Module):
    """Says 1 where a score is above the threshold."""

    def forward(self, score: Tensor) -> Tensor:
        """``score`` FP32 [rows, 1] to INT64 [rows, 1]."""
        return (score > 0.5).to(torch.int64)


def write_ensemble(root: Path, name: str, text: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text('platform: "ensemble"\n' + text, encoding="utf-8")


def tensor(field: str, name: str, datatype: str, dims: int) -> str:
    return f'{field} {{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} }}\n'


def step(model: str, reads: tuple[str, str], writes: tuple[str, str]) -> str:
    return (
        f'ensemble_scheduling {{ step {{ model_name: "{model}"'
        f' input_map {{ key: "{reads[0]}" value: "{reads[1]}" }}'
        f' output_map {{ key: "{writes[0]}" value: "{writes[1]}" }} }} }}\n'
    )


def steps(*each: str) -> str:
    head, tail = "ensemble_scheduling { ", " }\n"
    return head + " ".join(one.removeprefix(head).removesuffix(tail) for one in each) + tail


def write_repository(root: Path) -> None:
    """Write ``fraud`` with its three models, ``nested`` around it, and ``risky``, which may raise."""
    x, y = tensor("input", "x", "FP32", 1), tensor("output", "y", "FP32", 1)
    score = tensor("output", "score", "FP32", 1)
    features, raw = tensor("input", "features", "FP32", 30), tensor("input", "raw", "FP32", 30)
    scaled = tensor("output", "scaled", "FP32", 30)
    decides = tensor("input", "score", "FP32", 1) + tensor("output", "decision", "INT64", 1)
    write_model(root, "scaler", Scaler(), "max_batch_size: 64\n" + raw + scaled + TOGETHER)
    write_mlp(root, "fraud_model")
    write_model(root, "decide", Decision(), "max_batch_size: 64\n" + decides + "dynamic_batching { }")
    chain = steps(
        step("decide", ("score", "score"), ("decision", "decision")),
        step("scaler", ("raw", "transaction"), ("scaled", "scaled")),
        step("fraud_model", ("features", "scaled"), ("score", "score")),
    )
    transaction = tensor("input", "transaction", "FP32", 30)
    both = tensor("output", "decision", "INT64", 1) + score
    write_ensemble(root, "fraud", "max_batch_size: 64\n" + transaction + both + chain)
    outer = step("fraud", ("transaction", "features"), ("score", "score"))
    write_ensemble(root, "nested", "max_batch_size: 64\n" + features + score + outer)
    write_identity(root, "echo")
    write_raising(root)
    risky = steps(step("echo", ("x", "x"), ("y", "t")), step("raising", ("x", "t"), ("y", "y")))
    write_ensemble(root, "risky", "max_batch_size: 16\n" + x + y + risky)


def triton_input(name: str, array: np.ndarray) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


@dataclass(frozen=True)
class Chained:
    """The server and a client of it."""

    process: ServerProcess
    client: triton.InferenceServerClient

    def counts(self, model: str) -> tuple[int, int, int]:
        """Requests answered, rows, and runs."""
        (stats,) = self.client.get_inference_statistics(model).model_stats
        return stats.inference_stats.success.count, stats.inference_count, stats.execution_count

    def infer(self, model: str, **arrays: np.ndarray) -> triton.InferResult:
        return self.client.infer(model, [triton_input(name, array) for name, array in arrays.items()])


@pytest.fixture(scope="module")
def chained(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chained]:
    directory = tmp_path_factory.mktemp(f"ensembles-{transport}")
    write_repository(directory / "models")
    flags = ["--transport", transport]
    server = ServerProcess(directory / "models", directory / "log", flags=flags)
    with server as process, triton.InferenceServerClient(process.grpc_address) as client:
        yield Chained(process, client)


def transactions(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 3.0, (rows, 30)).astype(np.float32)


def composed(features: np.ndarray) -> np.ndarray:
    """The score that the models give when they are called one after the other."""
    with torch.inference_mode():
        return Mlp().eval()(Scaler()(torch.from_numpy(features))).numpy()


def test_the_answer_is_that_of_the_models_one_after_the_other(chained: Chained):
    features = transactions(7)
    result = chained.infer("fraud", transaction=features)
    expected = composed(features)
    np.testing.assert_allclose(result.as_numpy("score"), expected, rtol=1e-5)
    np.testing.assert_array_equal(result.as_numpy("decision"), (expected > THRESHOLD).astype(np.int64))
    message = result.get_response()
    assert (message.model_name, message.model_version) == ("fraud", "1")
    assert [output.name for output in message.outputs] == ["decision", "score"]


def test_only_the_outputs_asked_for_are_answered(chained: Chained):
    features = transactions(2, seed=1)
    wanted = [triton.InferRequestedOutput("score")]
    result = chained.client.infer("fraud", [triton_input("transaction", features)], outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["score"]
    np.testing.assert_allclose(result.as_numpy("score"), composed(features), rtol=1e-5)


def test_concurrent_requests_share_the_runs_of_the_models(chained: Chained):
    requests = 24
    models = ("scaler", "fraud_model", "decide")
    before = {name: chained.counts(name) for name in ("fraud", *models)}
    answers: queue.Queue = queue.Queue()
    rows = [transactions(1, seed=number) for number in range(requests)]
    for number, features in enumerate(rows):
        chained.client.async_infer(
            "fraud",
            [triton_input("transaction", features)],
            lambda result, error, number=number: answers.put((number, result, error)),
        )
    for _ in range(requests):
        number, result, error = answers.get(timeout=PATIENCE_S)
        assert error is None, error
        np.testing.assert_allclose(result.as_numpy("score"), composed(rows[number]), rtol=1e-5)
    for name in models:
        answered, added, runs = np.subtract(chained.counts(name), before[name])
        assert (answered, added) == (requests, requests)
        assert runs < requests, name
    assert tuple(np.subtract(chained.counts("fraud"), before["fraud"])) == (requests, requests, requests)


def test_an_ensemble_may_be_a_step_of_another(chained: Chained):
    features = transactions(3, seed=2)
    result = chained.infer("nested", features=features)
    np.testing.assert_allclose(result.as_numpy("score"), composed(features), rtol=1e-5)


def test_metadata_describes_the_ensemble(chained: Chained):
    metadata = chained.client.get_model_metadata("fraud")
    assert metadata.platform == "ensemble"
    assert [(each.name, list(each.shape)) for each in metadata.inputs] == [("transaction", [-1, 30])]
    config = chained.client.get_model_config("fraud").config
    assert [each.model_name for each in config.ensemble_scheduling.step] == [
        "decide",
        "scaler",
        "fraud_model",
    ]


def test_a_model_that_raises_fails_its_own_request_and_is_named(chained: Chained):
    good = np.array([[4.0]], np.float32)
    with pytest.raises(
        InferenceServerException, match=r"ensemble 'risky', step 2 \(model 'raising'\)"
    ) as raised:
        chained.infer("risky", x=np.array([[MARKER]], np.float32))
    assert raised.value.status() == f"StatusCode.{grpc.StatusCode.INTERNAL.name}"
    assert chained.infer("risky", x=good).as_numpy("y").tolist() == [[8.0]]


def test_a_request_that_the_ensemble_does_not_take_is_refused(chained: Chained):
    with pytest.raises(InferenceServerException, match="model 'fraud': input 'transaction'") as raised:
        chained.infer("fraud", transaction=np.zeros((1, 29), np.float32))
    assert raised.value.status() == f"StatusCode.{grpc.StatusCode.INVALID_ARGUMENT.name}"


def test_an_ensemble_whose_model_is_not_there_is_not_ready(
    launch: Callable[..., ServerProcess], tmp_path: Path
):
    root = tmp_path / "models"
    x, y = tensor("input", "x", "FP32", 1), tensor("output", "y", "FP32", 1)
    write_identity(root, "echo")
    for name, model in (("found", "echo"), ("lost", "nowhere")):
        write_ensemble(root, name, "max_batch_size: 16\n" + x + y + step(model, ("x", "x"), ("y", "y")))
    process = launch(root)
    assert "lost" in process.wait_ready()
    with triton.InferenceServerClient(process.grpc_address) as client:
        assert client.is_model_ready("found")
        assert not client.is_model_ready("lost")
        with pytest.raises(InferenceServerException, match="'nowhere'") as raised:
            client.infer("lost", [triton_input("x", np.ones((1, 1), np.float32))])
        assert raised.value.status() == f"StatusCode.{grpc.StatusCode.UNAVAILABLE.name}"
