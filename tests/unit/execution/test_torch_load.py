from __future__ import annotations

import io
import zipfile

import pytest
import torch
from torch import Tensor, nn

from tensorferry.execution.backends import torch_load
from tensorferry.execution.backends.torch_load import Sizes, load_module

#: Small files count as large ones, and each tensor gets memory of its own.
IN_PARTS = Sizes(small=0, chunk=100, mapped=1)
WARNING = "model was loaded in one piece"

# Of the tracer, and of TorchScript and eager quantization, which are deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


class Everything(nn.Module):
    """Tensors of every kind that a file can hold, in places that a loader could confuse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.tied = self.layers[0]
        for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64):
            self.register_buffer(str(dtype).replace(".", "_"), torch.randint(0, 2, (3, 5)).to(dtype))
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
            self.register_buffer(str(dtype).replace(".", "_"), torch.randn(3, 5).to(dtype))
        whole = torch.randn(6, 7)
        self.register_buffer("whole", whole)
        self.register_buffer("view", whole[2:4, 1:5])
        self.register_buffer("transposed", whole.t())
        self.register_buffer("broadcast", torch.randn(3, 1).expand(3, 4))
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer(
            "channels_last", torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        )
        self.frozen_parameter = nn.Parameter(torch.randn(3), requires_grad=False)
        self.listed = [torch.randn(2), torch.randn(2)]
        self.named = {"0": torch.randn(3), "1": torch.randn(3)}
        self.number = 3

    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return x * self.number + self.listed[1].sum()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x) + self.tied(x)[:, :3] + self.broadcast.sum() + self.named["0"]
        return self.other(y) + self.frozen_parameter


class WithConstants(nn.Module):
    """Its forward, traced or frozen, holds tensors that aren't the module's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 3))
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.tensor([1.5, 2.5, 3.5]) + self.shift


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.script(module.eval())


