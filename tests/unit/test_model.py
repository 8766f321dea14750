from __future__ import annotations

import struct

import pytest
from tests.unit.support import model_spec, tensor_spec

from tensorferry.errors import InvalidRequest
from tensorferry.model import LENGTH, MAX_PIECES, BatchingSpec, PaddingSpec, batch_buckets
from tensorferry.tensors import DATATYPES, Tensor

FEATURES = model_spec([tensor_spec("features", "FP32", (30,))], max_batch_size=4)
PAIR = model_spec([tensor_spec("a", "FP32", (2,)), tensor_spec("b", "INT64", (-1,))], max_batch_size=4)
LOOSE = model_spec([tensor_spec("a", None, None), tensor_spec("b", None, None)], max_batch_size=4)
ALONE = model_spec([tensor_spec("a", "FP32", (2, -1))], max_batch_size=0)


def features(shape, datatype="FP32", name="features", size=None):
    rows = max(0, shape[0]) if shape else 0
    return Tensor(name, datatype, shape, bytes(120 * rows if size is None else size))


def refusal(spec, *tensors) -> str:
    with pytest.raises(InvalidRequest) as caught:
        spec.bind(tensors)
    message = str(caught.value)
    assert message.startswith("model 'm': ")
    return message.removeprefix("model 'm': ")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (features((1, 31)), ["'features'", "[1, 31]", "[-1, 30]"]),
        (features((30,)), ["'features'", "30 rows", "max_batch_size is 4"]),
        (features((1, 30, 1)), ["'features'", "[1, 30, 1]", "[-1, 30]"]),
        (features((1,)), ["'features'", "[1]", "[-1, 30]"]),
        (features(()), ["'features'", "no dimensions"]),
        (features((0, 30)), ["'features'", "0 rows", "[0, 30]", "at least 1"]),
        (features((-1, 30)), ["'features'", "-1 rows", "at least 1"]),
        (features((-1, -30), size=120), ["'features'", "-1 rows"]),
        (features((1, -30)), ["'features'", "[1, -30]", "[-1, 30]"]),
        (features((5, 30)), ["'features'", "5 rows", "max_batch_size is 4"]),
        (features((1, 30), "FP64"), ["'features'", "FP64", "expected FP32"]),
        (features((1, 30), "INT32"), ["'features'", "INT32", "expected FP32"]),
        (features((1, 30), "FP33"), ["'features'", "'FP33'", "no datatype", "expected FP32"]),
        (features((1, 30), ""), ["'features'", "''", "expected FP32"]),
        (features((1, 30), "BYTES"), ["'features'", "BYTES", "expected FP32"]),
        (features((1, 30), size=119), ["'features'", "119 bytes", "[1, 30]", "FP32", "120"]),
        (features((1, 30), size=121), ["'features'", "121 bytes", "120"]),
        (features((1, 30), size=0), ["'features'", "0 bytes", "120"]),
        (features((2**40, 30), size=120), ["'features'", str(2**40), "max_batch_size is 4"]),
        (features((1, 30), name="feature"), ["'features' is missing", "['features']", "['feature']"]),
    ],
)
def test_refusal_names_the_model_the_tensor_what_was_expected_and_what_came(tensor, says):
    message = refusal(FEATURES, tensor)
    assert [each for each in says if each not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2**40, 30), 120), ((2**62, 4), 0), ((2**32, 2**32), 0), ((2**31, 2**31, 2**2), 0), ((2**63, 2), 0)],
)
def test_product_that_overflows_64_bits_does_not_pass_for_a_small_one(shape, size):
    free = model_spec([tensor_spec("x", "FP32", [-1] * len(shape))], max_batch_size=0)
    message = refusal(free, Tensor("x", "FP32", shape, bytes(size)))
    product = 4
    for each in shape:
        product *= each
    assert f"{size} bytes" in message
    assert str(product) in message


def test_two_negative_sizes_do_not_make_a_positive_one():
    assert "[-2, -3]" in refusal(
        model_spec([tensor_spec("x", "FP32", [-1, -1])], max_batch_size=0),
        Tensor("x", "FP32", (-2, -3), bytes(24)),
    )
    message = refusal(model_spec([tensor_spec("x", None, None)]), Tensor("x", "FP32", (1, -2, -3), bytes(24)))
    assert "negative size in shape [1, -2, -3]" in message


