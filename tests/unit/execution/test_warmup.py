from __future__ import annotations

import time

import pytest
from tests.unit.execution.launching_support import LaunchingPuppet
from tests.unit.support import PythonModel, model_spec, tensor_spec

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchingSpec, PaddingSpec, WarmupSpec
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


def padded_spec(**more):
    padding = more.pop("padding", PaddingSpec(("x",), ("y",), (4, 8), lengths_input="n"))
    return model_spec(
        [tensor_spec("x", "FP32", (2, -1)), tensor_spec("k", "FP32", (1,))],
        [tensor_spec("y", "FP32", (2, -1))],
        max_batch_size=2,
        padding=padding,
        **more,
    )


def test_padded_model_is_run_at_every_bucket_of_every_size_with_the_lengths():
    model = PythonModel(padded_spec())
    report = warm_up(model)
    assert (list(report.run_s), report.skipped) == ([1, 2], "")
    shapes = {tuple((item.name, item.shape) for item in inputs) for inputs in model.runs}
    assert shapes == {
        (("x", (rows, 2, length)), ("k", (rows, 1)), ("n", (rows, 1))) for rows in (1, 2) for length in (4, 8)
    }
    for x, _, n in model.runs:
        assert b"".join(n.parts) == x.shape[2].to_bytes(8, "little") * x.shape[0]


def test_padded_models_configured_warm_up_is_padded_as_a_request_would_be():
    sample = ((tensor_spec("x", "FP32", (2, 3)), False), (tensor_spec("k", "FP32", (1,)), False))
    model = PythonModel(padded_spec(warmups=(WarmupSpec("short", 2, 1, sample),)))
    warm_up(model)
    x, _, n = model.runs[0]
    assert (x.shape, n.shape) == ((2, 2, 4), (2, 1))
    assert b"".join(n.parts) == (3).to_bytes(8, "little") * 2


def test_padded_model_with_another_input_that_varies_is_not_run():
    spec = model_spec(
        [tensor_spec("x", "FP32", (-1,)), tensor_spec("k", "FP32", (-1,))],
        padding=PaddingSpec(("x",), (), (4,)),
    )
    assert "model_warmup" in warm_up(PythonModel(spec)).skipped


def test_model_on_a_gpu_is_timed_anew_once_it_is_prepared(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Prepared(LaunchingPuppet):
        def run(self, inputs):
            now[0] += inputs[0].shape[0] * (0.001 if "prepare" in self.story else 0.1)
            return super().run(inputs)

    report = warm_up(Prepared(spec(max_batch_size=4)))
    assert report.run_s == pytest.approx({1: 0.001, 2: 0.002, 4: 0.004})


def test_padded_model_on_a_gpu_is_timed_anew_at_the_bucket_that_takes_longest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Padded(LaunchingPuppet):
        def run(self, inputs):
            now[0] += inputs[0].shape[2] * 0.001
            return super().run(inputs)

    assert warm_up(Padded(padded_spec())).run_s == pytest.approx({1: 0.008, 2: 0.008})


def test_pad_value_that_the_input_cannot_have_is_found_at_load():
    spec = model_spec([tensor_spec("x", "UINT8", (-1,))], padding=PaddingSpec(("x",), (), (4,), -1.0))
    with pytest.raises(ModelLoadError, match="'x': the pad value -1"):
        warm_up(PythonModel(spec))


def test_an_error_of_cuda_is_told_without_the_advice_below_it():
    error = RuntimeError(
        "CUDA error: device-side assert triggered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    )
    with pytest.raises(ModelLoadError, match=r"of zeros: CUDA error: device-side assert triggered$"):
        warm_up(raising(error))