def traced(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.trace(module.eval(), torch.zeros(2, 4))


def frozen(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.freeze(scripted(module))


def quantized(_: nn.Module) -> torch.jit.ScriptModule:
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return scripted(torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, torch.qint8))


CASES = {
    "script": (scripted, Everything),
    "constants of a trace": (traced, WithConstants),
    "frozen": (frozen, WithConstants),
    "traced and frozen": (lambda module: torch.jit.freeze(traced(module)), WithConstants),
    "packed weights": (quantized, nn.Identity),
    "no tensors": (scripted, nn.Identity),
}


@pytest.fixture
def save(tmp_path):
    def saved(module: torch.jit.ScriptModule):
        path = tmp_path / "model.pt"
        torch.jit.save(module, str(path))
        return path

    return saved


def attributes_of(module) -> dict[str, Tensor]:
    """Every tensor of the module and its submodules by name, in lists and dictionaries too."""
    found: dict[str, Tensor] = {}
    found.update(module.state_dict())
    for name in ("listed", "named"):
        if hasattr(module, name):
            add_tensors(found, name, getattr(module, name))
    for index, tensor in enumerate(constants_of(module)):
        found[f"constant {index}"] = tensor
    return found


def add_tensors(found: dict[str, Tensor], name: str, value) -> None:
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            add_tensors(found, f"{name}[{index}]", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            add_tensors(found, f"{name}[{key}]", each)


def constants_of(module) -> list[Tensor]:
    if not hasattr(module, "forward"):
        return []
    graph = module.inlined_graph  # its nodes end with it
    nodes = graph.findAllNodes("prim::Constant", recurse=True)
    return [node.t("value") for node in nodes if node.hasAttribute("value") and node.kindOf("value") == "t"]


def form_of(tensor: Tensor) -> tuple:
    storage = tensor.untyped_storage()
    return (
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.requires_grad,
        tensor.is_quantized,
        tensor.device,
        storage.nbytes(),
        bytes(storage.tolist()),
    )


def sharing(tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    """Names of the tensors that share a storage."""
    by_storage: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
    return {frozenset(names) for names in by_storage.values()}


def assert_same(own: torch.jit.ScriptModule, plain: torch.jit.ScriptModule) -> None:
    ours, theirs = attributes_of(own), attributes_of(plain)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert form_of(ours[name]) == form_of(tensor), name
    assert sharing(ours) == sharing(theirs)
    assert [name for name, _ in own.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert own.code == plain.code
    assert own._c._method_names() == plain._c._method_names()


@pytest.mark.parametrize("case", CASES)
def test_module_is_the_one_that_torch_loads(case, save, capsys):
    make, kind = CASES[case]
    path = save(make(kind()))
    own, plain = load_module(path, "cpu", IN_PARTS), torch.jit.load(str(path))
    assert WARNING not in capsys.readouterr().out
    assert_same(own, plain)
    x = torch.randn(5, 4)
    for _ in range(3):  # the executor compiles anew after the first runs
        assert torch.equal(own(x), plain(x))


def test_exported_methods_and_attributes_are_there(save):
    path = save(scripted(Everything()))
    own, plain = load_module(path, "cpu", IN_PARTS), torch.jit.load(str(path))
    x = torch.randn(5, 3)
    assert torch.equal(own.other(x), plain.other(x))
    assert own.number == 3


def test_module_can_be_saved_and_loaded_again(save, tmp_path):
    own = load_module(save(scripted(Everything())), "cpu", IN_PARTS)
    again = tmp_path / "again.pt"
    torch.jit.save(own, str(again))
    assert_same(load_module(again, "cpu", IN_PARTS), own)


def test_file_of_a_real_size_is_loaded_in_parts(save, capsys):
    rows = 3 * Sizes().small // 4 // 1024
    path = save(scripted(nn.Sequential(nn.Linear(1024, rows), nn.Linear(rows, 1))))
    own, plain = load_module(path, "cpu"), torch.jit.load(str(path))
    assert WARNING not in capsys.readouterr().out
    for ours, theirs in zip(own.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not own.state_dict()["0.weight"].untyped_storage().resizable(), "it has memory of its own"


def test_tensors_may_be_written_to_and_the_file_stays_as_it_is(save):
    path = save(scripted(WithConstants()))
    before = path.read_bytes()
    with torch.no_grad():
        load_module(path, "cpu", IN_PARTS).shift.zero_()
    assert path.read_bytes() == before
    assert load_module(path, "cpu", IN_PARTS).shift.abs().sum() > 0


def test_model_goes_to_the_device_that_is_asked_for(save):
    own = load_module(save(scripted(WithConstants())), "meta", IN_PARTS)
    assert {each.device.type for each in own.parameters()} == {"meta"}


def rewritten(path, change, compression=zipfile.ZIP_STORED) -> None:
    """Write the archive anew; ``change(name, content)`` returns the record's content, None for none."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(content, "w", compression) as after:
        for each in before.infolist():
            record = change(each.filename.partition("/")[2], before.read(each))
            if record is not None:
                after.writestr(each.filename, record)
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize(
    ("change", "compression"),
    [
        pytest.param(lambda _, content: content, zipfile.ZIP_DEFLATED, id="compressed"),
        pytest.param(
            lambda name, content: None if name == "byteorder" else content, zipfile.ZIP_STORED, id="older"
        ),
    ],
)
def test_file_that_is_laid_out_otherwise_is_loaded_nevertheless(change, compression, save):
    path = save(traced(WithConstants()))
    plain = torch.jit.load(str(path))
    rewritten(path, change, compression)
    assert_same(load_module(path, "cpu", IN_PARTS), plain)


def test_what_this_torch_does_not_offer_is_loaded_in_one_piece_and_said(save, monkeypatch, capsys):
    path = save(traced(WithConstants()))
    monkeypatch.delattr(torch._C, "_import_ir_module_from_package")
    own = load_module(path, "cpu", IN_PARTS)
    assert WARNING in capsys.readouterr().out
    assert_same(own, torch.jit.load(str(path)))


def test_key_that_is_a_string_of_the_model_too_is_not_changed_under_it():
    storage = [
        b"X\7\0\0\0storage",
        b"ctorch\nFloatStorage\n",
        b"X\1\0\0\0" + b"0q\0",
        b"X\3\0\0\0cpu",
        b"K\4",
    ]
    pushed = b"\x80\2((" + b"".join(storage) + b"tQ"
    assert b"constants.0" in torch_load._rekeyed(pushed + b"t.")
    with pytest.raises(torch_load._NotAsExpectedError, match="string of the model's"):
        torch_load._rekeyed(pushed + b"h\0t.")


@pytest.mark.parametrize("record", ["data/0", "constants/0"])
def test_damaged_tensor_is_refused_by_name(record, save):
    path = save(traced(WithConstants()))
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(f"model/{record}")
    content = path.read_bytes()
    assert content.count(tensor) == 1
    path.write_bytes(content.replace(tensor, bytes([tensor[0] ^ 1]) + tensor[1:]))
    with pytest.raises(RuntimeError, match=f"'{record}' is damaged"):
        load_module(path, "cpu", IN_PARTS)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_archive_of_a_model_is_refused(content, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(RuntimeError):
        load_module(path, "cpu", IN_PARTS)


def test_file_that_is_cut_off_is_refused(save):
    path = save(scripted(WithConstants()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError):
        load_module(path, "cpu", IN_PARTS)


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_module(tmp_path / "model.pt", "cpu", IN_PARTS)
