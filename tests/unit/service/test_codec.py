from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import model_spec, tensor_spec

from tensorferry.errors import InvalidRequest
from tensorferry.service.codec import (
    decode_inputs,
    encode_response,
    priority_of,
    requested_outputs,
    timeout_of,
)
from tensorferry.tensors import DATATYPES, Tensor
from tensorferry.wire import open_inference_pb2 as pb

SPEC = model_spec(outputs=[tensor_spec("y"), tensor_spec("z")])

TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.1, float("-inf")]),
    "FP64": ("fp64_contents", [0.1, 1e300]),
}


def request(*inputs, raw=(), **more) -> pb.ModelInferRequest:
    """``inputs`` are (name, datatype, shape, contents)."""
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=raw, **more)
    for name, datatype, shape, contents in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        if contents is not None:
            message.inputs[-1].contents.SetInParent()
            message.inputs[-1].contents.MergeFrom(pb.InferTensorContents(**contents))
    return message


def refusal(function, *arguments) -> str:
    with pytest.raises(InvalidRequest) as caught:
        function(*arguments)
    assert str(caught.value).startswith("model 'm': ")
    return str(caught.value)


# -- inputs -------------------------------------------------------------------------------------


def test_raw_inputs_keep_their_order_and_their_bytes():
    message = request(("b", "FP16", [1, 2], None), ("a", "XY", [-1], None), raw=[b"1234", b""])
    first, second = decode_inputs(message)
    assert first == Tensor("b", "FP16", (1, 2), b"1234")
    assert second == Tensor("a", "XY", (-1,), b""), "what it means is for the model to judge"


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_the_same_bytes_as_raw_ones(datatype):
    field, values = TYPED[datatype]
    (tensor,) = decode_inputs(request(("x", datatype, [1, 2], {field: values})))
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, (1, 2))
    assert bytes(tensor.data) == np.array(values, DATATYPES[datatype].numpy).tobytes()


def test_every_datatype_is_either_typed_or_raw_only():
    assert set(DATATYPES) - set(TYPED) == {"FP16", "BF16", "BYTES"}


@given(st.lists(st.floats(width=32), max_size=20))
def test_typed_floats_keep_every_value_even_those_that_are_none(values):
    (tensor,) = decode_inputs(request(("x", "FP32", [len(values)], {"fp32_contents": values})))
    np.testing.assert_array_equal(np.frombuffer(tensor.data, np.float32), np.array(values, np.float32))


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)],
)
def test_typed_integer_out_of_its_datatypes_range_is_refused(datatype, value):
    field, _ = TYPED[datatype]
    message = request(("x", datatype, [2], {field: [0, value]}))
    assert f"'x' has an element out of the range of {datatype}" in refusal(decode_inputs, message)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_in_another_types_field_are_refused(datatype):
    field, _ = TYPED[datatype]
    for other, values in {(name, tuple(values)) for name, values in TYPED.values()}:
        if other != field:
            message = refusal(decode_inputs, request(("x", datatype, [2], {other: values})))
            assert f"input 'x' is {datatype}, which belongs into {field}, not ['{other}']" in message
    both = request(("x", datatype, [2], {"bytes_contents": [b"a", b"b"], field: TYPED[datatype][1]}))
    assert "belongs into" in refusal(decode_inputs, both)


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_typed_elements_must_be_the_shapes(count):
    message = request(("x", "FP32", [1, 2], {"fp32_contents": [0.0] * count}))
    assert f"input 'x' has {count} elements, and shape [1, 2] takes 2" in refusal(decode_inputs, message)


