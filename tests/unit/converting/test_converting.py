from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tensorferry import cli
from tensorferry.converting import ConversionError, Shape, load_source, parse_shape, shapes_of, verdict_on
from tensorferry.converting.agreement import Tolerance, compare
from tensorferry.converting.samples import Sample, samples_of
from tensorferry.testing.models import Mlp, TwoInputs, save, save_onnx, save_program

FEATURES = (torch.zeros(2, 30),)


class OfTheFirstRow(nn.Module):
    """Takes another way if the first number is positive: a trace keeps the way that it saw."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x[0, 0]) > 0.0:
            return x * 2.0
        return x


class Noisy(nn.Module):
    """Never answers the same twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.fixture
def torchscript(tmp_path):
    save(Mlp(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def program(tmp_path):
    save_program(Mlp(), tmp_path / "model.pt2", FEATURES)
    return tmp_path / "model.pt2"


def convert(*arguments) -> int:
    return cli.main(["convert", *map(str, arguments)])


# -- shapes and samples -----------------------------------------------------------------------------


def test_shape_is_read():
    assert parse_shape("features=FP32:-1,30") == Shape("features", "FP32", (-1, 30))


@pytest.mark.parametrize("text", ["features", "x=FP32", "x=FLOAT:1", "x=FP32:0", "x=FP32:-2,3", "x=FP32:a"])
def test_shape_that_cannot_be_is_refused_with_an_example(text):
    with pytest.raises(ConversionError, match="features=FP32:-1,30"):
        parse_shape(text)


def test_samples_are_zeros_and_random_numbers_at_several_batch_sizes():
    samples = samples_of([Shape("x", "FP32", (-1, 3))])
    assert [tuple(each.tensors[0].shape) for each in samples[::2]] == [(1, 3), (2, 3), (7, 3), (64, 3)]
    assert not samples[0].tensors[0].any()
    assert samples[1].tensors[0].any()


def test_samples_keep_to_the_rows_that_a_program_takes():
    samples = samples_of([Shape("x", "FP32", (-1, 3))], max_rows=7)
    assert max(each.tensors[0].shape[0] for each in samples) == 7


def test_file_that_does_not_say_its_shapes_asks_for_them(torchscript):
    with pytest.raises(ConversionError, match="--shape features=FP32:-1,30"):
        shapes_of(load_source(torchscript))


def test_shape_of_an_input_that_is_not_there_is_refused(torchscript):
    with pytest.raises(ConversionError, match="no input 'feature'; the model takes"):
        shapes_of(load_source(torchscript), [Shape("feature", "FP32", (-1, 30))])


# -- agreement --------------------------------------------------------------------------------------


def outputs(*values, dtype=torch.float32):
    return lambda tensors: [torch.tensor(values, dtype=dtype)]


SAMPLE = [Sample("zeros x1", (torch.zeros(1),))]


def test_differences_are_the_largest_of_all():
    found = compare(outputs(1.0, 100.0), outputs(1.0, 100.001), SAMPLE)
    assert found.max_abs == pytest.approx(0.001, rel=0.01)
    assert found.max_rel == pytest.approx(1e-5, rel=0.01)
    assert not found.fault


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (outputs(1.0, 2.1), "differs by 0.1"),
        (outputs(1.0, float("nan")), "differs"),
        (outputs(1.0), "in place of"),
        (outputs(1.0, 2.0, dtype=torch.float64), "torch.float64"),
        (lambda tensors: [], "0 outputs in place of 1"),
        (lambda tensors: 1 / 0, "raises on zeros x1: division by zero"),
    ],
)
def test_model_that_answers_otherwise_does_not_agree(other, says):
    assert says in compare(outputs(1.0, 2.0), other, SAMPLE).fault


def test_not_a_number_agrees_with_itself():
    assert not compare(outputs(float("nan")), outputs(float("nan")), SAMPLE).fault


def test_integers_must_be_equal_whatever_the_tolerance():
    ours, theirs = outputs(1, dtype=torch.int64), outputs(2, dtype=torch.int64)
    assert compare(ours, theirs, SAMPLE, Tolerance(10.0, 10.0)).fault


