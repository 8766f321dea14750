"""The same behaviour from every backend: right outputs, refusals that help, nothing that ends the process."""

from __future__ import annotations

import gc
import weakref
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.formats import over_formats
from tests.unit.support import model_spec, tensor_spec
from torch import Tensor, nn

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends import torch_aoti
from tensorferry.execution.backends.torch_tensors import TorchModel
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput
from tensorferry.tensors import DATATYPES, array_of
from tensorferry.testing.models import EveryDatatype, Mlp, TwoInputs

TORCH = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
EVERY = tuple(torch.zeros(2, 2, dtype=TORCH[name]) for name in EveryDatatype.DATATYPES)
FEATURES = (torch.zeros(2, 30),)
TWO = (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64))


class Wide(nn.Module):
    """Three layers of 512 x 512: some milliseconds for 512 rows."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(512, 512, generator=generator) / 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(x @ self.weight) @ self.weight) @ self.weight


MLP_IN = [tensor_spec("features", "FP32", (30,))]
SCORE = [tensor_spec("OUTPUT__0", "FP32", (1,))]


@pytest.fixture
def opened(tmp_path):
    """Write a module with a maker, and open it as a spec with these inputs and outputs says."""
    models = []

    def write_and_open(maker, module, samples, inputs=MLP_IN, outputs=SCORE, **more):
        path = tmp_path / maker.filename
        maker.write(module, path, samples)
        more.setdefault("max_batch_size", 64)
        spec = replace(model_spec(inputs, outputs, **more), path=path, platform=maker.platform)
        if more.get("from_signature"):
            spec = replace(spec, inputs=(), outputs=())
        model = maker.open(spec)
        models.append(model)
        model.attach(1)
        return model

    yield write_and_open
    for model in models:
        if "_call" in vars(model) or "_session" in vars(model):
            model.close()


def batch(name, array, *cuts):
    """One input of a batch, its rows cut into parts as several requests bring them."""
    parts = [np.ascontiguousarray(part).tobytes() for part in np.split(array, cuts)]
    datatype = next(each.name for each in DATATYPES.values() if each.numpy == array.dtype)
    return BatchInput(name, datatype, array.shape, parts)


def refusal(caught) -> str:
    message = str(caught.value)
    assert message.startswith("model 'm'")
    assert "\n" not in message
    return message


# -- outputs --------------------------------------------------------------------------------------


@over_formats()
def test_every_datatype_passes_through_bit_for_bit(opened, maker):
    names = EveryDatatype.DATATYPES
    inputs = [tensor_spec(f"x{index}", name, (2,)) for index, name in enumerate(names)]
    outputs = [tensor_spec(f"OUTPUT__{index}", name, (2,)) for index, name in enumerate(names)]
    model = opened(maker, EveryDatatype(), EVERY, inputs, outputs)
    rng = np.random.default_rng(0)
    sent = []
    for index, name in enumerate(names):
        size = DATATYPES[name].itemsize * 6
        data = rng.integers(0, 2 if name == "BOOL" else 120, size, np.uint8).tobytes()
        cut = size // 3
        sent.append(BatchInput(f"x{index}", name, (3, 2), [data[:cut], memoryview(data)[cut:]]))
    for each, output in zip(sent, model.run(sent).outputs, strict=True):
        assert (output.datatype, output.shape) == (each.datatype, (3, 2))
        assert bytes(output.data) == b"".join(each.parts), each.datatype


@over_formats()
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_batch_of_any_size_gives_what_the_module_gives(opened, maker, rows):
    model = opened(maker, Mlp(), FEATURES)
    features = np.random.default_rng(rows).normal(size=(rows, 30)).astype(np.float32)
    (output,) = model.run([batch("features", features, rows // 2)]).outputs
    with torch.inference_mode():
        expected = Mlp()(torch.from_numpy(features)).numpy()
    assert output.name == "OUTPUT__0"
    np.testing.assert_allclose(array_of(output), expected, rtol=1e-5, atol=1e-6)


@over_formats(lambda maker: maker.names_inputs)
def test_inputs_meet_the_arguments_by_name(opened, maker):
    inputs = [tensor_spec("offset", "INT64", (1,)), tensor_spec("values", "FP32", (3,))]
    outputs = [tensor_spec("OUTPUT__0", "FP32", (3,)), tensor_spec("OUTPUT__1", "INT64", (1,))]
    model = opened(maker, TwoInputs(), TWO, inputs, outputs)
    assert two_of(model, "offset", "values") == [[[11.0, 12.0, 13.0]], [[-10]]]


@over_formats()
def test_inputs_of_other_names_meet_the_arguments_in_order(opened, maker):
    inputs = [tensor_spec("a", "FP32", (3,)), tensor_spec("b", "INT64", (1,))]
    outputs = [tensor_spec("sum", "FP32", (3,)), tensor_spec("minus", "INT64", (1,))]
    if maker.name == "onnx":
        outputs = [replace(each, name=f"OUTPUT__{index}") for index, each in enumerate(outputs)]
    model = opened(maker, TwoInputs(), TWO, inputs, outputs)
    assert two_of(model, "b", "a", is_reversed=True) == [[[11.0, 12.0, 13.0]], [[-10]]]


def two_of(model, offset, values, is_reversed=False):
    sent = [
        batch(offset, np.array([[10]], np.int64)),
        batch(values, np.array([[1, 2, 3]], np.float32)),
    ]
    return [array_of(each).tolist() for each in model.run(sent[::-1] if is_reversed else sent).outputs]


@over_formats()
def test_outputs_are_taken_by_index(opened, maker):
    inputs = [tensor_spec("a", "FP32", (3,)), tensor_spec("b", "INT64", (1,))]
    model = opened(maker, TwoInputs(), TWO, inputs, [tensor_spec("OUTPUT__1", "INT64", (1,))])
    assert two_of(model, "b", "a", is_reversed=True) == [[[-10]]]


@over_formats()
def test_answers_of_one_run_outlive_the_next(opened, maker):
    model = opened(maker, Mlp(), FEATURES)
    features = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    (first,) = model.run([batch("features", features)]).outputs
    before = bytes(first.data)
    model.run([batch("features", -features)])
    assert bytes(first.data) == before


@over_formats()
def test_callers_bytes_are_as_they_were(opened, maker):
    model = opened(maker, Mlp(), FEATURES)
    data = bytearray(np.ones((1, 30), np.float32).tobytes())
    before = bytes(data)
    model.run([BatchInput("features", "FP32", (1, 30), [data])])
    assert data == before


@over_formats()
def test_warm_up_runs_every_batch_size(opened, maker):
    report = warm_up(opened(maker, Mlp(), FEATURES, max_batch_size=8))
    assert set(report.run_s) == {1, 2, 4, 8}


# -- without a configuration ------------------------------------------------------------------------


@over_formats(lambda maker: maker.describes)
def test_without_configuration_the_file_says_names_datatypes_and_shapes(opened, maker):
    spec = opened(maker, TwoInputs(), TWO, from_signature=True).spec
    assert spec.max_batch_size == 64
    assert [(each.name, each.datatype.name, each.dims) for each in spec.inputs] == [
        ("values", "FP32", (3,)),
        ("offset", "INT64", (1,)),
    ]
    assert [(each.name, each.datatype.name, each.dims) for each in spec.outputs] == [
        ("OUTPUT__0", "FP32", (3,)),
        ("OUTPUT__1", "INT64", (1,)),
    ]


@over_formats(lambda maker: maker.name == "plain_package")
def test_package_without_a_signature_needs_a_configuration(opened, maker):
    with pytest.raises(ModelLoadError) as caught:
        opened(maker, Mlp(), FEATURES, from_signature=True)
    assert "write a config.pbtxt" in refusal(caught)


# -- refusals ---------------------------------------------------------------------------------------


@over_formats()
@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([*MLP_IN, tensor_spec("more")], SCORE, "1 inputs"),
        (MLP_IN, [tensor_spec("OUTPUT__1")], "returns 1 outputs"),
        (MLP_IN, [*SCORE, tensor_spec("OUTPUT__1")], "returns 1 outputs"),
    ],
)
def test_configuration_with_other_tensors_is_refused(opened, maker, inputs, outputs, says):
    with pytest.raises(ModelLoadError) as caught:
        opened(maker, Mlp(), FEATURES, inputs, outputs)
    assert says in refusal(caught)


@over_formats()
@pytest.mark.parametrize(
    "tensor",
    [
        tensor_spec("features", "FP32", (29,)),
        tensor_spec("features", "FP32", (31,)),
        tensor_spec("features", "FP32", (1,)),
        tensor_spec("features", "FP64", (30,)),
        tensor_spec("features", "FP32", (30, 2)),
    ],
    ids=str,
)
def test_configuration_with_other_shapes_is_refused_before_it_serves(opened, maker, tensor):
    with pytest.raises(ModelLoadError) as caught:
        warm_up(opened(maker, Mlp(), FEATURES, [tensor]))
    refusal(caught)


@over_formats(lambda maker: maker.name != "torchscript")
def test_size_that_the_file_fixes_cannot_be_left_open(opened, maker):
    with pytest.raises(ModelLoadError) as caught:
        opened(maker, Mlp(), FEATURES, [tensor_spec("features", "FP32", (-1,))])
    refusal(caught)


@over_formats()
@pytest.mark.parametrize(
    "output", [tensor_spec("OUTPUT__0", "FP64", (1,)), tensor_spec("OUTPUT__0", "FP32", (2,))], ids=str
)
def test_output_that_is_not_what_the_configuration_says_fails_the_run(opened, maker, output):
    model = opened(maker, Mlp(), FEATURES, outputs=[output])
    with pytest.raises(ModelFailed) as caught:
        model.run([batch("features", np.zeros((3, 30), np.float32))])
    assert "its configuration says" in refusal(caught)


@over_formats(lambda maker: maker.name in ("program", "onnx"))
def test_fixed_batch_dimension_is_refused_with_the_way_to_export(tmp_path, maker):
    path = tmp_path / maker.filename
    maker.write(Mlp(), path, FEATURES, is_dynamic=False)
    spec = replace(model_spec(MLP_IN, SCORE), path=path)
    with pytest.raises(ModelLoadError) as caught:
        maker.open(spec)
    assert "fixed at 2" in refusal(caught)
    assert "dynamic" in refusal(caught)


@over_formats(lambda maker: maker.name in ("program", "onnx"))
def test_fixed_batch_dimension_without_configuration_makes_a_model_without_batches(tmp_path, maker):
    path = tmp_path / maker.filename
    maker.write(Mlp(), path, FEATURES, is_dynamic=False)
    spec = replace(model_spec(), path=path, inputs=(), outputs=(), from_signature=True)
    model = maker.open(spec)
    assert (model.spec.max_batch_size, model.spec.inputs[0].dims) == (0, (2, 30))
    assert not model.spec.batching.enabled


@over_formats()
@pytest.mark.parametrize("damage", ["random", "empty", "text", "cut"])
def test_damaged_file_is_refused_and_the_process_lives(tmp_path, maker, damage):
    path = tmp_path / maker.filename
    maker.write(Mlp(), path, FEATURES)
    data = path.read_bytes()
    path.write_bytes(
        {
            "random": np.random.default_rng(0).bytes(4096),
            "empty": b"",
            "text": b"version https://git-lfs.github.com/spec/v1\n",
            "cut": data[: len(data) // 2],
        }[damage]
    )
    with pytest.raises(ModelLoadError) as caught:
        maker.open(replace(model_spec(MLP_IN, SCORE), path=path))
    assert str(path) in refusal(caught)


@over_formats(lambda maker: maker.platform == "torch_aoti")
def test_file_with_a_byte_changed_is_refused(tmp_path, maker):
    path = tmp_path / maker.filename
    maker.write(Mlp(), path, FEATURES)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelLoadError) as caught:
        maker.open(replace(model_spec(MLP_IN, SCORE), path=path))
    assert "damaged" in refusal(caught)


@over_formats()
def test_gpu_that_is_not_there_is_refused_with_a_way_out(tmp_path, maker):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = tmp_path / maker.filename
    maker.write(Mlp(), path, FEATURES)
    with pytest.raises(ModelLoadError) as caught:
        maker.open(replace(model_spec(MLP_IN, SCORE), path=path), "cuda:0")
    assert "KIND_CPU" in refusal(caught)


@over_formats()
def test_closed_model_lets_go_of_what_it_loaded(opened, maker):
    model = opened(maker, Mlp(), FEATURES)
    held = [weakref.ref(value) for name, value in vars(model).items() if name in ("_call", "_session")]
    assert len(held) == 1
    model.close()
    gc.collect()
    assert [each() for each in held] == [None]


# -- compiled packages --------------------------------------------------------------------------------


@over_formats(lambda maker: maker.name == "package")
def test_package_whose_runs_are_long_gets_a_process_of_its_own(opened, maker):
    features = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    samples = (torch.zeros(2, 512),)
    model = opened(
        maker,
        Wide(),
        samples,
        [tensor_spec("x", "FP32", (512,))],
        [tensor_spec("OUTPUT__0", "FP32", (512,))],
        max_batch_size=512,
    )
    try:
        assert not isinstance(model, TorchModel)
        (output,) = model.run([batch("x", features)]).outputs
    finally:
        model.close()
    with torch.inference_mode():
        expected = Wide()(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(array_of(output), expected, rtol=1e-4, atol=1e-5)


@over_formats(lambda maker: maker.name == "program")
def test_program_is_compiled_where_the_configuration_asks_for_it(opened, maker):
    missing = "" if torch_aoti.compiler() else "no C++ compiler"
    if missing:
        pytest.skip(missing)
    model = opened(maker, Mlp(), FEATURES, torch_export_mode="aoti", execution="inline")
    assert isinstance(model, TorchModel)
    features = np.ones((3, 30), np.float32)
    (output,) = model.run([batch("features", features)]).outputs
    with torch.inference_mode():
        expected = Mlp()(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(array_of(output), expected, rtol=1e-5, atol=1e-6)