def test_number_of_typed_elements_is_not_compared_modulo_anything():
    message = request(("x", "FP32", [2**62, 4], {"fp32_contents": [0.0]}))
    assert f"takes {2**64}" in refusal(decode_inputs, message)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (request(), "the request has no inputs"),
        (request(raw=[b"1234"]), "the request has no inputs"),
        (request(("x", "FP32", [1], None)), "input 'x' has no data"),
        (request(("x", "FP32", [1], {})), "input 'x' has no data"),
        (request(("x", "FP32", [1], None), raw=[b"1234"] * 2), "2 raw_input_contents for 1 inputs"),
        (
            request(("x", "FP32", [1], None), ("y", "FP32", [1], None), raw=[b"1234"]),
            "1 raw_input_contents for 2 inputs",
        ),
        (
            request(("x", "FP32", [1], {"fp32_contents": [0.0]}), raw=[b"1234"]),
            "input 'x' has typed contents beside raw_input_contents",
        ),
        (request(("x", "FP32", [1], {}), raw=[b"1234"]), "typed contents beside raw_input_contents"),
        (
            request(
                ("x", "FP32", [1], None), ("y", "FP32", [1], {"fp32_contents": [0.0]}), raw=[b"1234", b"1234"]
            ),
            "input 'y' has typed contents beside raw_input_contents",
        ),
        (
            request(("x", "FP16", [1], {"fp32_contents": [0.0]})),
            "datatype 'FP16' has no typed contents; send raw_input_contents",
        ),
        (request(("x", "BF16", [1], {"fp32_contents": [0.0]})), "'BF16' has no typed contents"),
        (request(("x", "FP33", [1], {"fp32_contents": [0.0]})), "datatype 'FP33' is unknown"),
    ],
)
def test_data_that_is_missing_or_given_twice_is_refused(message, says):
    assert says in refusal(decode_inputs, message)


@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
def test_tensor_without_elements_needs_no_data(datatype):
    assert decode_inputs(request(("x", datatype, [1, 0], None))) == [Tensor("x", datatype, (1, 0), b"")]


def test_typed_strings_are_left_for_the_model_to_refuse_by_name():
    (tensor,) = decode_inputs(request(("x", "BYTES", [1], {"bytes_contents": [b"hello"]})))
    with pytest.raises(InvalidRequest, match="'x' is BYTES, expected FP32"):
        SPEC.bind([tensor])


@pytest.mark.parametrize("raw", [[], [b"1234"]])
def test_shared_memory_is_refused(raw):
    message = request(("x", "FP32", [1], None if raw else {"fp32_contents": [0.0]}), raw=raw)
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert "'x': shared memory isn't offered here" in refusal(decode_inputs, message)


@given(st.binary(max_size=200))
def test_whatever_parses_is_decoded_or_refused_and_raises_nothing_else(data):
    try:
        message = pb.ModelInferRequest.FromString(data)
    except Exception:  # not a message: the service's affair
        return
    try:
        SPEC.bind(decode_inputs(message))
        requested_outputs(message, SPEC)
        timeout_of(message)
    except InvalidRequest:
        pass


SHAPES = st.lists(st.sampled_from([-(2**63), -1, 0, 1, 2, 2**40, 2**63 - 1]), max_size=3)


@given(
    name=st.sampled_from(["x", "y", ""]),
    datatype=st.sampled_from([*DATATYPES, "FP8", ""]),
    shape=SHAPES,
    contents=st.none() | st.sampled_from([{field: values} for field, values in TYPED.values()]),
    raw=st.lists(st.binary(max_size=16), max_size=2),
)
def test_any_single_input_is_decoded_and_bound_or_refused(name, datatype, shape, contents, raw):
    loose = model_spec([tensor_spec("x", None, None)], max_batch_size=0)
    for spec in (SPEC, loose):
        try:
            bound = spec.bind(decode_inputs(request((name, datatype, shape, contents), raw=raw)))
        except InvalidRequest as error:
            assert str(error).startswith("model 'm': ")  # noqa: PT017 - not raising is right as well
        else:
            (tensor,) = bound.tensors
            assert len(tensor.data) == np.prod(tensor.shape, dtype=object) * DATATYPES[datatype].itemsize
            assert bound.rows == (1 if spec is loose else tensor.shape[0])


# -- outputs ------------------------------------------------------------------------------------


def with_outputs(*names) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    for name in names:
        message.outputs.add(name=name)
    return message


def test_no_wish_means_all_outputs():
    assert requested_outputs(with_outputs(), SPEC) == ()


def test_wishes_are_kept_in_their_order():
    assert requested_outputs(with_outputs("z", "y"), SPEC) == ("z", "y")


