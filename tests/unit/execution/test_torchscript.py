import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.support import model_spec, tensor_spec
from torch import Tensor, nn

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.torchscript import open_model
from tensorferry.model import BatchInput, PaddingSpec
from tensorferry.tensors import array_of
from tensorferry.testing.models import Identity, Mlp, TwoInputs, save

ITEMSIZE = {
    **dict.fromkeys(["BOOL", "UINT8", "INT8"], 1),
    **dict.fromkeys(["INT16", "FP16", "BF16"], 2),
    **dict.fromkeys(["INT32", "FP32"], 4),
    **dict.fromkeys(["INT64", "FP64"], 8),
}

DEVICES = ["cpu", "cuda:0"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def opened(tmp_path, device):
    """Save a module and open it as a spec with these inputs and outputs says."""

    def open_saved(module, inputs=None, outputs=None, **more):
        more.setdefault("max_batch_size", 64)
        save(module, tmp_path / "model.pt")
        spec = model_spec(inputs, outputs, **more)
        model = open_model(replace(spec, path=tmp_path / "model.pt"), device)
        model.attach(1)
        return model

    return open_saved


def fp32(name, *parts, dims=(1,)):
    data = [struct.pack(f"<{len(part)}f", *part) for part in parts]
    rows = sum(len(part) for part in parts) // max(1, int(np.prod(dims)))
    return BatchInput(name, "FP32", (rows, *dims), data)


def values(model, *inputs):
    return [array_of(output).tolist() for output in model.run(inputs).outputs]


def refusal(open_it, *arguments, **more) -> str:
    with pytest.raises(ModelLoadError) as caught:
        open_it(*arguments, **more)
    message = str(caught.value)
    assert message.startswith("model 'm' version 1: ")
    assert "\n" not in message
    return message


# -- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ITEMSIZE)
def test_every_datatype_passes_through_bit_for_bit(opened, datatype):
    tensor = tensor_spec("x", datatype, (-1,))
    model = opened(Identity(), [tensor], [tensor_spec("y", datatype, (-1,))])
    data = np.random.default_rng(0).integers(
        0, 2 if datatype == "BOOL" else 256, 4096 * ITEMSIZE[datatype], np.uint8
    )
    data = data.tobytes()
    cut = 1024 * ITEMSIZE[datatype]
    (output,) = model.run([BatchInput("x", datatype, (64, 64), [data[:cut], memoryview(data)[cut:]])]).outputs
    assert (output.name, output.datatype, output.shape) == ("y", datatype, (64, 64))
    assert bytes(output.data) == data


@pytest.mark.parametrize("shape", [(3, 0), (2, 0, 5)])
def test_rows_without_elements_pass(opened, shape):
    dims = (-1,) * (len(shape) - 1)
    model = opened(Identity(), [tensor_spec("x", "FP32", dims)], [tensor_spec("y", "FP32", dims)])
    (output,) = model.run([BatchInput("x", "FP32", shape, [b"", b""])]).outputs
    assert (output.shape, bytes(output.data)) == (shape, b"")


class Reshuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.t().contiguous().t()[:, ::2]


def test_output_that_is_not_contiguous_arrives_in_row_major_order(opened):
    model = opened(Reshuffled(), [tensor_spec("x", "FP32", (4,))], [tensor_spec("y", "FP32", (2,))])
    assert values(model, fp32("x", range(8), dims=(4,))) == [[[0, 2], [4, 6]]]


class Expanded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3)


def test_output_that_is_expanded_arrives_whole(opened):
    model = opened(Expanded(), outputs=[tensor_spec("y", "FP32", (3,))])
    assert values(model, fp32("x", [1, 2])) == [[[1, 1, 1], [2, 2, 2]]]


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1.0)
        return x


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("parts", [1, 2])
def test_model_that_writes_to_its_input_does_not_change_the_callers_bytes(opened, kind, parts):
    model = opened(InPlace())
    sent = [kind(struct.pack("<f", number)) for number in range(parts)]
    for _ in range(2):
        output = model.run([BatchInput("x", "FP32", (parts, 1), sent)]).outputs[0]
        assert array_of(output).ravel().tolist() == [number + 1.0 for number in range(parts)]
        assert [bytes(part) for part in sent] == [struct.pack("<f", number) for number in range(parts)]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1.0
        return self.count, self.count[0:1, 0:1].expand(x.shape[0], 1)


