from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.support import PythonModel, model_spec, tensor_spec

from tensorferry.errors import ModelLoadError
from tensorferry.execution.golden import check_golden
from tensorferry.execution.golden_file import read_golden
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput, PaddingSpec
from tensorferry.tensors import Tensor, array_of, tensor_of


def array_in(item: BatchInput):
    return array_of(Tensor(item.name, item.datatype, item.shape, b"".join(item.parts)))


def doubling(inputs):
    return [tensor_of("y", (array_in(inputs[0]) * 2).astype(array_in(inputs[0]).dtype))]


def giving(array, datatype=""):
    """A model that gives ``array``, whatever it is given."""

    def behaviour(_):
        tensor = tensor_of("y", np.asarray(array))
        return [Tensor("y", datatype or tensor.datatype, tensor.shape, tensor.data)]

    return behaviour


def spec_of(path, inputs=None, outputs=None, **more):
    return replace(model_spec(inputs, outputs, **more), golden=path)


@pytest.fixture
def npz(tmp_path):
    def written(**arrays):
        path = tmp_path / "golden.npz"
        np.savez(path, **{name.replace("__", "/"): array for name, array in arrays.items()})
        return path

    return written


@pytest.fixture
def in_json(tmp_path):
    def written(**content):
        path = tmp_path / "golden.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return written


def refusal_of(spec, behaviour=doubling) -> str:
    with pytest.raises(ModelLoadError) as caught:
        check_golden(PythonModel(spec, behaviour))
    message = str(caught.value)
    assert message.startswith(f"model 'm' version 1: {spec.golden}: ")
    assert "\n" not in message
    return message


def column(*values, dtype=np.float32):
    return np.array(values, dtype).reshape(-1, 1)


def test_model_without_a_golden_file_is_not_run():
    model = PythonModel(model_spec())
    check_golden(model)
    assert model.runs == []


def test_model_that_gives_what_the_file_expects_passes(npz):
    model = PythonModel(spec_of(npz(inputs__x=column(1, 2), outputs__y=column(2, 4))), doubling)
    check_golden(model)
    assert model.rows_run == [2]


def test_rows_beyond_max_batch_size_are_run_in_pieces(npz):
    x = column(*range(7))
    model = PythonModel(spec_of(npz(inputs__x=x, outputs__y=2 * x), max_batch_size=3), doubling)
    check_golden(model)
    assert model.rows_run == [3, 3, 1]


def test_difference_is_named_with_its_place_both_values_and_the_tolerance(npz):
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    y = 2 * x
    y[3, 1] += 1  # row 3 is in the second piece
    y[4, 0] -= 2.5
    tensors = [tensor_spec("x", "FP32", (2,))], [tensor_spec("y", "FP32", (2,))]
    message = refusal_of(spec_of(npz(inputs__x=x, outputs__y=y), *tensors, max_batch_size=2))
    assert "output 'y', row 3, index [1]: expected 15, got 14 " in message
    assert "(the tolerance is 1e-05 + 0.001 * |expected|)" in message
    assert "2 of 10 values differ, the most by 2.5." in message
    assert "make it anew if these outputs are right" in message


def test_model_without_batch_dimension_is_run_once_and_places_have_no_row(npz):
    x = np.zeros((2, 3), np.float32)
    y = x.copy()
    y[1, 2] = 1
    tensors = [tensor_spec("x", "FP32", (2, 3))], [tensor_spec("y", "FP32", (2, 3))]
    message = refusal_of(spec_of(npz(inputs__x=x, outputs__y=y), *tensors, max_batch_size=0))
    assert "output 'y', index [1, 2]: expected 1, got 0" in message


@pytest.mark.parametrize(("factor", "passes"), [(1.0009, True), (1.0012, False)])
def test_fp32_may_differ_by_a_thousandth(npz, factor, passes):
    spec = spec_of(npz(inputs__x=column(100), outputs__y=column(200 * factor)))
    if passes:
        check_golden(PythonModel(spec, doubling))
    else:
        assert "1 of 1 values differ" in refusal_of(spec)


