"""The scores of one request among a batch's outputs."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.support import model_spec, tensor_spec

from tensorferry.batching.pending import Pending
from tensorferry.engine.scores import score_output_index, scores_of
from tensorferry.errors import InvalidRequest
from tensorferry.model import Bound
from tensorferry.tensors import Tensor, tensor_of


def answered(array, rows=1, first_row=0, batch_rows=0, datatype=None) -> Pending:
    output = tensor_of("y", np.asarray(array))
    output = Tensor("y", datatype or output.datatype, output.shape, output.data)
    request = Pending(Bound([], rows, ()), lambda request: None)
    request.finish([tensor_of("other", np.zeros((1, 1), np.int64)), output], first_row, batch_rows)
    return request


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_request_has_the_scores_of_its_own_rows(dtype):
    batch = np.arange(6, dtype=dtype).reshape(6, 1) / 4
    request = answered(batch, rows=2, first_row=3, batch_rows=6)
    assert list(scores_of(request, 1)) == [0.75, 1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_last_of_several_columns_is_the_score(dtype):
    batch = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5]], dtype=dtype)
    assert list(scores_of(answered(batch, rows=2, first_row=1, batch_rows=3), 1)) == [0.25, 0.5]


def test_a_batch_of_single_numbers_has_a_score_for_each_row():
    batch = np.array([0.1, 0.2, 0.3])
    assert list(scores_of(answered(batch, rows=2, first_row=0, batch_rows=3), 1)) == [0.1, 0.2]


def test_bfloat16_is_read():
    batch = np.array([[0x3F80], [0x3F00]], dtype=np.uint16)  # 1.0 and 0.5
    assert list(scores_of(answered(batch, rows=1, first_row=1, batch_rows=2, datatype="BF16"), 1)) == [0.5]


def test_without_a_batch_dimension_the_whole_answer_is_one_row():
    assert list(scores_of(answered(np.array([0.25, 0.75], np.float32)), 1)) == [0.75]
    assert list(scores_of(answered(np.float32(0.5)), 1)) == [0.5]


def test_numbers_that_are_not_finite_are_passed_on():
    assert np.isnan(scores_of(answered(np.array([[np.nan]], np.float32), batch_rows=1), 1)[0])


@pytest.mark.parametrize("index", [0, 2, -1])
def test_an_output_that_holds_no_floats_or_is_not_there_has_no_scores(index):
    assert list(scores_of(answered(np.zeros((1, 1), np.float32), batch_rows=1), index)) == []


def test_rows_of_no_values_have_no_scores():
    assert list(scores_of(answered(np.zeros((2, 0), np.float32), rows=1, batch_rows=2), 1)) == []
    assert list(scores_of(answered(np.zeros((2, 0), np.float16), rows=1, batch_rows=2), 1)) == []


def test_data_that_is_not_what_its_shape_says_has_no_scores():
    request = Pending(Bound([], 1, ()), lambda request: None)
    request.finish([Tensor("y", "FP32", (1, 1), b"abc")], 0, 1)
    assert list(scores_of(request, 0)) == []


def test_the_first_output_of_floating_point_holds_scores():
    spec = model_spec(outputs=[tensor_spec("label", "INT64"), tensor_spec("p"), tensor_spec("q")])
    assert score_output_index(spec) == 1
    assert score_output_index(spec, "q") == 2
    assert score_output_index(model_spec(outputs=[tensor_spec("label", "INT64")])) == -1
    assert score_output_index(model_spec(outputs=[tensor_spec("any", None, None)])) == 0


@pytest.mark.parametrize("name", ["label", "nonesuch"])
def test_an_output_that_cant_hold_scores_is_refused_by_name(name):
    spec = model_spec(outputs=[tensor_spec("label", "INT64"), tensor_spec("p")])
    with pytest.raises(InvalidRequest, match=rf"{name}.*\['label', 'p'\]"):
        score_output_index(spec, name)