def test_answer_that_is_the_models_own_memory_does_not_change_with_the_next_run(opened):
    model = opened(Counting(), outputs=[tensor_spec("a"), tensor_spec("b")])
    first = model.run([fp32("x", [0])]).outputs
    second = model.run([fp32("x", [0])]).outputs
    assert [array_of(output).item() for output in (*first, *second)] == [1.0, 1.0, 2.0, 2.0]


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


def test_parameter_that_wants_a_gradient_can_be_an_answer(opened):
    assert values(opened(Weights()), fp32("x", [0])) == [[[3.0]]]


def test_run_says_how_long_its_parts_took(opened):
    result = opened(Identity()).run([fp32("x", [0])])
    assert min(result.input_ns, result.infer_ns, result.output_ns) > 0


def test_batch_gives_the_rows_of_the_mlp_alone(opened):
    model = opened(Mlp(), [tensor_spec("features", "FP32", (30,))])
    rows = np.random.default_rng(0).normal(size=(16, 30)).astype(np.float32)
    (batched,) = values(model, fp32("features", *rows.tolist(), dims=(30,)))
    alone = [values(model, fp32("features", row.tolist(), dims=(30,)))[0][0] for row in rows]
    np.testing.assert_allclose(batched, alone, rtol=1e-5)


# -- names --------------------------------------------------------------------------------------


class Minus(nn.Module):
    def forward(self, minuend: Tensor, subtrahend: Tensor) -> Tensor:
        return minuend - subtrahend


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("minuend", "subtrahend"), 2.0),
        (("subtrahend", "minuend"), -2.0),
        (("INPUT__0", "INPUT__1"), 2.0),
        (("INPUT__1", "INPUT__0"), -2.0),
        (("b__0", "a__1"), 2.0),
        (("second", "first"), 2.0),
        (("minuend", "other"), 2.0),
        (("x__7", "other"), 2.0),
    ],
)
def test_inputs_meet_arguments_by_name_else_by_index_else_in_order(opened, names, difference):
    model = opened(Minus(), [tensor_spec(name) for name in names])
    assert values(model, fp32(names[0], [5]), fp32(names[1], [3])) == [[[difference]]]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1.0


class List(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x + 1.0]


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"more": x + 1.0, "same": x, "unasked": x}


@pytest.mark.parametrize("module", [Pair(), List()])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b"), [1.0, 2.0]),
        (("OUTPUT__0", "OUTPUT__1"), [1.0, 2.0]),
        (("OUTPUT__1", "OUTPUT__0"), [2.0, 1.0]),
        (("OUTPUT__1",), [2.0]),
        (("a",), [1.0]),
        (("a__1", "b"), [1.0, 2.0]),
    ],
)
def test_outputs_are_taken_by_index_or_in_order(opened, module, names, expected):
    model = opened(module, outputs=[tensor_spec(name) for name in names])
    outputs = model.run([fp32("x", [1])]).outputs
    assert [output.name for output in outputs] == list(names)
    assert [array_of(output).item() for output in outputs] == expected


def test_outputs_of_a_dict_are_taken_by_key(opened):
    model = opened(Named(), outputs=[tensor_spec("same"), tensor_spec("more")])
    assert values(model, fp32("x", [1])) == [[[1.0]], [[2.0]]]


def test_key_that_the_dict_lacks_is_the_models_fault(opened):
    model = opened(Named(), outputs=[tensor_spec("same"), tensor_spec("less")])
    with pytest.raises(
        ModelFailed, match=r"returned the outputs \['more', 'same', 'unasked'\], and 'less' isn't"
    ):
        model.run([fp32("x", [1])])


def test_list_that_is_too_short_is_the_models_fault(opened):
    model = opened(List(), outputs=[tensor_spec(name) for name in "abc"])
    with pytest.raises(
        ModelFailed, match=r"returned 2 outputs, and its configuration names \['a', 'b', 'c'\]"
    ):
        model.run([fp32("x", [1])])