def test_tolerance_can_be_given():
    assert compare(outputs(1.0), outputs(1.00001), SAMPLE, Tolerance(0.0, 0.0)).fault
    assert not compare(outputs(1.0), outputs(1.5), SAMPLE, Tolerance(1.0, 0.0)).fault


# -- conversion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchscript", "pt2", "onnx"])
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_torch_files_take_the_other_formats_and_agree(tmp_path, name, suffix):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")
        pytest.importorskip("onnxscript", reason="onnxscript isn't installed")
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        save(TwoInputs(), path)
    else:
        save_program(TwoInputs(), path, (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64)))
    source = load_source(path)
    shapes = shapes_of(source, [Shape("values", "FP32", (-1, 3)), Shape("offset", "INT64", (-1, 1))])
    verdict = verdict_on(source, name, shapes)
    assert verdict.is_good, verdict


def test_module_with_a_way_for_each_row_cannot_be_exported(tmp_path):
    save(OfTheFirstRow(), tmp_path / "model.pt")
    source = load_source(tmp_path / "model.pt")
    verdict = verdict_on(source, "pt2", [Shape("x", "FP32", (-1, 1))])
    assert not verdict.is_good


def test_onnx_can_be_compared_and_not_converted(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")
    pytest.importorskip("onnxscript", reason="onnxscript isn't installed")
    save_onnx(Mlp(), tmp_path / "model.onnx", FEATURES)
    source = load_source(tmp_path / "model.onnx")
    assert "convert the model that it was made from" in verdict_on(source, "pt2", shapes_of(source)).reason


@pytest.mark.parametrize("name", ["model.pt", "model.pt2", "model.onnx", "model.h5"])
def test_file_that_is_no_model_is_refused_with_its_path(tmp_path, name):
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(ConversionError) as caught:
        load_source(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


# -- the command ------------------------------------------------------------------------------------


def test_command_writes_a_file_that_agrees(torchscript, capsys):
    assert convert(torchscript, "--to", "pt2", "--shape", "features=FP32:-1,30") == 0
    written = torchscript.with_suffix(".pt2")
    assert f"{written}: written" in capsys.readouterr().out
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32))
    with torch.inference_mode():
        expected = Mlp()(features)
    (got,) = load_source(written).call([features])
    torch.testing.assert_close(got, expected)
    assert sorted(each.name for each in torchscript.parent.iterdir()) == ["model.pt", "model.pt2"]


def test_command_takes_shapes_from_sample_inputs(torchscript, tmp_path):
    np.savez(tmp_path / "inputs.npz", features=np.ones((4, 30), np.float32))
    assert convert(torchscript, "--to", "pt2", "--inputs", tmp_path / "inputs.npz") == 0


def test_command_does_not_write_what_does_not_agree_unless_forced(tmp_path, capsys):
    save(Noisy(), tmp_path / "model.pt")
    to = [tmp_path / "model.pt", "--to", "pt2", "--shape", "x=FP32:-1,3"]
    assert convert(*to) == 1
    assert "not written; --force" in capsys.readouterr().out
    assert not (tmp_path / "model.pt2").exists()
    assert convert(*to, "--force") == 0
    assert (tmp_path / "model.pt2").exists()


def test_command_refuses_a_tolerance_below_zero(program, capsys):
    assert convert(program, "--to", "torchscript", "--atol", "-1") == 2
    assert "--rtol and --atol must be 0 or more" in capsys.readouterr().err


def test_command_does_not_write_over_its_own_source(program, capsys):
    assert convert(program, "--to", "pt2") == 2
    assert "is the model itself" in capsys.readouterr().err


def test_command_without_a_target_prints_a_table_and_writes_nothing(torchscript, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no compiler: compiling takes long, and its absence must be said
    assert convert(torchscript, "--shape", "features=FP32:-1,30") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["format", "torchscript", "pt2", "aoti", "onnx"]
    assert lines[2].split()[1:3] == ["yes", "yes"]
    assert "no C++ compiler" in lines[3]
    assert [each.name for each in torchscript.parent.iterdir()] == ["model.pt"]
