from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import model_spec, tensor_spec

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.errors import ModelFailed
from tensorferry.tensors import Tensor, array_of, tensor_of

SPEC = model_spec([tensor_spec("a", "INT16", (3,)), tensor_spec("b", "UINT8", (-1,))], max_batch_size=64)


def batch_of(*rows: int, spec=SPEC) -> Batch:
    requests, first = [], 0
    for count in rows:
        a = np.arange(first, first + 3 * count, dtype=np.int16).reshape(count, 3)
        requests.append(
            Pending(spec.bind([tensor_of("a", a), tensor_of("b", a.astype(np.uint8)[:, :2])]), print)
        )
        first += 3 * count
    return Batch(spec, requests, 1.5)


def delivered(batch, outputs):
    batch.check(outputs)
    batch.deliver(outputs)
    return [request.outputs for request in batch.requests]


def test_inputs_have_the_whole_batchs_shape_and_the_requests_bytes_in_order():
    batch = batch_of(2, 1)
    a, b = batch.inputs()
    assert (a.name, a.datatype, a.shape) == ("a", "INT16", (3, 3))
    assert (b.name, b.datatype, b.shape) == ("b", "UINT8", (3, 2))
    assert b"".join(a.parts) == np.arange(9, dtype=np.int16).tobytes()
    assert a.parts[0] is batch.requests[0].bound.tensors[0].data


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_split_undoes_the_joining(rows):
    batch = batch_of(*rows)
    outputs = [Tensor(each.name, each.datatype, each.shape, b"".join(each.parts)) for each in batch.inputs()]
    for request, share in zip(batch.requests, delivered(batch, outputs), strict=True):
        for sent, came in zip(request.bound.tensors, share, strict=True):
            assert (came.name, came.shape, bytes(came.data)) == (sent.name, sent.shape, bytes(sent.data))


def test_each_share_is_a_view_of_the_batchs_output():
    data = bytearray(4)
    first, second = delivered(batch_of(1, 1), [Tensor("y", "INT16", (2,), memoryview(data))])
    data[2] = 7
    assert array_of(first[0]).tolist() == [0]
    assert array_of(second[0]).tolist() == [7]


def test_outputs_without_elements_are_split_by_shape():
    shares = delivered(batch_of(2, 1), [Tensor("y", "FP32", (3, 0), b"")])
    assert [share[0].shape for share in shares] == [(2, 0), (1, 0)]


@pytest.mark.parametrize("rows", [(2, 1), (3,)])
@pytest.mark.parametrize("shape", [(1, 3), (4,), ()])
def test_output_whose_rows_cannot_be_told_apart_is_the_models_fault(rows, shape):
    with pytest.raises(ModelFailed, match=r"'m': output 'y' has shape .* for a batch of 3 rows"):
        batch_of(*rows).check([Tensor("y", "UINT8", shape, bytes(4))])


def test_outputs_of_a_model_without_batch_dimension_are_passed_on_whole():
    spec = model_spec([tensor_spec("x", "FP32", (2,))], max_batch_size=0)
    batch = Batch(spec, [Pending(spec.bind([Tensor("x", "FP32", (2,), bytes(8))]), print)], 0.0)
    assert batch.inputs()[0].shape == (2,)
    output = Tensor("y", "FP32", (), bytes(4))
    assert delivered(batch, [output]) == [[output]]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_halves_hold_every_request_once_in_order(count):
    batch = batch_of(*range(1, count + 1))
    halves = batch.halves()
    assert [request for half in halves for request in half.requests] == batch.requests
    assert sum(half.rows for half in halves) == batch.rows
    assert all(half.requests for half in halves)
    assert {half.started_at for half in halves} == {1.5}