# -- what the configuration says ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (tensor_spec("y", "FP64"), "output 'y' is FP32, and its configuration says FP64"),
        (
            tensor_spec("y", "FP32", (2,)),
            r"output 'y' has shape [1, 1], and its configuration says [2] after",
        ),
        (
            tensor_spec("y", "FP32", (1, 1)),
            r"output 'y' has shape [1, 1], and its configuration says [1, 1] after",
        ),
        (tensor_spec("y", "FP32", ()), "output 'y' has shape [1, 1]"),
    ],
)
def test_output_that_is_not_what_the_configuration_says_is_the_models_fault(opened, output, says):
    model = opened(Identity(), outputs=[output])
    with pytest.raises(ModelFailed) as caught:
        model.run([fp32("x", [1])])
    assert says in str(caught.value)


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x)


def test_output_of_a_datatype_that_the_protocol_lacks_is_the_models_fault(opened):
    with pytest.raises(ModelFailed, match=r"'y' is torch\.complex64, which the protocol doesn't have"):
        opened(Complex()).run([fp32("x", [1])])


class Number(nn.Module):
    def forward(self, x: Tensor) -> float:
        return float(x.sum())


def test_output_that_is_no_tensor_is_the_models_fault(opened):
    with pytest.raises(ModelFailed, match="output 'y' is a float, not a tensor"):
        opened(Number()).run([fp32("x", [1])])


def test_model_without_batch_dimension_has_its_whole_shape_checked(opened):
    tensor = [tensor_spec("x", "FP32", (2, -1))], [tensor_spec("y", "FP32", (2, 3))]
    model = opened(Identity(), *tensor, max_batch_size=0)
    assert model.run([BatchInput("x", "FP32", (2, 3), [bytes(24)])]).outputs[0].shape == (2, 3)
    with pytest.raises(ModelFailed, match=r"has shape \[2, 1\], and its configuration says \[2, 3\]$"):
        model.run([BatchInput("x", "FP32", (2, 1), [bytes(8)])])


def test_without_configuration_names_and_numbers_come_from_the_signature(opened):
    spec = opened(TwoInputs(), from_signature=True).spec
    assert [each.name for each in spec.inputs] == ["INPUT__0", "INPUT__1"]
    assert [each.name for each in spec.outputs] == ["OUTPUT__0", "OUTPUT__1"]
    assert all(each.datatype is None and each.dims is None for each in (*spec.inputs, *spec.outputs))
    assert spec.datatypes == set(ITEMSIZE)
    assert spec.max_batch_size == 64


@pytest.mark.parametrize("module", [List(), Named(), Number()])
def test_signature_that_does_not_say_the_number_of_outputs_needs_a_configuration(opened, module):
    assert "write a config.pbtxt that names them" in refusal(opened, module, from_signature=True)


# -- models that can't be served ----------------------------------------------------------------


class NoInputs(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(1)


class Flagged(nn.Module):
    def forward(self, x: Tensor, flag: bool) -> Tensor:
        return x


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> tuple[()]:
        return ()


class NoForward(nn.Module):
    @torch.jit.export
    def score(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (NoInputs(), "forward takes no inputs"),
        (Flagged(), "forward's argument 'flag' is bool, and only tensors can be sent"),
        (Nothing(), "forward returns no tensors"),
        (NoForward(), "no method forward"),
    ],
)
@pytest.mark.parametrize("from_signature", [True, False])
def test_module_whose_forward_cannot_be_called_with_tensors_is_refused(opened, module, says, from_signature):
    assert says in refusal(opened, module, from_signature=from_signature)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (
            ["x"],
            ["y"],
            "forward takes 2 inputs ['minuend', 'subtrahend'], and the configuration names 1 ['x']",
        ),
        (["a", "b", "c"], ["y"], "forward takes 2 inputs"),
        (["a", "b"], ["y", "z"], "forward returns 1 outputs, and the configuration names ['y', 'z']"),
        (["a", "b"], ["OUTPUT__1"], "forward returns 1 outputs"),
        (["INPUT__0", "INPUT__2"], ["y"], "must be 0 to 1, each once"),
        (["INPUT__1", "B__1"], ["y"], "must be 0 to 1, each once"),
    ],
)
def test_configuration_that_does_not_fit_the_signature_is_refused(opened, inputs, outputs, says):
    tensors = [tensor_spec(name) for name in inputs], [tensor_spec(name) for name in outputs]
    assert says in refusal(opened, Minus(), *tensors)


