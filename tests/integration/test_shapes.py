"""Requests of unlike lengths and of any number of rows, over the network: answers as if each ran alone."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from tests.integration.support import PATIENCE_S, error_of, outputs_of, request_of, sample
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from tensorferry.model import MAX_PIECES
from tensorferry.testing.models import write_identity, write_model
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry_client import Client

MAX_ROWS = 8
WIDTH = 3

CONFIG = f"""
max_batch_size: {MAX_ROWS}
input {{ name: "x" data_type: TYPE_FP32 dims: [ -1, {WIDTH} ] allow_ragged_batch: true }}
output {{ name: "mean" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
output {{ name: "centred" data_type: TYPE_FP32 dims: [ -1, {WIDTH} ] }}
batch_input {{
  kind: BATCH_ELEMENT_COUNT target_name: "lengths" data_type: TYPE_INT64 source_input: "x"
}}
batch_output {{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "centred" source_input: "x" }}
parameters {{ key: "ragged_buckets" value {{ string_value: "4,8,16" }} }}
parameters {{ key: "ragged_pad_value" value {{ string_value: "1000" }} }}
parameters {{ key: "split_oversized" value {{ string_value: "true" }} }}
dynamic_batching {{ max_queue_delay_microseconds: 300000 }}
"""


class MaskedMean(nn.Module):
    """The mean over each row's true length, and the row less its mean."""

    def forward(self, lengths: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``lengths`` INT64 [rows, 1] and ``x`` FP32 [rows, length, 3] to [rows, 3] and ``x``'s shape."""
        positions = torch.arange(x.size(1), device=x.device)
        mask = (positions.unsqueeze(0) < lengths).unsqueeze(2)
        mean = torch.where(mask, x, torch.zeros_like(x)).sum(1) / lengths
        return mean, x - mean.unsqueeze(1)


@pytest.fixture(scope="module")
def shapes(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a model that pads and splits, and one that only refuses."""
    directory = tmp_path_factory.mktemp(f"shapes-{transport}")
    write_model(directory / "models", "masked", MaskedMean(), CONFIG)
    write_identity(directory / "models", "whole", max_batch_size=MAX_ROWS)
    with ServerProcess(directory / "models", directory / "log", flags=["--transport", transport]) as process:
        yield process


@pytest.fixture
def stub(shapes: ServerProcess) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(shapes.grpc_address) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def rows_of(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, length, WIDTH), dtype=np.float32)


def assert_right(outputs: dict[str, np.ndarray], x: np.ndarray) -> None:
    mean, centred = MaskedMean()(torch.full((len(x), 1), x.shape[1]), torch.from_numpy(x))
    assert outputs["mean"].shape == mean.shape
    assert outputs["centred"].shape == x.shape
    np.testing.assert_allclose(outputs["mean"], mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(outputs["centred"], centred.numpy(), atol=1e-6)


def test_requests_of_unlike_lengths_share_batches_and_get_their_own_answers(shapes, stub):
    before = sample(shapes.http_address, "nv_inference_exec_count_total", "masked")
    xs = [rows_of(9 + number % 8, seed=number) for number in range(2 * MAX_ROWS)]
    calls = [stub.ModelInfer.future(request_of("masked", {"x": x})) for x in xs]
    for call, x in zip(calls, xs, strict=True):
        assert_right(outputs_of(call.result(PATIENCE_S)), x)
    runs = sample(shapes.http_address, "nv_inference_exec_count_total", "masked") - before
    assert runs < 8, "requests of eight lengths and one bucket ran in as many batches as if not padded"


@pytest.mark.parametrize("length", [1, 4, 7, 16])
def test_a_form_that_is_known_is_answered_as_when_it_was_new(stub, length):
    for seed in range(3):
        x = rows_of(length, 2, seed)
        assert_right(outputs_of(stub.ModelInfer(request_of("masked", {"x": x}), timeout=PATIENCE_S)), x)


@pytest.mark.parametrize("rows", [MAX_ROWS + 1, 3 * MAX_ROWS + 1])
def test_a_request_of_more_rows_than_a_batch_has_is_answered_as_if_unsplit(shapes, stub, rows):
    before = sample(shapes.http_address, "nv_inference_count_total", "masked")
    x = rows_of(6, rows)
    assert_right(outputs_of(stub.ModelInfer(request_of("masked", {"x": x}), timeout=PATIENCE_S)), x)
    assert sample(shapes.http_address, "nv_inference_count_total", "masked") - before == rows


def test_tritonclient_gets_padded_and_split_answers(shapes):
    with triton.InferenceServerClient(shapes.grpc_address) as client:
        x = rows_of(11, 2 * MAX_ROWS + 3)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        result = client.infer("masked", [given])
        assert_right({name: result.as_numpy(name) for name in ("mean", "centred")}, x)
        wanted = client.infer("masked", [given], outputs=[triton.InferRequestedOutput("centred")])
        np.testing.assert_array_equal(wanted.as_numpy("centred"), result.as_numpy("centred"))
        assert wanted.as_numpy("mean") is None


def test_our_client_gets_padded_and_split_answers(shapes):
    with Client(shapes.grpc_address) as client:
        x = rows_of(3, MAX_ROWS + 2)
        assert_right(client.infer("masked", {"x": x}).outputs, x)


def test_the_lengths_input_is_neither_listed_nor_taken(shapes, stub):
    with triton.InferenceServerClient(shapes.grpc_address) as client:
        metadata = client.get_model_metadata("masked")
        assert [(each.name, list(each.shape)) for each in metadata.inputs] == [("x", [-1, -1, WIDTH])]
        assert [each.name for each in metadata.outputs] == ["mean", "centred"]
    inputs = {"x": rows_of(4), "lengths": np.array([[4]])}
    error = error_of(lambda: stub.ModelInfer(request_of("masked", inputs)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'lengths' is filled in by the server" in error.details()


def test_what_is_too_long_or_has_too_many_rows_is_refused_with_the_limit(shapes, stub):
    error = error_of(lambda: stub.ModelInfer(request_of("masked", {"x": rows_of(17)})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "length 17" in error.details()
    assert "16" in error.details()
    too_many = rows_of(1, MAX_PIECES * MAX_ROWS + 1)
    error = error_of(lambda: stub.ModelInfer(request_of("masked", {"x": too_many})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {MAX_PIECES} times as many" in error.details()
    with triton.InferenceServerClient(shapes.grpc_address) as client:
        given = triton.InferInput("x", [MAX_ROWS + 1, 1], "FP32")
        given.set_data_from_numpy(np.zeros((MAX_ROWS + 1, 1), np.float32))
        with pytest.raises(InferenceServerException, match=f"max_batch_size is {MAX_ROWS}; send fewer"):
            client.infer("whole", [given])
