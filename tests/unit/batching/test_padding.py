"""Requests of unlike lengths in one batch get the answers that they would get alone and unpadded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import Station, answer, model_spec, tensor_spec

from tensorferry.batching.batch import Batch
from tensorferry.batching.padding import check_padding, fill_order, pad_bytes
from tensorferry.batching.pending import Pending
from tensorferry.errors import Cancelled, ConfigurationError, ModelFailed
from tensorferry.model import LENGTH, PaddingSpec
from tensorferry.tensors import Tensor, array_of, tensor_of

BUCKETS = (2, 4, 8)


def padded_spec(dims=(-1,), datatype="INT16", pad_value=0.0, lengths="n", **more):
    padding = PaddingSpec(("x",), ("twice",), BUCKETS, pad_value, lengths)
    return model_spec(
        [tensor_spec("x", datatype, dims), tensor_spec("bias", datatype, (1,))],
        [tensor_spec("twice", datatype, dims), tensor_spec("total", "INT64", (1,))],
        max_batch_size=64,
        padding=padding,
        **more,
    )


def request_of(spec, length, rows=1, start=1):
    shape = (rows, *[length if dim == -1 else dim for dim in spec.inputs[0].dims])
    dtype = spec.inputs[0].datatype.numpy
    x = (np.arange(start, start + np.prod(shape)) % 100).astype(dtype).reshape(shape)
    bias = np.arange(start, start + rows, dtype=dtype).reshape(rows, 1)
    return Pending(spec.bind([tensor_of("x", x), tensor_of("bias", bias)]), lambda request: None)


def as_array(item):
    return array_of(Tensor(item.name, item.datatype, item.shape, b"".join(item.parts)))


def masked(spec):
    """A model that looks only at each row's true length, and leaves rubbish in its outputs' padding."""
    axis = spec.inputs[0].dims.index(-1) + 1

    def run(inputs):
        x, bias, lengths = [as_array(item) for item in inputs]
        position = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        is_true = position < lengths.reshape([-1] + [1] * (x.ndim - 1))
        total = np.where(is_true, x, 0).reshape(len(x), -1).sum(axis=1, dtype=np.int64).reshape(-1, 1)
        twice = np.where(is_true, x * 2, 99).astype(x.dtype)
        return [tensor_of("twice", twice), tensor_of("total", total + bias)]

    return run


def expected(request):
    x, bias = [array_of(tensor) for tensor in request.bound.tensors]
    total = x.reshape(len(x), -1).sum(axis=1, dtype=np.int64).reshape(-1, 1) + bias
    return [(x * 2).tolist(), total.tolist()]


def run_batch(spec, requests):
    batch = Batch(spec, requests, 0.0)
    outputs = masked(spec)(batch.inputs())
    batch.check(outputs)
    batch.deliver(outputs)
    return batch


DIMS = st.sampled_from([(-1,), (-1, 3), (3, -1), (2, -1, 3), (1, -1)])
SHAPES = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), min_size=1, max_size=8)


@settings(deadline=None)
@given(DIMS, st.sampled_from(["INT8", "INT16", "FP32", "INT64"]), st.sampled_from([0.0, -7.0, 5.0]), SHAPES)
def test_padded_answers_equal_the_unpadded_ones_for_any_mix_of_lengths_and_rows(
    dims, datatype, pad_value, shapes
):
    spec = padded_spec(dims, datatype, pad_value)
    requests = [request_of(spec, length, rows, 10 * i) for i, (length, rows) in enumerate(shapes)]
    batch = run_batch(spec, requests)
    longest = max(length for length, _ in shapes)
    assert batch.length == min(bucket for bucket in BUCKETS if bucket >= longest)
    for request in requests:
        assert [array_of(output).tolist() for output in request.outputs] == expected(request)
        assert [output.name for output in request.outputs] == ["twice", "total"]
        if request.bound.length != batch.length:
            # As rows of a batch of its own: the reply's quick encoder takes those alone.
            assert (request.first_row, request.batch_rows) == (0, request.bound.rows)


@settings(deadline=None)
@given(DIMS, st.sampled_from([0.0, -7.0]), SHAPES)
def test_the_model_sees_the_rows_the_pad_value_after_them_and_their_true_lengths(dims, pad_value, shapes):
    spec = padded_spec(dims, pad_value=pad_value)
    requests = [request_of(spec, length, rows, 10 * i) for i, (length, rows) in enumerate(shapes)]
    batch = Batch(spec, requests, 0.0)
    inputs = batch.inputs()
    assert [(item.name, item.datatype) for item in inputs] == [
        (each.name, each.datatype.name) for each in spec.model_inputs
    ]
    x, _, lengths = [as_array(item) for item in inputs]
    axis = dims.index(-1) + 1
    assert lengths.shape == (batch.rows, 1)
    first = 0
    for request, (length, rows) in zip(requests, shapes, strict=True):
        own = np.moveaxis(x[first : first + rows], axis, 0)
        sent = np.moveaxis(array_of(request.bound.tensors[0]), axis, 0)
        assert (own[:length] == sent).all()
        assert (own[length:] == pad_value).all()
        assert lengths[first : first + rows].ravel().tolist() == [length] * rows
        first += rows
    assert batch.true_elements == sum(request.bound.tensors[0].data.nbytes // 2 for request in requests)
    assert batch.true_elements + batch.padded_elements == x.size


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3)), max_size=20),
    cancelled=st.sets(st.integers(0, 19)),
    streams=st.integers(1, 2),
    is_running=st.booleans(),
)
def test_through_the_batcher_each_request_gets_its_own_back_whoever_else_leaves(
    shapes, cancelled, streams, is_running
):
    padding = PaddingSpec(("x",), ("x",), BUCKETS, 9)
    tensors = [tensor_spec("x", "UINT8", (-1,))]
    station = Station(model_spec(tensors, tensors, max_batch_size=8, padding=padding), streams=streams)
    requests = [
        station.submit(bytes([number]) * length, rows) for number, (length, rows) in enumerate(shapes)
    ]
    if is_running:
        station.clock.advance(1.0)
    for number in cancelled & set(range(len(requests))):
        station.batcher.cancel(requests[number])
    station.finish_all()
    for number, (request, (length, rows)) in enumerate(zip(requests, shapes, strict=True)):
        if number in cancelled:
            assert isinstance(request.error, Cancelled)
        else:
            assert answer(request) == bytes([number]) * length * rows
            assert request.outputs[0].shape == (rows, length)
    assert len(station.done) == len(requests)


def test_two_lengths_of_one_bucket_share_a_batch():
    padding = PaddingSpec(("x",), ("x",), BUCKETS)
    tensors = [tensor_spec("x", "UINT8", (-1,))]
    station = Station(model_spec(tensors, tensors, padding=padding))
    first, second, other = station.submit_all([b"12345", b"1234567", b"1"])
    station.finish_all()
    assert [len(batch.requests) for batch in station.executor.started] == [2, 1]
    assert [answer(each) for each in (first, second, other)] == [b"12345", b"1234567", b"1"]


def test_requests_that_have_the_buckets_length_are_neither_copied_nor_cut():
    spec = padded_spec()
    requests = [request_of(spec, 4, 3), request_of(spec, 4, 1)]
    batch = Batch(spec, requests, 0.0)
    assert [part is own.parts[0] for part, own in zip(batch.inputs()[0].parts, requests, strict=True)] == [
        True,
        True,
    ]
    outputs = masked(spec)(batch.inputs())
    batch.deliver(outputs)
    assert all(request.batch_outputs is outputs for request in requests)


def test_a_request_with_one_place_to_pad_is_not_copied():
    spec = padded_spec((-1, 3))
    requests = [request_of(spec, 5), request_of(spec, 8)]
    parts = Batch(spec, requests, 0.0).inputs()[0].parts
    assert parts[0] is requests[0].parts[0]
    assert bytes(parts[1]) == bytes(3 * 3 * 2)
    assert parts[2] is requests[1].parts[0]


def test_a_batch_is_padded_no_further_than_its_longest_request_needs():
    spec = padded_spec()
    batch = Batch(spec, [request_of(spec, 1), request_of(spec, 3), request_of(spec, 8)], 0.0)
    assert batch.length == 8
    assert [half.length for half in batch.halves()] == [2, 8]
    assert (batch.true_elements, batch.padded_elements) == (12, 12)


def test_nothing_is_padded_where_the_model_does_not_ask_for_it():
    spec = model_spec([tensor_spec("x", "FP32", (-1,))])
    batch = Batch(spec, [Pending(spec.bind([Tensor("x", "FP32", (1, 3), bytes(12))]), print)], 0.0)
    assert (batch.length, batch.true_elements, batch.padded_elements) == (0, 0, 0)
    assert [item.shape for item in batch.inputs()] == [(1, 3)]


def test_a_model_without_batch_dimension_is_padded_too():
    padding = PaddingSpec(("x",), ("x",), (4,), 7, "n", "INT32")
    tensors = [tensor_spec("x", "UINT8", (2, -1))]
    spec = model_spec(tensors, tensors, max_batch_size=0, padding=padding)
    request = Pending(spec.bind([Tensor("x", "UINT8", (2, 3), b"abcdef")]), lambda request: None)
    batch = Batch(spec, [request], 0.0)
    x, lengths = batch.inputs()
    assert (x.shape, b"".join(x.parts)) == ((2, 4), b"abc\7def\7")
    assert (lengths.shape, lengths.datatype, as_array(lengths).tolist()) == ((1,), "INT32", [3])
    output = Tensor("x", "UINT8", (2, 4), b"ABC!DEF!")
    batch.check([output])
    batch.deliver([output])
    (answered,) = request.outputs
    assert (answered.shape, bytes(answered.data)) == ((2, 3), b"ABCDEF")


@pytest.mark.parametrize("shape", [(1, 5), (1,), (1, 4)])
def test_an_output_that_cannot_be_cut_back_is_the_models_fault(shape):
    spec = padded_spec()
    batch = Batch(spec, [request_of(spec, 5)], 0.0)
    total = tensor_of("total", np.zeros((1, 1), np.int64))
    with pytest.raises(ModelFailed, match=r"'twice' has shape .* padded to 8; .* dimension 1 must be 8"):
        batch.check([Tensor("twice", "INT16", shape, bytes(10)), total])
    batch.check([Tensor("twice", "INT16", (1, 8), bytes(16)), total])


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", -1.5, np.float32(-1.5).tobytes()),
        ("FP16", 0.5, np.float16(0.5).tobytes()),
        ("FP32", float("-inf"), np.float32("-inf").tobytes()),
        ("BF16", 1.0, b"\x80\x3f"),
        ("BF16", 1.00390625, b"\x80\x3f"),  # half of a step above 1: to the even neighbour
        ("BF16", float("inf"), b"\x80\x7f"),
        ("INT64", -100.0, np.int64(-100).tobytes()),
        ("UINT8", 255.0, b"\xff"),
        ("BOOL", 1.0, b"\x01"),
    ],
)
def test_the_pad_value_is_of_the_inputs_datatype(datatype, value, expected):
    assert pad_bytes(datatype, value) == expected


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", -1.0),
        ("UINT8", 256.0),
        ("INT32", 0.5),
        ("INT64", float("nan")),
        ("INT32", float("inf")),
        ("BOOL", 2.0),
        ("FP16", 1e6),
        ("FP32", 1e300),
        ("BF16", 1e300),
        ("BYTES", 0.0),
    ],
)
def test_a_pad_value_that_the_datatype_lacks_is_refused(datatype, value):
    with pytest.raises(ConfigurationError, match=f"pad value .* {datatype}"):
        pad_bytes(datatype, value)


def test_a_wrong_pad_value_is_found_in_the_specification():
    check_padding(padded_spec())
    check_padding(model_spec())
    with pytest.raises(ConfigurationError, match=r"model 'm': input 'x': the pad value 0\.5"):
        check_padding(padded_spec(pad_value=0.5))


def key(bucket, *rest):
    return ((LENGTH, (bucket,)), *rest)


FP32 = ("FP32", (-1, 3))


def test_a_batch_is_filled_up_from_the_nearest_smaller_bucket_first():
    waiting = [key(2, FP32), key(16, FP32), key(4, FP32), key(8, FP32), key(6, FP32)]
    assert fill_order(key(8, FP32), waiting) == [key(6, FP32), key(4, FP32)]


def test_rows_that_would_be_mostly_padding_do_not_fill_up_a_batch():
    assert fill_order(key(8, FP32), [key(3, FP32), key(2, FP32)]) == []


def test_a_batch_is_not_filled_up_with_what_differs_in_more_than_the_bucket():
    waiting = [key(2, ("FP16", (-1, 3))), key(2, ("FP32", (-1, 4))), key(2), (), (FP32,)]
    assert fill_order(key(8, FP32), waiting) == []
    assert fill_order((), [(), key(2)]) == []
    assert fill_order((("FP32", (8,)),), [(("FP32", (4,)),)]) == []
