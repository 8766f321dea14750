"""Bad input: a clear error that names what was expected and what came; nobody else is harmed."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest
from tests.integration.conftest import Served
from tests.integration.support import column, error_of, outputs_of, request_of, x_request, y_of

from tensorferry.tensors import Tensor
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ROWS_120 = bytes(120)  # one row of 30 FP32


def mlp(shape=(1, 30), data: bytes | None = ROWS_120, datatype="FP32", name="features", **fields):
    """A request to ``mlp`` with one raw input; right unless told otherwise."""
    request = pb.ModelInferRequest(model_name="mlp", **fields)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if data is not None:
        request.raw_input_contents.append(data)
    return request


def typed(**contents):
    """A request to ``mlp`` with typed contents."""
    request = mlp(data=None)
    for field, values in contents.items():
        getattr(request.inputs[0].contents, field).extend(values)
    return request


def both_ways() -> pb.ModelInferRequest:
    request = mlp()
    request.inputs[0].contents.fp32_contents.extend([0.0] * 30)
    return request


def two(**replaced: np.ndarray | Tensor | None) -> pb.ModelInferRequest:
    """A request to ``two_inputs``; right unless an input is replaced, or removed by None."""
    inputs = {"values": np.zeros((2, 3), np.float32), "offset": np.zeros((2, 1), np.int64)} | replaced
    return request_of("two_inputs", {name: value for name, value in inputs.items() if value is not None})


def repeated() -> pb.ModelInferRequest:
    request = two()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def buffers(count: int) -> pb.ModelInferRequest:
    request = two()
    while len(request.raw_input_contents) < count:
        request.raw_input_contents.append(b"1234")
    del request.raw_input_contents[count:]
    return request


def outputs(*names: str) -> pb.ModelInferRequest:
    request = mlp()
    for name in names:
        request.outputs.add(name=name)
    return request


def with_parameter(name: str, **value: object) -> pb.ModelInferRequest:
    request = mlp()
    for kind, content in value.items():
        setattr(request.parameters[name], kind, content)
    return request


def shared_memory(of_output: bool) -> pb.ModelInferRequest:
    request = outputs("score")
    tensor = request.outputs[0] if of_output else request.inputs[0]
    tensor.parameters["shared_memory_region"].string_param = "region"
    return request


def classification() -> pb.ModelInferRequest:
    request = outputs("score")
    request.outputs[0].parameters["classification"].int64_param = 1
    return request


def version(text: str, model: str = "mlp") -> pb.ModelInferRequest:
    request = mlp(model_version=text)
    request.model_name = model
    return request


def of_bytes() -> pb.ModelInferRequest:
    request = typed(bytes_contents=[b"a"] * 30)
    request.inputs[0].datatype = "BYTES"
    return request


def int8_out_of_range() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="identity_int8")
    request.inputs.add(name="x", datatype="INT8", shape=[1, 2]).contents.int_contents.extend([1, 300])
    return request


#: What is wrong -> the request, its code, and what the message must name.
MATRIX: dict[str, tuple[Callable[[], pb.ModelInferRequest], grpc.StatusCode, tuple[str, ...]]] = {
    "rank too low": (lambda: mlp((30,)), INVALID, ("mlp", "features", "30")),
    "rank too high": (lambda: mlp((1, 30, 1)), INVALID, ("mlp", "features", "[1, 30, 1]", "30")),
    "no dimensions": (lambda: mlp(()), INVALID, ("mlp", "features")),
    "wrong dims": (lambda: mlp((1, 29), bytes(116)), INVALID, ("mlp", "features", "[1, 29]", "30")),
    "zero rows": (lambda: mlp((0, 30), b""), INVALID, ("mlp", "features", "0 rows")),
    "negative rows": (lambda: mlp((-1, 30)), INVALID, ("mlp", "features", "-1")),
    "negative dim": (lambda: mlp((1, -30)), INVALID, ("mlp", "features", "-30")),
    "two negatives that multiply right": (lambda: mlp((-1, -30)), INVALID, ("mlp", "features", "-1")),
    "rows above max_batch_size": (lambda: mlp((65, 30), bytes(65 * 120)), INVALID, ("mlp", "65", "64")),
    "wrong datatype": (lambda: mlp(data=bytes(240), datatype="FP64"), INVALID, ("features", "FP64", "FP32")),
    "unknown datatype": (lambda: mlp(datatype="FP31"), INVALID, ("mlp", "features", "FP31")),
    "empty datatype": (lambda: mlp(datatype=""), INVALID, ("mlp", "features", "''")),
    "datatype in small letters": (lambda: mlp(datatype="fp32"), INVALID, ("features", "fp32")),
    "BYTES": (of_bytes, INVALID, ("mlp", "features", "BYTES")),
    "too few bytes": (lambda: mlp(data=bytes(119)), INVALID, ("mlp", "features", "119", "120")),
    "too many bytes": (lambda: mlp(data=bytes(121)), INVALID, ("mlp", "features", "121", "120")),
    "empty raw buffer": (lambda: mlp(data=b""), INVALID, ("mlp", "features", "0 bytes", "120")),
    "a shape whose product overflows": (
        lambda: mlp((2**40, 30)),
        INVALID,
        ("mlp", str(2**40), "64"),
    ),
    "a free shape whose product overflows": (
        lambda: request_of("bytes", {"x": Tensor("x", "FP32", (4, 2**62), b"")}),
        INVALID,
        ("bytes", "x", str(2**62)),
    ),
    "a free shape whose product wraps to the right size": (
        lambda: request_of("bytes", {"x": Tensor("x", "FP32", (8, 2**61 + 1), bytes(32))}),
        INVALID,
        ("bytes", "x", str(2**61 + 1)),
    ),
    "fewer raw buffers than inputs": (lambda: buffers(1), INVALID, ("two_inputs", "1", "2")),
    "more raw buffers than inputs": (lambda: buffers(3), INVALID, ("two_inputs", "3", "2")),
    "raw and typed together": (both_ways, INVALID, ("mlp", "features", "raw_input_contents")),
    "typed contents of another type": (
        lambda: typed(int_contents=[0] * 30),
        INVALID,
        ("mlp", "features", "fp32_contents", "int_contents"),
    ),
    "typed contents of two types": (
        lambda: typed(fp32_contents=[0.0] * 30, int_contents=[0]),
        INVALID,
        ("mlp", "features", "int_contents"),
    ),
    "too few typed elements": (lambda: typed(fp32_contents=[0.0] * 29), INVALID, ("features", "29", "30")),
    "a typed element out of range": (int8_out_of_range, INVALID, ("identity_int8", "x", "INT8")),
    "no data": (lambda: mlp(data=None), INVALID, ("mlp", "features", "no data")),
    "no inputs": (lambda: pb.ModelInferRequest(model_name="mlp"), INVALID, ("mlp", "no inputs")),
    "a missing input": (lambda: two(offset=None), INVALID, ("two_inputs", "offset", "values")),
    "an extra input": (lambda: two(more=column(1, 2)), INVALID, ("two_inputs", "more")),
    "a repeated input": (repeated, INVALID, ("two_inputs", "twice")),
    "an unknown input": (lambda: mlp(name="feature"), INVALID, ("mlp", "feature", "features")),
    "an input without a name": (lambda: mlp(name=""), INVALID, ("mlp", "features")),
    "inputs of different rows": (
        lambda: two(offset=np.zeros((1, 1), np.int64)),
        INVALID,
        ("two_inputs", "values", "offset", "1", "2"),
    ),
    "a BOOL that is neither": (
        lambda: request_of("identity_bool", {"x": Tensor("x", "BOOL", (1, 2), b"\x01\x02")}),
        INVALID,
        ("identity_bool", "x", "BOOL"),
    ),
    "an unknown output": (lambda: outputs("scores"), INVALID, ("mlp", "scores", "score")),
    "an output requested twice": (lambda: outputs("score", "score"), INVALID, ("mlp", "score", "twice")),
    "the classification extension": (classification, INVALID, ("mlp", "score", "classification")),
    "shared memory for an input": (
        lambda: shared_memory(False),
        INVALID,
        ("mlp", "features", "shared memory"),
    ),
    "shared memory for an output": (lambda: shared_memory(True), INVALID, ("mlp", "score", "shared memory")),
    "a timeout of 0": (lambda: with_parameter("timeout", int64_param=0), INVALID, ("mlp", "timeout")),
    "a negative timeout": (lambda: with_parameter("timeout", int64_param=-5), INVALID, ("mlp", "timeout")),
    "a timeout that is no number": (
        lambda: with_parameter("timeout", string_param="soon"),
        INVALID,
        ("mlp", "timeout", "microseconds"),
    ),
    "version 0": (lambda: version("0"), INVALID, ("mlp", "'0'", "integer > 0")),
    "a negative version": (lambda: version("-1"), INVALID, ("mlp", "'-1'", "integer > 0")),
    "a version in words": (lambda: version("latest"), INVALID, ("mlp", "'latest'", "integer > 0")),
    "a version with a fraction": (lambda: version("1.0"), INVALID, ("mlp", "'1.0'", "integer > 0")),
    "a version in other digits": (lambda: version("\u0661"), INVALID, ("mlp", "integer > 0")),
    "an endless version": (lambda: version("9" * 500), INVALID, ("mlp", "integer > 0")),
    "an unknown version": (lambda: version("2"), NOT_FOUND, ("mlp", "2", "[1]")),
    "an unknown model": (lambda: version("", "mpl"), NOT_FOUND, ("mpl", "mlp")),
    "an unknown model with a version": (lambda: version("1", "mpl"), NOT_FOUND, ("mpl", "mlp")),
    "no model name": (lambda: version("", ""), NOT_FOUND, ("''",)),
}


def good_request_is_answered(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    features = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    score = outputs_of(stub.ModelInfer(request_of("mlp", {"features": features})))["score"]
    assert score.shape == (4, 1)
    assert ((score > 0) & (score < 1)).all()
    values, offset = np.ones((2, 3), np.float32), np.full((2, 1), 4, np.int64)
    answer = outputs_of(stub.ModelInfer(request_of("two_inputs", {"values": values, "offset": offset})))
    assert (answer["sum"] == 5).all()


@pytest.mark.parametrize("what", MATRIX)
def test_is_refused_by_name_and_harms_nobody(stub: pb_grpc.GRPCInferenceServiceStub, what: str):
    make, code, named = MATRIX[what]
    error = error_of(lambda: stub.ModelInfer(make()))
    assert error.code() is code, error.details()
    for name in named:
        assert name in error.details()
    assert "Traceback" not in error.details()
    good_request_is_answered(stub)


@pytest.mark.parametrize("what", MATRIX)
def test_is_an_error_message_in_a_stream_that_goes_on(stub: pb_grpc.GRPCInferenceServiceStub, what: str):
    make, _, named = MATRIX[what]
    requests = [x_request("raising", 1.0), make(), x_request("raising", 3.0)]
    first, refused, last = list(stub.ModelStreamInfer(iter(requests)))
    assert (y_of(first.infer_response), y_of(last.infer_response)) == ([2.0], [6.0])
    for name in named:
        assert name in refused.error_message


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(1000), b"{}"])
def test_a_body_that_is_no_request_is_the_callers_fault(channel: grpc.Channel, stub, body: bytes):
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    error = error_of(lambda: call(body))
    assert error.code() is INVALID
    assert "inference.ModelInferRequest" in error.details()
    good_request_is_answered(stub)


def test_an_empty_body_is_a_request_for_no_model(channel: grpc.Channel):
    error = error_of(lambda: channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b""))
    assert error.code() is NOT_FOUND


@pytest.mark.parametrize(
    "method",
    ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ServerMetadata"],
)
def test_a_body_that_is_no_message_is_the_callers_fault_for_every_method(channel: grpc.Channel, method: str):
    error = error_of(lambda: channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff"))
    assert error.code() is INVALID
    assert f"inference.{method}Request" in error.details()


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("ModelReady", pb.ModelReadyRequest),
        ("ModelMetadata", pb.ModelMetadataRequest),
        ("ModelConfig", pb.ModelConfigRequest),
        ("ModelStatistics", pb.ModelStatisticsRequest),
    ],
)
def test_asking_about_an_unknown_model_or_a_wrong_version(stub, method: str, request_type):
    call = getattr(stub, method)
    if method == "ModelReady":
        assert not call(request_type(name="absent")).ready
    else:
        unknown = error_of(lambda: call(request_type(name="absent")))
        assert unknown.code() is NOT_FOUND
        assert "absent" in unknown.details()
    wrong = error_of(lambda: call(request_type(name="mlp", version="one")))
    assert wrong.code() is INVALID
    assert "'one'" in wrong.details()


def test_statistics_of_a_version_need_the_models_name(stub: pb_grpc.GRPCInferenceServiceStub):
    assert error_of(lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(version="1"))).code() is INVALID


def test_there_is_one_repository(stub: pb_grpc.GRPCInferenceServiceStub):
    request = pb.RepositoryIndexRequest(repository_name="other")
    assert error_of(lambda: stub.RepositoryIndex(request)).code() is INVALID


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel, stub):
    for path in ("/inference.GRPCInferenceService/ModelTrain", "/other.Service/ModelInfer", "/x"):
        error = error_of(lambda path=path: channel.unary_unary(path)(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, path
    good_request_is_answered(stub)


def test_a_message_larger_than_the_bound_is_refused(server: Served, stub: pb_grpc.GRPCInferenceServiceStub):
    # Above the server's max_message_bytes: 25 MiB in one row.
    large = np.zeros((1, 25 * 2**18), np.float32)
    error = error_of(lambda: stub.ModelInfer(request_of("bytes", {"x": large})))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    good_request_is_answered(stub)


def test_details_are_short_whatever_came(stub: pb_grpc.GRPCInferenceServiceStub):
    error = error_of(lambda: stub.ModelInfer(mlp(name="n" * 100_000)))
    assert error.code() is INVALID
    assert len(error.details()) <= 1024


def test_names_that_no_header_can_carry_as_they_are_come_back(stub: pb_grpc.GRPCInferenceServiceStub):
    error = error_of(lambda: stub.ModelInfer(mlp(name="Stra\u00dfe\n\u2603 100%")))
    assert error.code() is INVALID
    assert "features" in error.details()
    good_request_is_answered(stub)
