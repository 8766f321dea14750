"""The response cache of a real server, seen by tritonclient and by our own client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.integration.support import PATIENCE_S, column, sample, samples_of, wait_until, y_of

from tensorferry.testing.gate import Gate, write_gated
from tensorferry.testing.models import write_identity, write_two_inputs
from tensorferry.testing.process import ServerProcess
from tensorferry_client import Client

CACHED = "dynamic_batching { } response_cache { enable: true }"


@dataclass(frozen=True)
class Cached:
    """A server whose models are cached, all but ``uncached``; ``plain`` has no batch dimension."""

    process: ServerProcess
    gate: Gate
    client: triton.InferenceServerClient

    def infer(self, *values: float, model: str = "gated", **more) -> list[float]:
        return y_of(self.client.infer(model, [triton_input("x", column(*values))], **more).get_response())

    def counts(self, model: str = "gated") -> np.ndarray:
        """Rows, runs, answered, queued, computed, hits, misses."""
        (stats,) = self.client.get_inference_statistics(model).model_stats
        inference = stats.inference_stats
        parts = (
            inference.success,
            inference.queue,
            inference.compute_infer,
            inference.cache_hit,
            inference.cache_miss,
        )
        return np.array([stats.inference_count, stats.execution_count, *[part.count for part in parts]])


def triton_input(name: str, array: np.ndarray) -> triton.InferInput:
    datatypes = {"float32": "FP32", "int64": "INT64"}
    given = triton.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
    given.set_data_from_numpy(array)
    return given


def write_cached_models(root: Path) -> Gate:
    """Write the models; return the gate of ``gated``."""
    write_identity(root, "plain", dims=(2,), max_batch_size=0, options="response_cache { enable: true }")
    write_identity(root, "uncached")
    config = write_two_inputs(root) / "config.pbtxt"
    config.write_text(
        config.read_text(encoding="utf-8") + "response_cache { enable: true }\n", encoding="utf-8"
    )
    return write_gated(root, options=CACHED)


@pytest.fixture(scope="module")
def cached_server(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cached]:
    directory = tmp_path_factory.mktemp(f"cached-{transport}")
    gate = write_cached_models(directory / "models")
    flags = ["--transport", transport]
    with (
        ServerProcess(directory / "models", directory / "log", flags=flags) as process,
        triton.InferenceServerClient(process.grpc_address) as client,
    ):
        yield Cached(process, gate, client)


@pytest.fixture
def cached(cached_server: Cached) -> Iterator[Cached]:
    """The module's server, with its gate opened in the end. Each test sends values of its own."""
    yield cached_server
    cached_server.gate.open()


def test_a_request_asked_before_is_not_run_again(cached: Cached):
    first = cached.infer(1.0, 2.0)
    entered = cached.gate.entered
    cached.gate.close()  # a run would now hang
    assert cached.infer(1.0, 2.0, request_id="again", client_timeout=PATIENCE_S) == first == [2.0, 4.0]
    assert cached.gate.entered == entered


def test_both_clients_share_what_is_kept(cached: Cached):
    assert cached.infer(3.0) == [6.0]
    cached.gate.close()
    with Client(cached.process.grpc_address) as client:
        assert client.infer("gated", {"x": column(3.0)}).outputs["y"].tolist() == [[6.0]]


def test_other_content_is_run(cached: Cached):
    assert [cached.infer(value) for value in (4.0, 5.0, 4.0, 5.0)] == [[8.0], [10.0], [8.0], [10.0]]
    assert cached.infer(4.0, 4.0) == [8.0, 8.0]


def test_hits_count_as_answered_and_not_as_run(cached: Cached):
    before = cached.counts()
    for _ in range(4):
        cached.infer(8.0)
    assert (cached.counts() - before).tolist() == [1, 1, 4, 4, 1, 3, 1]
    (stats,) = cached.client.get_inference_statistics("gated").model_stats
    assert stats.inference_stats.cache_hit.ns > 0
    assert stats.inference_stats.cache_miss.ns > 0


def test_metrics_have_tritons_names_for_cached_models_alone(cached: Cached):
    for _ in range(3):
        cached.infer(9.0)
    cached.infer(9.0, model="uncached")
    http = cached.process.http_address
    hits, misses = cached.counts()[-2:]
    assert hits >= 2
    assert sample(http, "nv_cache_num_hits_per_model_total", "gated") == hits
    assert sample(http, "nv_cache_num_misses_per_model_total", "gated") == misses
    assert sample(http, "nv_cache_hit_duration_per_model_total", "gated") > 0
    samples = samples_of(http)
    assert not [key for key in samples if "nv_cache" in key[0] and ("model", "uncached") in key[1]]
    assert samples["tensorferry_response_cache_entries", frozenset()] >= 1
    assert samples["tensorferry_response_cache_bytes", frozenset()] > 0


def test_equal_requests_in_flight_run_once(cached: Cached):
    before = cached.counts()
    cached.gate.close()
    entered = cached.gate.entered
    answers: list[object] = []
    for _ in range(5):
        cached.client.async_infer(
            "gated",
            [triton_input("x", column(7.0))],
            lambda result, error: answers.append(error or y_of(result.get_response())),
        )
    wait_until(lambda: cached.gate.entered > entered, "the model runs")
    cached.gate.open()
    wait_until(lambda: len(answers) == 5, "all are answered")
    assert answers == [[14.0]] * 5
    assert (cached.counts() - before).tolist() == [1, 1, 5, 5, 1, 4, 1]


def test_each_request_gets_the_outputs_that_it_asks_for(cached: Cached):
    inputs = [
        triton_input("values", np.zeros((1, 3), np.float32)),
        triton_input("offset", np.ones((1, 1), np.int64)),
    ]
    cached.client.infer("two_inputs", inputs, outputs=[triton.InferRequestedOutput("negated")])
    other = cached.client.infer("two_inputs", inputs, outputs=[triton.InferRequestedOutput("sum")])
    assert [output.name for output in other.get_response().outputs] == ["sum"]
    assert other.as_numpy("sum").tolist() == [[1.0, 1.0, 1.0]]
    assert cached.counts("two_inputs")[-2:].tolist() == [1, 1]


def test_a_model_without_a_batch_dimension_is_cached_too(cached: Cached):
    given = [triton_input("x", np.array([1, 2], np.float32))]
    for _ in range(2):
        assert cached.client.infer("plain", given).as_numpy("y").tolist() == [1.0, 2.0]
    assert cached.counts("plain")[-2:].tolist() == [1, 1]


def test_the_setting_turns_it_off(tmp_path: Path, launch: Callable[..., ServerProcess]):
    write_cached_models(tmp_path / "models")
    process = launch(tmp_path / "models", "--response-cache-bytes", "0")
    process.wait_ready()
    with triton.InferenceServerClient(process.grpc_address) as client:
        for _ in range(2):
            client.infer("gated", [triton_input("x", column(1.0))])
        (stats,) = client.get_inference_statistics("gated").model_stats
    assert stats.execution_count == 2
    assert stats.inference_stats.cache_miss.count == 0
    assert "response_cache_bytes is 0" in process.log()
