from __future__ import annotations

import pytest
from tests.unit.support import PythonModel, model_spec, tensor_spec

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchingSpec, WarmupSpec
from tensorferry.testing.puppet import echo


def spec(**more):
    return model_spec([tensor_spec("x", "FP32", (3,)), tensor_spec("b", "BOOL", ())], **more)


def test_every_bucket_is_run_several_times_on_inputs_of_its_size():
    model = PythonModel(spec(max_batch_size=6, batching=BatchingSpec(preferred_batch_sizes=(3,))))
    report = warm_up(model)
    assert list(report.run_s) == [1, 2, 3, 4, 6]
    for rows in report.run_s:
        assert 4 <= model.rows_run.count(rows) <= 40
    for x, b in model.runs:
        rows = x.shape[0]
        assert (x.name, x.datatype, x.shape, x.parts) == ("x", "FP32", (rows, 3), [bytes(12 * rows)])
        assert (b.name, b.datatype, b.shape, b.parts) == ("b", "BOOL", (rows,), [bytes(rows)])


def test_report_has_the_best_run_of_each_bucket_and_the_slowest_of_those():
    report = warm_up(PythonModel(spec(max_batch_size=4)))
    assert all(seconds > 0 for seconds in report.run_s.values())
    assert report.slowest_s == max(report.run_s.values())
    assert report.skipped == ""


def test_model_without_batch_dimension_is_run_at_its_dims():
    model = PythonModel(model_spec([tensor_spec("x", "INT16", (2, 5))], max_batch_size=0))
    assert list(warm_up(model).run_s) == [1]
    assert {inputs[0].shape for inputs in model.runs} == {(2, 5)}
    assert {len(inputs[0].parts[0]) for inputs in model.runs} == {20}


@pytest.mark.parametrize("tensor", [tensor_spec("x", "FP32", (-1,)), tensor_spec("x", None, None)])
def test_model_whose_shapes_vary_is_not_run_and_the_report_says_why(tensor):
    model = PythonModel(model_spec([tensor]))
    report = warm_up(model)
    assert model.runs == []
    assert (report.run_s, report.slowest_s) == ({}, None)
    assert "model_warmup" in report.skipped


def test_warm_up_of_the_configuration_is_run_as_often_as_it_says():
    tensor = tensor_spec("x", "FP32", (-1,))
    warmups = (
        WarmupSpec("zeros", 2, 3, ((tensor_spec("x", "FP32", (7,)), False),)),
        WarmupSpec("random", 1, 2, ((tensor_spec("x", "BOOL", (64,)), True),)),
    )
    model = PythonModel(model_spec([tensor], warmups=warmups))
    report = warm_up(model)
    assert model.rows_run == [2, 2, 2, 1, 1]
    assert model.runs[0][0].parts == [bytes(4 * 2 * 7)]
    random = bytes(model.runs[3][0].parts[0])
    assert len(random) == 64
    assert set(random) == {0, 1}
    assert set(report.run_s) == {1, 2}
    assert report.skipped == ""


def raising(error):
    def behaviour(inputs):
        if inputs[0].shape[0] == 4:
            raise error
        return echo(inputs)

    return PythonModel(spec(max_batch_size=8), behaviour)


def test_model_that_raises_on_a_batch_size_is_not_loaded_and_the_reason_is_one_line():
    with pytest.raises(ModelLoadError) as caught:
        warm_up(raising(RuntimeError("Traceback of TorchScript\n  File x\nRuntimeError: too many rows\n")))
    message = str(caught.value)
    assert message.startswith("model 'm' version 1 raises on a batch of 4 rows of zeros")
    assert message.endswith("too many rows")
    assert "\n" not in message


def test_model_that_raises_without_a_word_is_named_by_its_error():
    with pytest.raises(ModelLoadError, match="ZeroDivisionError"):
        warm_up(raising(ZeroDivisionError()))


def test_model_whose_output_is_wrong_is_not_loaded():
    with pytest.raises(ModelLoadError, match=r"wrong shape \(on a batch of 4 rows of zeros\)"):
        warm_up(raising(ModelFailed("wrong shape")))


def test_warm_up_of_the_configuration_that_fails_is_named():
    warmups = (WarmupSpec("mine", 4, 1, ((tensor_spec("x", "FP32", (3,)), False),)),)
    model = PythonModel(model_spec(warmups=warmups), raising(ModelFailed("no"))._behaviour)
    with pytest.raises(ModelLoadError, match="its warm-up 'mine'"):
        warm_up(model)