A = Tensor("a", "FP32", (2, 2), bytes(16))
B = Tensor("b", "INT64", (2, 3), bytes(48))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ((), "input 'a' is missing; the model takes ['a', 'b']"),
        ((A,), "input 'b' is missing; the model takes ['a', 'b']"),
        ((A, A, B), "input 'a' is given twice"),
        ((A, A), "input 'a' is given twice"),
        ((A, B, Tensor("c", "FP32", (2,), bytes(8))), "unknown input 'c'; the model takes ['a', 'b']"),
        ((A, Tensor("b", "INT64", (1, 3), bytes(24))), "input 'b' has 1 rows, and 'a' has 2"),
        ((A, Tensor("b", "INT64", (), bytes(8))), "input 'b' has shape [], expected [-1, -1]"),
        ((A, Tensor("b", "INT64", (2, 3), bytes(47))), "input 'b' has 47 bytes"),
        ((A, Tensor("b", "INT64", (2, -3), bytes(48))), "input 'b' has shape [2, -3], expected [-1, -1]"),
    ],
)
def test_several_inputs_are_matched_by_name_and_refused_by_name(tensors, says):
    assert says in refusal(PAIR, *tensors)


def test_inputs_are_put_into_the_models_order():
    bound = PAIR.bind([B, A])
    assert [tensor.name for tensor in bound.tensors] == ["a", "b"]
    assert bound.rows == 2


def test_second_input_without_dimensions_is_refused_where_the_rows_are_scalars():
    scalars = model_spec([tensor_spec("a", "FP32", ()), tensor_spec("b", "FP32", ())])
    assert "'b'" in refusal(scalars, Tensor("a", "FP32", (1,), bytes(4)), Tensor("b", "FP32", (), bytes(4)))
    assert "'a'" in refusal(scalars, Tensor("a", "FP32", (), bytes(4)), Tensor("b", "FP32", (1,), bytes(4)))
    scalars.bind([Tensor(name, "FP32", (3,), bytes(12)) for name in "ab"])


def test_bound_data_is_the_callers_not_a_copy():
    tensor = features((1, 30))
    assert FEATURES.bind([tensor]).tensors[0].data is tensor.data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_and_infinity_pass_as_data(value):
    tensor = Tensor("features", "FP32", (1, 30), struct.pack("<30f", *[value] * 30))
    assert FEATURES.bind([tensor]).rows == 1


@pytest.mark.parametrize("data", [bytearray(120), memoryview(bytes(120))])
def test_any_buffer_of_the_right_size_will_do(data):
    assert FEATURES.bind([Tensor("features", "FP32", (1, 30), data)]).rows == 1


def test_booleans_must_be_zero_or_one():
    spec = model_spec([tensor_spec("x", "BOOL", (3,))])
    assert spec.bind([Tensor("x", "BOOL", (1, 3), b"\x00\x01\x01")]).rows == 1
    assert "'x' is BOOL" in refusal(spec, Tensor("x", "BOOL", (1, 3), b"\x00\x02\x01"))


def test_model_without_batch_dimension_takes_its_dims_as_they_are():
    bound = ALONE.bind([Tensor("a", "FP32", (2, 3), bytes(24))])
    assert (bound.rows, bound.key) == (1, (("FP32", (2, 3)),))
    assert "shape [3, 2], expected [2, -1]" in refusal(ALONE, Tensor("a", "FP32", (3, 2), bytes(24)))
    assert ALONE.bind([Tensor("a", "FP32", (2, 0), b"")]).rows == 1


def test_only_what_may_vary_is_in_the_key():
    assert FEATURES.bind([features((2, 30))]).key == ()
    assert PAIR.bind([A, B]).key == (("INT64", (3,)),)
    loose = LOOSE.bind([Tensor("a", "FP16", (2, 5), bytes(20)), Tensor("b", "BOOL", (2,), bytes(2))])
    assert loose.key == (("FP16", (5,)), ("BOOL", ()))


def test_rows_are_not_in_the_key():
    assert (
        PAIR.bind([A, B]).key
        == PAIR.bind([Tensor("a", "FP32", (1, 2), bytes(8)), Tensor("b", "INT64", (1, 3), bytes(24))]).key
    )


def test_model_without_configuration_takes_any_shape_whose_rows_agree():
    message = refusal(LOOSE, Tensor("a", "FP32", (2, 1), bytes(8)), Tensor("b", "FP32", (3, 1), bytes(12)))
    assert "'b' has shape [3, 1], and the first dimension must be the 2 rows of 'a'" in message
    assert "'b'" in refusal(LOOSE, Tensor("a", "FP32", (2, 1), bytes(8)), Tensor("b", "FP32", (), bytes(4)))


@pytest.mark.parametrize("datatype", ["BYTES", "UINT16", "FP8", ""])
def test_model_without_configuration_refuses_what_its_backend_lacks(datatype):
    spec = model_spec([tensor_spec("x", None, None)], datatypes=frozenset({"FP32", "BOOL"}))
    message = refusal(spec, Tensor("x", datatype, (1,), bytes(2)))
    assert "expected one of BOOL, FP32" in message
    assert datatype in message


