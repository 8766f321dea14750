"""Datatypes, shapes and sizes through the wire and back."""

from __future__ import annotations

import grpc
import grpc.aio
import numpy as np
import pytest
from tests.integration.conftest import TORCH_DATATYPES, Served
from tests.integration.support import error_of, outputs_of, request_of

from tensorferry.tensors import DATATYPES, Tensor
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Stub = pb_grpc.GRPCInferenceServiceStub

TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 255]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.0]),
    "FP64": ("fp64_contents", [1e308, -5e-324]),
}


@pytest.mark.parametrize("datatype", TORCH_DATATYPES)
def test_raw_contents_of_every_datatype_come_back_bit_for_bit(stub: Stub, datatype: str):
    size = DATATYPES[datatype].itemsize
    data = np.random.default_rng(4).integers(0, 2 if datatype == "BOOL" else 256, 3 * 2 * size, np.uint8)
    tensor = Tensor("x", datatype, (3, 2), data.tobytes())
    response = stub.ModelInfer(request_of(f"identity_{datatype.lower()}", {"x": tensor}))
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [3, 2])
    assert response.raw_output_contents[0] == data.tobytes()


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_of_every_datatype_come_back_raw(stub: Stub, datatype: str):
    field, values = TYPED[datatype]
    request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    got = outputs_of(stub.ModelInfer(request))["y"]
    assert got.tolist() == [values]
    assert got.dtype == DATATYPES[datatype].numpy


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_typed_contents(stub: Stub, datatype: str):
    request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2]).contents.fp32_contents.extend([1.0, 2.0])
    error = error_of(lambda: stub.ModelInfer(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in error.details()


def test_nan_and_infinity_pass_through_as_data(stub: Stub):
    values = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38]], dtype=np.float32)
    got = stub.ModelInfer(request_of("bytes", {"x": values}))
    assert got.raw_output_contents[0] == values.tobytes()


def test_nan_of_one_caller_is_not_anothers(stub: Stub):
    nan = np.full((1, 30), np.nan, np.float32)
    good = np.zeros((1, 30), np.float32)
    calls = [
        stub.ModelInfer.future(request_of("mlp", {"features": nan if n % 2 else good})) for n in range(40)
    ]
    scores = [outputs_of(call.result())["score"].item() for call in calls]
    assert all(np.isnan(scores[1::2]))
    assert not any(np.isnan(scores[::2]))


def test_sixteen_megabytes_there_and_back(stub: Stub):
    values = np.random.default_rng(5).standard_normal((2, 2**21)).astype(np.float32)
    response = stub.ModelInfer(request_of("bytes", {"x": values}))
    assert response.raw_output_contents[0] == values.tobytes()


def test_requests_of_different_shapes_share_no_batch_and_are_all_answered(stub: Stub):
    shapes = [(1 + number % 3, 1 + number % 5) for number in range(60)]
    arrays = [np.full(shape, number, np.float32) for number, shape in enumerate(shapes)]
    calls = [stub.ModelInfer.future(request_of("bytes", {"x": array})) for array in arrays]
    for array, call in zip(arrays, calls, strict=True):
        np.testing.assert_array_equal(outputs_of(call.result())["y"], array)


def test_a_row_without_elements(stub: Stub):
    got = outputs_of(stub.ModelInfer(request_of("bytes", {"x": np.zeros((2, 0), np.float32)})))["y"]
    assert got.shape == (2, 0)


def test_a_model_without_a_batch_dimension_takes_its_shape_alone(stub: Stub):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(
        outputs_of(stub.ModelInfer(request_of("plain", {"x": values})))["y"], values
    )
    error = error_of(lambda: stub.ModelInfer(request_of("plain", {"x": values[None]})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_inputs_are_known_by_name_and_not_by_place(stub: Stub):
    values, offset = np.ones((1, 3), np.float32), np.full((1, 1), 7)
    one = outputs_of(stub.ModelInfer(request_of("two_inputs", {"values": values, "offset": offset})))
    other = outputs_of(stub.ModelInfer(request_of("two_inputs", {"offset": offset, "values": values})))
    assert one["sum"].tolist() == other["sum"].tolist() == [[8.0, 8.0, 8.0]]


def test_the_asyncio_stub_is_a_client_too(server: Served, run):
    async def scenario():
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            values = np.array([[3, -4]], np.int32)
            return outputs_of(await stub.ModelInfer(request_of("identity_int32", {"x": values})))[
                "y"
            ].tolist()

    assert run(scenario()) == [[3, -4]]
