"""Requests for any model: shapes, data, and what is said where they can't be made."""

from __future__ import annotations

import numpy as np
import pytest

from tensorferry.benchmark.bodies import Contents, request_bodies
from tensorferry.errors import ConfigurationError
from tensorferry.wire import open_inference_pb2 as pb


def model(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> pb.ModelMetadataResponse:
    found = pb.ModelMetadataResponse(name="m")
    found.inputs.add(name="x", datatype=datatype, shape=shape)
    return found


def requests(metadata: pb.ModelMetadataResponse, **contents) -> list[pb.ModelInferRequest]:
    return [pb.ModelInferRequest.FromString(each) for each in request_bodies(metadata, Contents(**contents))]


def test_made_up_requests_differ_and_have_the_rows():
    made = requests(model(), rows=3)
    assert len({each.raw_input_contents[0] for each in made}) == len(made) > 1
    assert all(list(each.inputs[0].shape) == [3, 4] for each in made)
    assert all(len(each.raw_input_contents[0]) == 3 * 4 * 4 for each in made)


def test_zeros_are_one_request_of_zeros():
    (made,) = requests(model("INT64"), data="zeros")
    assert not any(made.raw_input_contents[0])


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP64"])
def test_every_datatype_with_numbers_is_made_up_in_its_size(datatype):
    size = {"BOOL": 1, "UINT8": 1, "INT64": 8, "FP16": 2, "BF16": 2, "FP64": 8}[datatype]
    assert len(requests(model(datatype))[0].raw_input_contents[0]) == 4 * size


def test_parameters_go_along():
    made = requests(model(), timeout_us=1500, priority=2, version="3")[0]
    assert made.parameters["timeout"].int64_param == 1500
    assert made.parameters["priority"].uint64_param == 2
    assert made.model_version == "3"


def test_an_open_dimension_asks_for_a_shape_and_takes_it():
    open_model = model(shape=(-1, -1, 4))
    with pytest.raises(ConfigurationError, match=r"--shape x:8,4"):
        requests(open_model)
    assert list(requests(open_model, shapes={"x": (7, 4)})[0].inputs[0].shape) == [1, 7, 4]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"y": (1,)}, r"no such input; it has x"),
        ({"x": (7, 5)}, r"the model takes -1,4"),
        ({"x": (7,)}, r"the model takes -1,4"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes, said):
    with pytest.raises(ConfigurationError, match=said):
        requests(model(shape=(-1, -1, 4)), shapes=shapes)


def test_strings_are_not_made_up_but_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"takes BYTES.*--data FILE\.npz"):
        requests(model("BYTES", (-1, 1)))
    np.savez(tmp_path / "d.npz", x=np.array([["ab"], ["c"]]))
    made = requests(model("BYTES", (-1, 1)), data=str(tmp_path / "d.npz"))
    assert [each.raw_input_contents[0] for each in made] == [b"\2\0\0\0ab", b"\1\0\0\0c"]


def test_a_file_is_cut_into_requests_of_the_rows(tmp_path):
    values = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(tmp_path / "d.npz", x=values)
    made = requests(model(), rows=2, data=str(tmp_path / "d.npz"))
    assert [each.raw_input_contents[0] for each in made] == [values[:2].tobytes(), values[2:4].tobytes()]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros((1, 4))}, "no array 'x'; it has y"),
        ({"x": np.zeros((1, 5))}, "has the shape 1,5"),
        ({"x": np.zeros((1, 4), complex)}, "takes FP32"),
        ({"x": np.zeros((1, 4))}, "fewer than --rows 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ConfigurationError, match=said):
        requests(model(), rows=2, data=str(tmp_path / "d.npz"))


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "d.npz").write_text("nonsense")
    for name in ("d.npz", "missing.npz"):
        with pytest.raises(ConfigurationError, match="can't be read"):
            requests(model(), data=str(tmp_path / name))
