from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.errors import InvalidRequest
from tensorferry.tensors import DATATYPES, Tensor, array_of, byte_size, tensor_of

NUMPY = [datatype for datatype in DATATYPES.values() if datatype.numpy is not None]


@pytest.mark.parametrize("datatype", NUMPY, ids=lambda each: each.name)
def test_array_survives_the_way_to_a_tensor_and_back(datatype):
    array = np.array([[0, 1, 0], [1, 1, 0]]).astype(datatype.numpy)
    tensor = tensor_of("x", array)
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype.name, (2, 3))
    assert bytes(tensor.data) == array.tobytes()
    back = array_of(tensor)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(st.binary(min_size=0, max_size=64))
def test_bits_pass_unchanged_even_where_they_are_no_number(data):
    data = data[: len(data) // 8 * 8]
    array = array_of(Tensor("x", "FP64", (len(data) // 8,), data))
    assert bytes(tensor_of("x", array).data) == data


def test_shape_without_dimensions_stays_so():
    tensor = tensor_of("x", np.array(7, dtype=np.int32))
    assert tensor.shape == ()
    assert array_of(tensor).shape == ()
    assert array_of(Tensor("x", "BF16", (), b"\x80\x3f")).item() == 1.0


def test_array_without_elements_keeps_its_shape():
    tensor = tensor_of("x", np.zeros((3, 0, 2), np.float32))
    assert (tensor.shape, len(tensor.data)) == ((3, 0, 2), 0)
    assert array_of(tensor).shape == (3, 0, 2)


def test_contiguous_array_is_viewed_not_copied():
    array = np.zeros(4, np.int16)
    tensor = tensor_of("x", array)
    array[0] = 1
    assert bytes(tensor.data[:2]) == b"\x01\x00"


def test_slices_and_transposes_travel_in_row_major_order():
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    assert bytes(tensor_of("x", array.T).data) == bytes([0, 3, 1, 4, 2, 5])
    assert bytes(tensor_of("x", array[:, ::2]).data) == bytes([0, 2, 3, 5])


def test_big_endian_array_travels_as_little_endian():
    tensor = tensor_of("x", np.array([1], dtype=">i4"))
    assert (tensor.datatype, bytes(tensor.data)) == ("INT32", b"\x01\x00\x00\x00")


def test_platforms_other_name_of_a_datatype_is_the_same_datatype():
    assert tensor_of("x", np.array([1], dtype=np.longlong)).datatype == "INT64"


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([1j]), np.array([None]), np.array(["2020-01-01"], "M8[D]")]
)
def test_dtype_that_the_protocol_lacks_is_refused_by_name(array):
    with pytest.raises(InvalidRequest, match="'x': the protocol has no datatype for numpy's"):
        tensor_of("x", array)


def test_brain_floats_are_widened_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    wide = array_of(Tensor("x", "BF16", (2**16,), bits.tobytes()))
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, bits)
    assert not (wide.view(np.uint32) & 0xFFFF).any()


def test_array_of_foreign_bytes_cannot_be_written_to():
    array = array_of(Tensor("x", "UINT8", (2,), bytearray(b"ab")))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("datatype", ["BYTES", "FP33", ""])
def test_datatype_without_an_array_is_refused(datatype):
    with pytest.raises(InvalidRequest, match="no numpy array"):
        array_of(Tensor("x", datatype, (1,), b""))


def test_byte_size_does_not_wrap():
    assert byte_size((2**40, 30), 4) == 2**40 * 120
    assert byte_size((2**32, 2**32), 8) == 2**67
    assert byte_size((), 8) == 8
    assert byte_size((0, 2**62), 8) == 0
