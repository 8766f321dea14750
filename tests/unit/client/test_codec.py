"""What a request says, and what an answer is taken for."""

import numpy as np
import pytest

from tensorferry import tensors
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import InvalidRequest, ServerError, TypedArray, bfloat16_of
from tensorferry_client._codec import DATATYPES, infer_request, infer_result


def answer(datatype, shape, raw=None, **contents):
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    output = response.outputs.add(name="y", datatype=datatype, shape=shape)
    if raw is not None:
        response.raw_output_contents.append(raw)
    for field, values in contents.items():
        getattr(output.contents, field).extend(values)
    return response


def read(datatype, shape, raw=None, **contents):
    return infer_result(answer(datatype, shape, raw, **contents)).outputs["y"]


def test_datatypes_are_the_servers():
    assert {name: datatype.numpy for name, datatype in tensors.DATATYPES.items()} == DATATYPES


NUMPY_DATATYPES = sorted(name for name, dtype in DATATYPES.items() if dtype is not None)


@pytest.mark.parametrize("datatype", NUMPY_DATATYPES)
def test_an_array_goes_out_under_its_datatype_with_raw_contents_only(datatype):
    array = np.arange(6).reshape(2, 3).astype(DATATYPES[datatype])
    request = infer_request("m", {"x": array})
    assert (request.inputs[0].name, request.inputs[0].datatype) == ("x", datatype)
    assert list(request.inputs[0].shape) == [2, 3]
    assert not request.inputs[0].HasField("contents")
    assert list(request.raw_input_contents) == [array.tobytes()]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(12, dtype=np.float32)[::2],
        np.arange(6, dtype=">f4"),
        np.array(3, np.float32),
    ],
    ids=["transposed", "strided", "big-endian", "scalar"],
)
def test_any_layout_goes_out_row_major_and_little_endian(array):
    request = infer_request("m", {"x": array})
    raw = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(tuple(request.inputs[0].shape))
    assert request.inputs[0].datatype == "FP32"
    assert np.array_equal(raw, array)
    assert raw.shape == array.shape


def test_order_of_raw_contents_is_that_of_the_inputs():
    request = infer_request("m", {"b": np.array([1], np.int8), "a": np.array([2], np.int8)})
    assert [tensor.name for tensor in request.inputs] == ["b", "a"]
    assert list(request.raw_input_contents) == [b"\x01", b"\x02"]


def test_requested_outputs_version_and_id_are_sent():
    request = infer_request("m", {}, version="3", outputs=["p", "q"], request_id="r")
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "r")
    assert [output.name for output in request.outputs] == ["p", "q"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "bool_param"),
        (-5, "int64_param"),
        (2**63, "uint64_param"),
        (0.5, "double_param"),
        ("high", "string_param"),
    ],
)
def test_parameters_travel_both_ways_in_the_field_of_their_type(value, field):
    request = infer_request("m", {}, parameters={"key": value})
    assert request.parameters["key"].WhichOneof("parameter_choice") == field
    back = infer_result(pb.ModelInferResponse(parameters=request.parameters)).parameters
    assert back == {"key": value}
    assert type(back["key"]) is type(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, b"bytes"])
def test_a_parameter_that_fits_no_field_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match="'key'"):
        infer_request("m", {}, parameters={"key": value})


@pytest.mark.parametrize("value", [np.array([1], np.complex64), np.array(["2020"], "M8[Y]"), [1.0], 3])
def test_an_input_of_no_datatype_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match="'x'"):
        infer_request("m", {"x": value})


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"a", b"", b"\x00long\x00"], np.object_),
        np.array(["a", "", "é"], np.object_),
        np.array(["a", "bc"]),
    ],
    ids=["bytes", "str", "fixed width"],
)
def test_bytes_round_trip_with_their_lengths(array):
    request = infer_request("m", {"x": array})
    assert request.inputs[0].datatype == "BYTES"
    back = read("BYTES", array.shape, request.raw_input_contents[0])
    assert [item if isinstance(array.ravel()[0], bytes) else item.decode() for item in back] == array.tolist()


def test_an_object_that_is_neither_bytes_nor_str_is_refused():
    with pytest.raises(InvalidRequest, match="int"):
        infer_request("m", {"x": np.array([1], np.object_)})


def test_bfloat16_goes_out_as_its_bits_and_comes_back_as_float32():
    exact = np.array([[1.0, -2.5], [0.0, 3.0e38]], np.float32)
    exact = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    request = infer_request("m", {"x": bfloat16_of(exact)})
    assert request.inputs[0].datatype == "BF16"
    assert len(request.raw_input_contents[0]) == 8
    back = read("BF16", [2, 2], request.raw_input_contents[0])
    assert back.dtype == np.float32
    assert np.array_equal(back, exact)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (1.0 + 2**-8, 0x3F80),  # a tie goes to the even one, below
        (1.0 + 3 * 2**-8, 0x3F82),  # and here above
        (1.0 + 2**-8 + 2**-20, 0x3F81),
        (np.finfo(np.float32).max, 0x7F80),
        (-np.inf, 0xFF80),
        (np.nan, 0x7FC0),
    ],
)
def test_bfloat16_is_rounded_to_the_nearest(value, bits):
    assert bfloat16_of(np.float32(value)).array == bits


@pytest.mark.parametrize("datatype", ["BYTES", "FP33", ""])
def test_a_typed_array_of_no_fixed_size_is_refused(datatype):
    with pytest.raises(InvalidRequest, match="datatype"):
        TypedArray(np.zeros(2, np.uint16), datatype)


def test_a_typed_array_of_another_width_is_refused():
    with pytest.raises(InvalidRequest, match="BF16 takes 2 bytes"):
        TypedArray(np.zeros(2, np.float32), "BF16")


@pytest.mark.parametrize("datatype", NUMPY_DATATYPES)
def test_raw_outputs_come_back_as_read_only_arrays(datatype):
    array = np.arange(6).reshape(3, 2).astype(DATATYPES[datatype])
    back = read(datatype, [3, 2], array.tobytes())
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    assert not back.flags.writeable


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 7]),
        ("INT32", "int_contents", [-(2**31), 7]),
        ("INT64", "int64_contents", [-(2**63), 7]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, -1.0]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_typed_outputs_are_understood(datatype, field, values):
    back = read(datatype, [1, 2], **{field: values})
    assert back.tolist() == [values]
    assert back.dtype == (DATATYPES[datatype] or np.object_)


def test_an_output_without_elements_needs_no_bytes():
    assert read("FP32", [0, 4], b"").shape == (0, 4)


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (answer("FP32", [2], b"\x00" * 7), "7 bytes"),
        (answer("FP33", [2], b""), "unknown datatype 'FP33'"),
        (answer("FP32", [-1], b"\x00" * 4), "negative size"),
        (answer("FP32", [2], fp32_contents=[1.0]), "1 elements"),
        (answer("FP16", [2]), "no raw came"),
        (answer("INT8", [1], int_contents=[200]), "INT8's range"),
        (answer("BYTES", [1], b"\x05\x00\x00\x00ab"), "middle of an element"),
        (answer("BYTES", [2], b"\x01\x00\x00\x00a"), "1 elements"),
        (pb.ModelInferResponse(raw_output_contents=[b""]), "0 outputs and 1 raw"),
    ],
)
def test_an_answer_that_makes_no_sense_is_the_servers_error(response, complaint):
    with pytest.raises(ServerError, match=complaint):
        infer_result(response)