@pytest.mark.parametrize(
    ("names", "says"),
    [(["x"], "no output 'x'; the model has ['y', 'z']"), (["y", "y"], "'y' is requested twice")],
)
def test_output_that_is_unknown_or_named_twice_is_refused(names, says):
    assert says in refusal(requested_outputs, with_outputs(*names), SPEC)


@pytest.mark.parametrize(
    ("parameter", "says"), [("classification", "classification"), ("shared_memory_region", "shared")]
)
def test_extension_that_is_not_offered_is_refused(parameter, says):
    message = with_outputs("y")
    message.outputs[0].parameters[parameter].int64_param = 1
    assert says in refusal(requested_outputs, message, SPEC)


OUTPUTS = [Tensor("y", "FP32", (1, 1), memoryview(b"1234")), Tensor("z", "FP32", (1, 1), b"5678")]


def test_answer_has_names_datatypes_shapes_and_raw_bytes():
    response = encode_response(SPEC, "id-1", OUTPUTS)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "id-1")
    described = [(each.name, each.datatype, list(each.shape)) for each in response.outputs]
    assert described == [("y", "FP32", [1, 1]), ("z", "FP32", [1, 1])]
    assert list(response.raw_output_contents) == [b"1234", b"5678"]


def test_answer_has_the_requested_outputs_in_the_requested_order():
    response = encode_response(SPEC, "", OUTPUTS, ("z", "y"))
    assert [each.name for each in response.outputs] == ["z", "y"]
    assert list(response.raw_output_contents) == [b"5678", b"1234"]
    assert list(encode_response(SPEC, "", OUTPUTS, ("z",)).raw_output_contents) == [b"5678"]


# -- timeout and priority -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "seconds"),
    [
        ({"int64_param": 1_500_000}, 1.5),
        ({"uint64_param": 1}, 1e-6),
        ({"string_param": "250000"}, 0.25),
        ({"uint64_param": 2**64 - 1}, pytest.approx(1.8446744e13)),
    ],
)
def test_timeout_is_in_microseconds(parameter, seconds):
    assert timeout_of(request(parameters={"timeout": pb.InferParameter(**parameter)})) == seconds


@pytest.mark.parametrize(
    "parameter",
    [
        {"int64_param": 0},
        {"int64_param": -1},
        {"uint64_param": 0},
        {"string_param": "1.5"},
        {"string_param": "-1"},
        {"string_param": ""},
        {"string_param": "9" * 20},
        {"string_param": "\N{ARABIC-INDIC DIGIT ONE}"},
        {"double_param": 1.0},
        {"bool_param": True},
        {},
    ],
)
def test_timeout_that_is_no_positive_integer_is_refused(parameter):
    message = request(parameters={"timeout": pb.InferParameter(**parameter)})
    assert "'timeout' must be an integer > 0" in refusal(timeout_of, message)


def test_no_timeout_is_zero():
    assert timeout_of(request(parameters={"priority": pb.InferParameter(int64_param=1)})) == 0.0


@pytest.mark.parametrize(
    ("parameter", "priority"),
    [
        ({"int64_param": 3}, 3),
        ({"uint64_param": 1}, 1),
        ({"string_param": "2"}, 2),
        ({"uint64_param": 2**64 - 1}, 2**64 - 1),
        ({"int64_param": 0}, 0),
        ({"uint64_param": 0}, 0),
        ({"string_param": "0"}, 0),
    ],
)
def test_priority_comes_as_any_of_the_integers_that_clients_send(parameter, priority):
    assert priority_of(request(parameters={"priority": pb.InferParameter(**parameter)})) == priority


@pytest.mark.parametrize(
    "parameter",
    [
        {"int64_param": -1},
        {"string_param": "-1"},
        {"string_param": "high"},
        {"string_param": ""},
        {"string_param": "9" * 20},
        {"double_param": 1.0},
        {"bool_param": True},
        {},
    ],
)
def test_priority_that_is_no_whole_number_is_refused(parameter):
    message = request(parameters={"priority": pb.InferParameter(**parameter)})
    assert "'priority' must be an integer >= 0" in refusal(priority_of, message)


def test_no_priority_is_zero_the_models_default():
    assert priority_of(request(parameters={"timeout": pb.InferParameter(int64_param=1)})) == 0