@pytest.mark.parametrize("datatype", ["UINT16", "UINT32", "UINT64", "BYTES"])
def test_datatype_that_torchscript_lacks_is_refused_at_load(opened, datatype):
    assert f"'x' is {datatype}" in refusal(opened, Identity(), [tensor_spec("x", datatype)])
    assert f"'y' is {datatype}" in refusal(opened, Identity(), None, [tensor_spec("y", datatype)])


def spoilt(content: bytes, kind: str, path) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif kind == "weights":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"# weights go here\n" * 20,
                "half": content[: len(content) // 2],
                "short": content[:-1],
                "headless": content[100:],
                "pickle": pickle.dumps({"weight": [1.0]}),
                "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
            }[kind]
        )


@pytest.mark.parametrize(
    "kind", ["empty", "text", "half", "short", "headless", "pickle", "zip", "weights", "lfs", "missing"]
)
def test_file_that_is_no_torchscript_is_refused_with_its_path_and_a_short_reason(tmp_path, kind):
    path = tmp_path / "model.pt"
    save(Identity(), path)
    content = path.read_bytes()
    path.unlink()
    if kind != "missing":
        spoilt(content, kind, path)
    spec = replace(model_spec(), path=path)
    message = refusal(open_model, spec, "cpu")
    assert f"{path} is not a TorchScript model that this torch ({torch.__version__}) can load: " in message
    assert len(message.partition("can load: ")[2]) < 200


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_refused_with_a_way_out(tmp_path):
    save(Identity(), tmp_path / "model.pt")
    message = refusal(open_model, replace(model_spec(), path=tmp_path / "model.pt"), "cuda:0")
    assert "instance_group asks for cuda:0" in message
    assert "KIND_CPU" in message


def test_gpu_beyond_the_last_is_refused_with_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    save(Identity(), tmp_path / "model.pt")
    spec = replace(model_spec(), path=tmp_path / "model.pt")
    message = refusal(open_model, spec, "cuda:7")
    assert "asks for cuda:7, and torch sees only cuda:0, cuda:1; change its gpus" in message


@pytest.mark.parametrize(("built_for", "remedy"), [(None, "install a CUDA build"), ("13.0", "nvidia-smi")])
def test_machine_without_a_gpu_and_torch_without_cuda_are_told_apart(
    tmp_path, monkeypatch, built_for, remedy
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    save(Identity(), tmp_path / "model.pt")
    spec = replace(model_spec(), path=tmp_path / "model.pt")
    assert remedy in refusal(open_model, spec, "cuda:0")


def test_closed_model_has_let_its_module_go(opened):
    model = opened(Identity())
    model.close()
    with pytest.raises(AttributeError):
        model.run([fp32("x", [1])])


class LengthsFirst(nn.Module):
    def forward(self, lengths: Tensor, x: Tensor) -> Tensor:
        return x * 10.0 + lengths


@pytest.mark.parametrize(("name", "lengths"), [("x", "lengths"), ("in__1", "in__0")])
def test_lengths_that_the_server_fills_in_reach_the_argument_of_their_name_or_index(opened, name, lengths):
    padding = PaddingSpec((name,), ("y",), (4,), lengths_input=lengths)
    tensors = [tensor_spec(name, "FP32", (-1,))], [tensor_spec("y", "FP32", (-1,))]
    model = opened(LengthsFirst(), *tensors, padding=padding)
    sent = fp32(name, [1.0, 2.0], dims=(2,))
    filled_in = BatchInput(lengths, "INT64", (1, 1), [(7).to_bytes(8, "little")])
    assert values(model, sent, filled_in) == [[[17.0, 27.0]]]


def test_model_without_an_argument_for_the_lengths_is_refused(opened):
    padding = PaddingSpec(("x",), (), (4,), lengths_input="lengths")
    message = refusal(opened, Identity(), [tensor_spec("x", "FP32", (-1,))], padding=padding)
    assert "takes 1 inputs ['x'], and the configuration names 2 ['x', 'lengths']" in message