def test_bytes_are_refused_whatever_the_backend_says():
    assert "'a' is BYTES" in refusal(LOOSE, Tensor("a", "BYTES", (1,), b""), Tensor("b", "BYTES", (1,), b""))


@pytest.mark.parametrize("name", [name for name, datatype in DATATYPES.items() if datatype.itemsize])
def test_every_datatype_is_measured_by_its_own_size(name):
    size = DATATYPES[name].itemsize
    spec = model_spec([tensor_spec("x", name, (3,))])
    assert spec.bind([Tensor("x", name, (2, 3), bytes(6 * size))]).rows == 2
    assert f"{6 * size + 1} bytes" in refusal(spec, Tensor("x", name, (2, 3), bytes(6 * size + 1)))


@pytest.mark.parametrize(
    ("max_batch_size", "preferred", "expected"),
    [
        (0, (), (1,)),
        (1, (), (1,)),
        (6, (), (1, 2, 4, 6)),
        (8, (), (1, 2, 4, 8)),
        (8, (3, 8), (1, 2, 3, 4, 8)),
    ],
)
def test_buckets_are_powers_of_two_the_preferred_sizes_and_the_maximum(max_batch_size, preferred, expected):
    assert batch_buckets(max_batch_size, preferred) == expected


RAGGED = model_spec(
    [
        tensor_spec("ids", "INT32", (-1,)),
        tensor_spec("mask", "FP32", (2, -1)),
        tensor_spec("k", "FP32", (-1,)),
    ],
    padding=PaddingSpec(("ids", "mask"), (), (4, 16), lengths_input="lengths"),
)


def ragged(length, rows=1, k=1, mask_length=None):
    mask_length = length if mask_length is None else mask_length
    return [
        Tensor("ids", "INT32", (rows, length), bytes(4 * rows * length)),
        Tensor("mask", "FP32", (rows, 2, mask_length), bytes(8 * rows * mask_length)),
        Tensor("k", "FP32", (rows, k), bytes(4 * rows * k)),
    ]


@pytest.mark.parametrize(("length", "bucket"), [(0, 4), (1, 4), (4, 4), (5, 16), (16, 16)])
def test_padded_request_is_bound_to_the_smallest_bucket_that_holds_it(length, bucket):
    bound = RAGGED.bind(ragged(length, rows=2))
    assert bound.length == length
    assert bound.key == ((LENGTH, (bucket,)), ("INT32", (-1,)), ("FP32", (2, -1)), ("FP32", (1,)))


def test_inputs_that_are_not_padded_must_have_the_same_shape_still():
    assert RAGGED.bind(ragged(3)).key == RAGGED.bind(ragged(4)).key
    assert RAGGED.bind(ragged(3)).key != RAGGED.bind(ragged(3, k=2)).key


def test_request_longer_than_the_largest_bucket_is_refused_with_the_limit():
    message = refusal(RAGGED, *ragged(17))
    assert "'mask' has length 17" in message or "'ids' has length 17" in message
    assert "takes is 16" in message


def test_padded_inputs_of_unlike_lengths_are_refused_by_name():
    message = refusal(RAGGED, *ragged(3, mask_length=4))
    assert "'mask' has length 4 in shape [1, 2, 4], and 'ids' has 3" in message


def test_lengths_are_the_models_input_and_not_the_callers():
    assert [each.name for each in RAGGED.model_inputs] == ["ids", "mask", "k", "lengths"]
    lengths = RAGGED.model_inputs[-1]
    assert (lengths.datatype, lengths.dims) == (DATATYPES["INT64"], (1,))
    assert FEATURES.model_inputs is FEATURES.inputs
    message = refusal(RAGGED, *ragged(3), Tensor("lengths", "INT64", (1, 1), bytes(8)))
    assert "'lengths' is filled in by the server; send only ['ids', 'mask', 'k']" in message


def test_request_of_too_many_rows_is_taken_only_where_it_is_split_and_then_up_to_a_bound():
    splitting = model_spec([tensor_spec()], max_batch_size=4, batching=BatchingSpec(split_oversized=True))
    most = MAX_PIECES * 4
    assert splitting.bind([Tensor("x", "FP32", (most, 1), bytes(4 * most))]).rows == most
    message = refusal(splitting, Tensor("x", "FP32", (most + 1, 1), bytes(4 * most + 4)))
    assert f"{most + 1} rows" in message
    assert f"max_batch_size is 4, and a request is split into at most {MAX_PIECES} times as many" in message