@pytest.mark.parametrize(("expected", "passes"), [(101, True), (102, False)])
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_sixteen_bit_floats_may_differ_by_more(npz, datatype, expected, passes):
    got = np.array([[100]], np.float16)
    if datatype == "BF16":
        expected = 102 if passes else 106
        got = (np.array([[100]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    spec = spec_of(npz(inputs__x=column(0), outputs__y=column(expected)))
    behaviour = giving(got, datatype)
    if passes:
        check_golden(PythonModel(spec, behaviour))
    else:
        assert f"expected {expected}, got 100" in refusal_of(spec, behaviour)


def test_tolerance_of_the_file_is_the_one_that_holds(npz):
    arrays = {"inputs__x": column(100), "outputs__y": column(201)}
    check_golden(PythonModel(spec_of(npz(**arrays, atol=np.array(1.5), rtol=np.array(0.0))), doubling))
    message = refusal_of(spec_of(npz(**arrays, atol=np.array([0.5]), rtol=np.array(0.0))))
    assert "the tolerance is 0.5 + 0 * |expected|" in message


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_must_be_equal_whatever_the_tolerance(npz, dtype):
    right, wrong = np.array([[0], [1]], dtype), np.array([[0], [0]], dtype)
    path = npz(inputs__x=column(0, 0), outputs__y=right, atol=np.array(10.0))
    check_golden(PythonModel(spec_of(path), giving(right)))
    message = refusal_of(spec_of(path), giving(wrong))
    assert f"row 1, index [0]: expected {right[1, 0]}, got {wrong[1, 0]}" in message
    assert "must be equal" in message


def test_large_integers_are_told_apart(in_json):
    path = in_json(inputs={"x": [[0.0]]}, outputs={"y": [[2**63 - 1]]})
    tensors = None, [tensor_spec("y", "INT64")]
    check_golden(PythonModel(spec_of(path, *tensors), giving(np.array([[2**63 - 1]]))))
    assert "1 of 1 values differ" in refusal_of(spec_of(path, *tensors), giving(np.array([[2**63 - 2]])))


def test_whole_numbers_are_not_expected_as_floats(npz):
    message = refusal_of(spec_of(npz(inputs__x=column(0), outputs__y=column(1.5))), giving(np.array([[1]])))
    assert "output 'y' is INT64, and the file has float32; write it as whole numbers" in message


def test_nan_equals_nan_and_nothing_else(npz):
    path = npz(inputs__x=column(0, 0), outputs__y=column(np.nan, np.inf))
    check_golden(PythonModel(spec_of(path), giving(column(np.nan, np.inf))))
    message = refusal_of(spec_of(path), giving(column(0, np.inf)))
    assert "row 0, index [0]: expected nan, got 0" in message
    assert "1 of 2 values differ." in message, "the difference is no number"
    assert "expected inf, got -inf" in refusal_of(spec_of(path), giving(column(np.nan, -np.inf)))


def test_output_of_another_shape_is_refused_with_both(npz):
    path = npz(inputs__x=column(0, 0), outputs__y=column(0, 0))
    message = refusal_of(spec_of(path), giving(np.zeros((2, 3), np.float32)))
    assert "output 'y' has shape [2, 3], and the file expects [2, 1]" in message


def test_outputs_that_are_not_named_are_not_compared(npz):
    def two(inputs):
        return [*doubling(inputs), tensor_of("z", column(9))]

    spec = spec_of(npz(inputs__x=column(1), outputs__y=column(2)), None, [tensor_spec("y"), tensor_spec("z")])
    check_golden(PythonModel(spec, two))


def test_every_output_that_differs_is_named(npz):
    def two(_):
        return [tensor_of("y", column(1)), tensor_of("z", column(1))]

    spec = spec_of(
        npz(inputs__x=column(1), outputs__y=column(2), outputs__z=column(2)),
        None,
        [tensor_spec("y"), tensor_spec("z")],
    )
    assert "; ['z'] differ too" in refusal_of(spec, two)


def test_model_that_raises_on_the_inputs_is_refused_in_one_line(npz):
    def raising(_):
        raise RuntimeError("Traceback\n  too cold\n")

    spec = spec_of(npz(inputs__x=column(1), outputs__y=column(2)))
    assert refusal_of(spec, raising).endswith("the model raises on its inputs: too cold")


def test_padded_model_is_asked_as_a_caller_would_and_answers_at_the_callers_length(npz):
    seen = []

    def behaviour(inputs):
        seen.append(([item.name for item in inputs], array_in(inputs[0]).shape, array_in(inputs[1]).tolist()))
        return doubling(inputs)

    spec = spec_of(
        npz(inputs__x=np.ones((2, 3), np.float32), outputs__y=np.full((2, 3), 2, np.float32)),
        [tensor_spec("x", "FP32", (-1,))],
        [tensor_spec("y", "FP32", (-1,))],
        padding=PaddingSpec(("x",), ("y",), (4, 8), lengths_input="n"),
    )
    check_golden(PythonModel(spec, behaviour))
    assert seen == [(["x", "n"], (2, 4), [[3], [3]])]


def test_warm_up_ends_with_the_check(npz):
    good = spec_of(npz(inputs__x=column(1), outputs__y=column(2)))
    assert warm_up(PythonModel(good, doubling)).run_s
    with pytest.raises(ModelLoadError, match="values differ"):
        warm_up(PythonModel(good, lambda inputs: [tensor_of("y", array_in(inputs[0]))]))


# -- reading ------------------------------------------------------------------------------------


def test_json_takes_the_models_datatypes_and_nested_lists(in_json):
    path = in_json(inputs={"x": [[1, 2], [3, 4]]}, outputs={"y": [[True], [False]]}, rtol=0.5, atol=0)
    golden = read_golden(path, model_spec([tensor_spec("x", "FP16", (2,))], [tensor_spec("y", "BOOL")]))
    (x,) = golden.inputs
    assert (x.name, x.datatype, x.shape) == ("x", "FP16", (2, 2))
    assert array_of(x).tolist() == [[1, 2], [3, 4]]
    assert golden.outputs["y"].tolist() == [[True], [False]]
    assert (golden.rtol, golden.atol) == (0.5, 0.0)


def test_json_tensor_may_state_its_datatype_and_shape(in_json):
    path = in_json(
        inputs={"x": {"datatype": "INT32", "shape": [2, 2], "data": [1, 2, 3, 4]}},
        outputs={"y": {"data": [[1], [2]]}},
    )
    golden = read_golden(path, model_spec([tensor_spec("x", None, None)]))
    (x,) = golden.inputs
    assert (x.datatype, x.shape, array_of(x).tolist()) == ("INT32", (2, 2), [[1, 2], [3, 4]])


def test_inputs_are_rounded_to_the_models_floats(npz):
    path = npz(inputs__x=np.array([[0.1]]), outputs__y=column(0))
    (x,) = read_golden(path, model_spec()).inputs
    assert bytes(x.data) == np.float32(0.1).tobytes()
    (x,) = read_golden(path, model_spec([tensor_spec("x", "BF16")])).inputs
    assert array_of(x).tolist() == [[0.10009765625]]


@pytest.mark.parametrize(
    ("array", "what"),
    [(np.array([[256]]), "int64"), (np.array([[-1]], np.int8), "int8"), (np.array([[1.0]]), "float64")],
)
def test_input_that_the_models_integers_cannot_hold_is_refused(npz, array, what):
    path = npz(inputs__x=array, outputs__y=column(0))
    with pytest.raises(ModelLoadError, match=f"input 'x' is {what} and has values that UINT8 can't hold"):
        read_golden(path, model_spec([tensor_spec("x", "UINT8")]))


def test_unsigned_integers_of_64_bits_keep_every_bit(in_json):
    path = in_json(inputs={"x": [[2**64 - 1]]}, outputs={"y": [[0.5]]})
    (x,) = read_golden(path, model_spec([tensor_spec("x", "UINT64")])).inputs
    assert array_of(x).tolist() == [[2**64 - 1]]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([], "is no object"),
        ({"inputs": {}, "output": {}}, "has 'output'; known are inputs, outputs, rtol and atol"),
        ({"inputs": {"x": [[1]]}}, "has no outputs, so that there is nothing to compare"),
        ({"inputs": [], "outputs": {}}, "'inputs' must be an object of tensors by name"),
        ({"inputs": {"z": [[1]]}, "outputs": {"y": [[1]]}}, r"unknown input 'z'; the model takes \['x'\]"),
        ({"inputs": {"x": [[1]]}, "outputs": {"z": [[1]]}}, r"unknown output 'z'; the model gives \['y'\]"),
        ({"inputs": {"x": [[1], [1, 2]]}, "outputs": {"y": [[1]]}}, "'inputs/x' is no tensor"),
        ({"inputs": {"x": [["1"]]}, "outputs": {"y": [[1]]}}, "must be numbers or true and false"),
        ({"inputs": {"x": {"data": [1], "shape": [2]}}, "outputs": {"y": [[1]]}}, "'inputs/x' is no tensor"),
        ({"inputs": {"x": {"data": [1], "dims": [1]}}, "outputs": {"y": [[1]]}}, "datatype, shape and data"),
        ({"inputs": {"x": {"data": [1], "datatype": "F"}}, "outputs": {}}, "has the datatype 'F'; known are"),
        (
            {"inputs": {}, "outputs": {"y": [[1]]}, "rtol": -1},
            "'rtol' is -1, and must be a number of at least 0",
        ),
        ({"inputs": {}, "outputs": {"y": [[1]]}, "atol": True}, "'atol' is True"),
    ],
)
def test_json_that_says_nothing_sensible_is_refused_with_the_place(tmp_path, content, what):
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=what) as caught:
        read_golden(path, model_spec())
    assert str(caught.value).startswith(f"model 'm' version 1: {path}: ")


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({}, "input 'x' is missing"),
        ({"x": []}, "has 0 rows"),
        ({"x": [[1, 2]]}, r"input 'x' has shape \[1, 2\], expected \[-1, 1\]"),
        ({"x": 5}, "input 'x' has no dimensions"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(in_json, inputs, what):
    path = in_json(inputs=inputs, outputs={"y": []} if inputs == {"x": []} else {"y": [[1]]})
    with pytest.raises(ModelLoadError, match=what):
        check_golden(PythonModel(spec_of(path), doubling))


def test_inputs_of_unlike_rows_are_refused(npz):
    spec = spec_of(
        npz(inputs__x=column(1, 2), inputs__z=column(1), outputs__y=column(1)),
        [tensor_spec("x"), tensor_spec("z")],
    )
    assert "input 'z' has shape [1, 1], and 'x' has [2, 1]" in refusal_of(spec)


def test_expected_output_of_other_rows_is_refused_before_the_model_runs(npz):
    model = PythonModel(spec_of(npz(inputs__x=column(1, 2), outputs__y=column(2))), doubling)
    with pytest.raises(ModelLoadError, match=r"output 'y' has shape \[1, 1\], and the inputs have 2 rows"):
        check_golden(model)
    assert model.runs == []


def test_output_without_values_proves_nothing(npz):
    empty = np.zeros((1, 0), np.float32)
    path = npz(inputs__x=column(1), outputs__y=empty)
    assert "output 'y' has no values" in refusal_of(spec_of(path), giving(empty))


def test_archive_with_another_array_is_refused(npz):
    path = npz(features=column(1))
    with pytest.raises(ModelLoadError, match="'features' has no meaning; name it inputs/<name>"):
        read_golden(path, model_spec())


@pytest.mark.parametrize("array", [np.array([["a"]]), np.array([[1j]])])
def test_numbers_only_are_compared(npz, array):
    with pytest.raises(ModelLoadError, match="golden file holds numbers only"):
        read_golden(npz(inputs__x=column(1), outputs__y=array), model_spec())


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "golden.npz"
    np.savez(path, **{"inputs/x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ModelLoadError, match="allow_pickle=False"):
        read_golden(path, model_spec())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text", b"\x93NUMPY a single array"])
def test_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"numpy\.savez"):
        read_golden(path, model_spec())


def test_text_that_is_not_json_is_refused_with_the_line(tmp_path):
    path = tmp_path / "golden.json"
    path.write_text('{\n"inputs": }', encoding="utf-8")
    with pytest.raises(ModelLoadError, match="is not JSON: Expecting value: line 2"):
        read_golden(path, model_spec())


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="can't be read: No such file"):
        read_golden(tmp_path / "golden.npz", model_spec())


@pytest.mark.parametrize("name", ["golden.npz", "golden.json"])
def test_huge_file_is_refused_unread(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelLoadError, match=r"is larger than (65536|256) KiB; keep a few rows"):
        read_golden(path, model_spec())


def test_archive_that_unpacks_to_far_more_is_refused_unread(tmp_path):
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs/x.npy", bytes(65 * 2**20))
    with pytest.raises(ModelLoadError, match="unpacks to more than 64 MiB"):
        read_golden(path, model_spec())


def test_model_without_configuration_takes_an_archives_own_datatypes(npz, in_json):
    free = model_spec([tensor_spec("x", None, None)])
    (x,) = read_golden(npz(inputs__x=column(1), outputs__y=column(1)), free).inputs
    assert x.datatype == "FP32"
    path = in_json(inputs={"x": [[1.0]]}, outputs={"y": [[1.0]]})
    with pytest.raises(ModelLoadError, match=r"no configuration that says its datatype; give it as \{"):
        read_golden(path, free)
