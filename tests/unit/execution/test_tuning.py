"""Autocast, memory format and shared weights, on the CPU: a GPU runs the same code."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import structlog
import torch
from tests.formats import MAKERS
from tests.unit.support import model_spec, tensor_spec
from torch import Tensor, nn

from tensorferry.device import Tuning
from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends import python, torch_export, torch_gpu, torch_sharing, torchscript
from tensorferry.execution.backends.torch_difference import difference
from tensorferry.execution.backends.torch_export import program_module
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput, PaddingSpec
from tensorferry.tensors import array_of
from tensorferry.testing.emulated_gpu import EmulatedGpu
from tensorferry.testing.models import Mlp, save, save_program

TORCH = [each for each in MAKERS if each.name in ("torchscript", "program")]
BF16, FP16, LAST = Tuning(autocast="BF16"), Tuning(autocast="FP16"), Tuning(channels_last=True)
SHARED = Tuning(shares_weights=True)
IMAGE = tensor_spec("x", "FP32", (3, 8, 8))


@pytest.fixture(params=TORCH, ids=lambda maker: maker.name)
def opened(request, tmp_path):
    """Save a module in a format that torch runs, and open it as a spec says."""
    maker = request.param

    def open_saved(module, tuning=None, inputs=None, outputs=None, example=None, streams=1, **more):
        spec = model_spec(inputs, outputs, max_batch_size=8, **more)
        spec = replace(spec, path=tmp_path / maker.filename, tuning=tuning or Tuning())
        if not spec.path.exists():
            rows = example or tuple(zeros_of(each) for each in spec.model_inputs)
            maker.write(module.eval(), spec.path, rows)
        models = [maker.open(spec) for _ in range(streams)]
        for model in models:
            model.attach(1)
        return models if streams > 1 else models[0]

    return open_saved


def zeros_of(each):
    dtype = torch.int64 if each.datatype.name == "INT64" else torch.float32
    return torch.zeros((2, *each.dims), dtype=dtype)


def rows_of(array, name="x"):
    datatype = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
    return BatchInput(name, datatype, array.shape, [array.tobytes()])


def answers(model, *arrays):
    names = [each.name for each in model.spec.inputs]
    return [
        array_of(each)
        for each in model.run([rows_of(*pair) for pair in zip(arrays, names, strict=True)]).outputs
    ]


def features(rows=4, seed=1, width=30):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def images(rows=4):
    return np.random.default_rng(2).normal(size=(rows, 3, 8, 8)).astype(np.float32)


def refusal(open_it, *arguments, **more) -> str:
    with pytest.raises(ModelLoadError) as caught:
        open_it(*arguments, **more)
    message = str(caught.value)
    assert message.startswith("model 'm' version 1")
    assert "\n" not in message
    return message


@pytest.fixture
def owned(monkeypatch):
    """For each model that is opened, the tensors that are its own."""
    found = []
    for module in (torchscript, torch_export):

        def noting(*given, original=module.open_torch):
            found.append(list(given[4]))
            return original(*given)

        monkeypatch.setattr(module, "open_torch", noting)
    return found


def places(tensors):
    return {each.data_ptr() for each in tensors}


MLP_INPUT = [tensor_spec("features", "FP32", (30,))]


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


CONVOLUTION = {"inputs": [IMAGE], "outputs": [tensor_spec("y", "FP32", (8, 4, 4))]}


# -- autocast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [BF16, FP16], ids=["bf16", "fp16"])
def test_autocast_rounds_the_answers_and_leaves_their_datatype(opened, tuning):
    (plain,) = answers(opened(Mlp(), None, MLP_INPUT), features())
    (rounded,) = answers(opened(Mlp(), tuning, MLP_INPUT), features())
    assert rounded.dtype == np.float32
    assert np.any(plain != rounded)
    np.testing.assert_allclose(rounded, plain, rtol=3e-2, atol=1e-2)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.linear(x)
        return offset * 3, scores, scores.argmax(1, keepdim=True)


def test_autocast_leaves_integers_alone(opened):
    inputs = [tensor_spec("x", "FP32", (4,)), tensor_spec("offset", "INT64", (1,))]
    outputs = [
        tensor_spec("tripled", "INT64", (1,)),
        tensor_spec("scores", "FP32", (3,)),
        tensor_spec("best", "INT64", (1,)),
    ]
    model = opened(Scored(), BF16, inputs, outputs)
    tripled, scores, best = answers(model, features(4, width=4), np.array([[7], [2**40 + 1], [0], [-5]]))
    assert tripled.tolist() == [[21], [3 * (2**40 + 1)], [0], [-15]]
    assert (scores.dtype, best.dtype) == (np.float32, np.int64)
    assert best.ravel().tolist() == scores.argmax(1).tolist()


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 1)
        nn.init.constant_(self.linear.weight, 1e5)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


def test_numbers_that_fp16_cannot_hold_refuse_the_model(opened):
    message = refusal(opened, Large(), FP16, MLP_INPUT)
    assert "with autocast fp16, 2 of 2 values of output 'y' aren't finite, and are without" in message
    assert message.endswith(
        "remove autocast, or add a golden file of inputs that come, with rtol and atol if the difference is"
        " right"
    )


def test_numbers_that_bf16_holds_are_not_refused(opened):
    assert np.isfinite(answers(opened(Large(), BF16, MLP_INPUT), features())[0]).all()


class Cancelling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 1, bias=False)
        nn.init.constant_(self.linear.weight, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features + 1000.0) - 30000.0


def test_a_difference_that_is_too_large_refuses_the_model_with_the_figures(opened):
    message = refusal(opened, Cancelling(), BF16, MLP_INPUT)
    assert "with autocast bf16, output 'y' differs by " in message
    assert " from what the model gives without, and " in message
    assert " is allowed, on random inputs; remove autocast, or add a golden file" in message


def test_the_difference_is_logged(opened):
    with structlog.testing.capture_logs() as logs:
        opened(Mlp(), BF16, MLP_INPUT)
    (entry,) = [each for each in logs if each["event"] == "tuning compared with the plain model"]
    assert (entry["log_level"], entry["model"], entry["tuning"]) == ("info", "m", "autocast bf16")
    assert 0 < entry["largest_difference"]["y"] < 0.05


def write_golden(path, output, **tolerances):
    np.savez(path, **{"inputs/features": features(), "outputs/y": output}, **tolerances)
    return path


def plain_answer(opened):
    return answers(opened(Mlp(), None, MLP_INPUT), features())[0]


def test_a_golden_file_is_held_against_the_tuned_model_with_the_tolerance_of_its_datatype(opened, tmp_path):
    golden = write_golden(tmp_path / "golden.npz", plain_answer(opened))
    model = opened(Mlp(), BF16, MLP_INPUT, golden=golden)
    assert np.any(plain_answer(opened) != answers(model, features())[0])
    warm_up(model)


def test_a_golden_files_own_tolerance_holds_for_the_tuned_model(opened, tmp_path):
    golden = write_golden(tmp_path / "golden.npz", plain_answer(opened), rtol=1e-6, atol=0.0)
    model = opened(Mlp(), BF16, MLP_INPUT, golden=golden)
    with pytest.raises(ModelLoadError, match=r"the tolerance is 0 \+ 1e-06 .* values differ"):
        warm_up(model)


def test_a_difference_that_a_golden_file_allows_is_served(opened, tmp_path):
    expected = answers(opened(Cancelling(), None, MLP_INPUT), features())[0]
    golden = write_golden(tmp_path / "golden.npz", expected, rtol=0.0, atol=1000.0)
    warm_up(opened(Cancelling(), BF16, MLP_INPUT, golden=golden))


class Length(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return (self.embedding(x).sum((1, 2)) / lengths[:, 0])[:, None]


@pytest.mark.parametrize("maker", TORCH[:1], ids=["torchscript"])
def test_a_padded_model_is_compared_at_its_shortest_bucket_and_no_index_is_out_of_range(tmp_path, maker):
    padding = PaddingSpec(("x",), (), (16, 32), lengths_input="lengths")
    spec = model_spec([tensor_spec("x", "INT64", (-1,))], max_batch_size=8, padding=padding, tuning=BF16)
    save(Length(), tmp_path / "model.pt")
    with structlog.testing.capture_logs() as logs:
        torchscript.open_model(replace(spec, path=tmp_path / "model.pt"), "cpu")
    assert [each["event"] for each in logs] == ["tuning compared with the plain model"]


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


def why_not_compared(path, module, inputs, tuning=BF16):
    save(module, path)
    with structlog.testing.capture_logs() as logs:
        torchscript.open_model(replace(model_spec(inputs, max_batch_size=8, tuning=tuning), path=path), "cpu")
    (entry,) = [each for each in logs if each["event"].startswith("tuning not compared")]
    assert entry["log_level"] == "warning"
    return entry["reason"]


def test_a_model_whose_shapes_vary_is_not_compared_and_the_log_says_so(tmp_path):
    inputs = [tensor_spec("x", "FP32", (-1,))]
    assert why_not_compared(tmp_path / "model.pt", Summed(), inputs) == "its inputs' shapes vary"


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


def test_a_model_whose_answers_differ_anyway_is_not_compared_and_the_log_says_so(tmp_path):
    reason = why_not_compared(tmp_path / "model.pt", Noise(), None)
    assert reason == "its answers to the same inputs differ from run to run"


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert bool((x == 0.0).all())
        return x


def test_a_model_that_raises_on_random_inputs_is_left_to_warm_up(tmp_path):
    reason = why_not_compared(tmp_path / "model.pt", Picky(), None)
    assert reason.startswith("the model raises on random inputs: ")


def test_a_model_that_does_not_run_in_another_memory_format_is_refused_with_the_remedy(tmp_path):
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.convolution(x).view(-1, 256).sum(1, keepdim=True)

    save_program(Viewed(), tmp_path / "model.pt2", (torch.zeros(2, 3, 8, 8),))
    spec = replace(model_spec([IMAGE], max_batch_size=8, tuning=LAST), path=tmp_path / "model.pt2")
    message = refusal(torch_export.open_model, spec, "cpu")
    assert " doesn't run with memory_format channels_last: view size is not compatible" in message
    assert message.endswith("remove memory_format")


@pytest.mark.parametrize(
    ("plain", "got", "is_too_large"),
    [
        ([1.0, 100.0], [1.5, 100.0], False),  # 1 % of the largest
        ([1.0, 100.0], [2.5, 100.0], True),
        ([1.0, float("inf")], [1.0, float("inf")], False),
        ([float("nan"), 1.0], [0.0, 1.0], False),
        ([1.0, 1.0], [float("nan"), 1.0], True),
        ([], [], False),
    ],
)
def test_outputs_may_differ_by_a_part_of_their_largest_value(plain, got, is_too_large):
    found = difference(torch.tensor(plain), torch.tensor(got), 1e-2, 1e-3)
    assert found.is_too_large is is_too_large


def test_integers_may_not_differ_at_all():
    assert not difference(torch.tensor([3, 2]), torch.tensor([3, 2]), 1.0, 1.0).is_too_large
    assert difference(torch.tensor([3, 2]), torch.tensor([3, 1]), 1.0, 1.0).is_too_large


# -- channels last ------------------------------------------------------------------------------


def test_channels_last_lays_the_weights_out_and_gives_the_same_answers(opened, owned):
    (plain,) = answers(opened(Convolution(), None, **CONVOLUTION), images())
    (laid_out,) = answers(opened(Convolution(), LAST, **CONVOLUTION), images())
    np.testing.assert_allclose(laid_out, plain, rtol=1e-3, atol=1e-5)
    kernels = [each for each in owned[1] if each.dim() == 4]
    assert len(kernels) == 2
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)
    assert not any(each.is_contiguous() for each in kernels)


def test_channels_last_and_autocast_go_together(opened):
    (plain,) = answers(opened(Convolution(), None, **CONVOLUTION), images())
    tuning = Tuning(autocast="BF16", channels_last=True)
    (tuned,) = answers(opened(Convolution(), tuning, **CONVOLUTION), images())
    assert np.any(plain != tuned)
    np.testing.assert_allclose(tuned, plain, atol=3e-2 * np.abs(plain).max())


# -- shared weights -----------------------------------------------------------------------------


def test_streams_that_share_weights_hold_the_same_memory(opened, owned):
    opened(Mlp(), SHARED, MLP_INPUT, streams=3)
    assert places(owned[0]) == places(owned[1]) == places(owned[2])
    assert len(places(owned[0])) == 4


def test_streams_have_weights_of_their_own_unless_they_share(opened, owned):
    opened(Mlp(), None, MLP_INPUT, streams=2)
    assert not places(owned[0]) & places(owned[1])


def test_streams_of_two_devices_share_nothing(tmp_path):
    spec = replace(model_spec(), tuning=SHARED, path=tmp_path)
    made = []

    def prepare(given, device):
        made.append(device)
        return torch_sharing.Prepared(lambda x: x, given, [0], [])

    held = [torch_sharing.prepared_once(spec, device, prepare) for device in ("cuda:0", "cuda:1", "cuda:0")]
    assert made == ["cuda:0", "cuda:1"]
    assert len(held) == 3


@pytest.mark.parametrize("tuning", [SHARED, Tuning(autocast="BF16", channels_last=True, shares_weights=True)])
def test_streams_that_share_weights_answer_right_at_the_same_time(opened, tuning):
    (expected,) = answers(opened(Mlp(), replace(tuning, shares_weights=False), MLP_INPUT), features(8))
    models = opened(Mlp(), tuning, MLP_INPUT, streams=4)
    start = threading.Barrier(4)
    wrong = []

    def ask(model):
        model.attach(1)
        start.wait()
        for _ in range(100):
            (got,) = answers(model, features(8))
            if not np.allclose(got, expected, rtol=1e-5, atol=1e-6):
                wrong.append(got)

    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_streams_that_load_at_the_same_time_load_once(opened, monkeypatch):
    opened(Mlp(), None, MLP_INPUT)  # writes the file
    loads = []
    for module in (torchscript, torch_export):

        def counted(*given, original=module._prepared):
            loads.append(threading.current_thread())
            return original(*given)

        monkeypatch.setattr(module, "_prepared", counted)
    models = []
    threads = [
        threading.Thread(target=lambda: models.append(opened(Mlp(), SHARED, MLP_INPUT))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(models), len(loads)) == (4, 1)


def test_the_last_stream_to_close_frees_the_weights(opened, monkeypatch):
    kept = []
    for module in (torchscript, torch_export):

        def noting(*given, original=module._prepared):
            made = original(*given)
            kept.append(weakref.ref(made.owned[0]))
            return made

        monkeypatch.setattr(module, "_prepared", noting)
    first, second = opened(Mlp(), SHARED, MLP_INPUT, streams=2)
    first.close()
    gc.collect()
    assert kept[0]() is not None
    assert answers(second, features())[0].shape == (4, 1)
    second.close()
    del first, second
    gc.collect()
    assert kept[0]() is None
    third = opened(Mlp(), SHARED, MLP_INPUT)
    assert len(kept) == 2
    third.close()


def test_a_file_that_replaced_another_is_not_taken_for_it(opened, tmp_path):
    model = opened(Mlp(), SHARED, MLP_INPUT)
    before = answers(model, features())[0]
    model.spec.path.unlink()
    other = Mlp()
    nn.init.zeros_(other.score.weight)
    after = answers(opened(other, SHARED, MLP_INPUT), features())[0]
    assert np.any(before != after)
    assert np.array_equal(answers(model, features())[0], before)


def test_a_load_that_fails_leaves_nothing_to_share(opened, tmp_path):
    path = opened(Mlp(), None, MLP_INPUT).spec.path
    content = path.read_bytes()
    path.write_bytes(b"")
    refusal(opened, Mlp(), SHARED, MLP_INPUT)
    path.write_bytes(content)
    assert answers(opened(Mlp(), SHARED, MLP_INPUT), features())[0].shape == (4, 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return x + self.count


def test_a_model_that_its_runs_change_is_not_shared_and_the_log_says_why(opened):
    with structlog.testing.capture_logs() as logs:
        first, second = opened(Counting(), SHARED, streams=2)
    warnings = [each for each in logs if each["event"] == "weights aren't shared: every stream has its own"]
    assert len(warnings) == 2
    assert "count" in warnings[0]["reason"]
    ones = np.ones((1, 1), np.float32)
    assert [answers(first, ones)[0].item() for _ in range(3)] == [2.0, 3.0, 4.0]
    assert answers(second, ones)[0].item() == 2.0


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * float(self.runs)


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.jit.Attribute([], list[Tensor])

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.detach().reshape(16).chunk(2)[0].add_(1.0)
        return x


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.linear(x)))
        hidden[:, 0:1] = 1.0
        return hidden


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Remembering, "runs"),
        (Listing, "seen"),
        (Viewing, "weight"),
        (Within, "count"),
        (Counting, "count"),
        (InPlace, ""),
        (Mlp, ""),
        (Convolution, ""),
    ],
)
def test_what_the_runs_of_a_torchscript_model_change_is_found(tmp_path, module, says):
    save(module(), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt").eval()
    found = torch_sharing.changed_by_script(loaded)
    assert found == (f"its runs change the attribute {says!r}" if says else "")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Viewing, "weight"),
        (Within, "inner.count"),
        (Counting, "count"),
        (InPlace, ""),
        (Mlp, ""),
        (Convolution, ""),
    ],
)
@pytest.mark.parametrize("is_functional", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, of its own code
def test_what_the_runs_of_an_exported_program_change_is_found(tmp_path, module, says, is_functional):
    example = {Mlp: (2, 30), Convolution: (2, 3, 8, 8)}.get(module, (2, 1))
    program = save_program(module(), tmp_path / "model.pt2", (torch.zeros(example),))
    if is_functional:
        program = program.run_decompositions({})
    assert torch_sharing.changed_by_program(program_module(program)) == (
        f"its runs change {says!r}" if says else ""
    )


# -- other formats ------------------------------------------------------------------------------

OTHERS = [each for each in MAKERS if each.name in ("package", "onnx")]


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(
            each, id=each.name, marks=pytest.mark.skipif(bool(each.missing()), reason=each.missing())
        )
        for each in OTHERS
    ],
)
@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        (FP16, "the parameter autocast is fp16, which "),
        (LAST, "the parameter memory_format is channels_last, which "),
        (SHARED, "the parameter ENABLE_WEIGHT_SHARING is true, which "),
    ],
)
def test_a_file_that_torch_does_not_run_is_refused_before_it_is_read(tmp_path, maker, tuning, says):
    spec = replace(model_spec(), path=tmp_path / maker.filename, tuning=tuning)
    if maker.name == "package":
        maker.write(Mlp(), spec.path, (torch.zeros(2, 30),))  # its content says what it is
    message = refusal(maker.open, spec)
    assert says in message
    assert " can't have; remove it, or " in message


def test_a_python_model_is_refused_before_a_process_is_started(tmp_path):
    spec = replace(model_spec(), path=tmp_path / "model.py", tuning=FP16)
    message = refusal(python.open_model, spec, "cpu")
    assert message.endswith(
        "the parameter autocast is fp16, which a Python model can't have; remove it, or do it in its code"
    )


# -- what info says -----------------------------------------------------------------------------


class Properties:
    name = "NVIDIA H200"
    total_memory = 139 * 2**30 + 2**29
    major, minor = 9, 0


def test_a_device_is_described_by_name_memory_and_compute_capability():
    assert torchscript.described_device(Properties()) == "NVIDIA H200 (139.5 GiB, compute capability 9.0)"


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocators_settings_are_those_in_force(variable):
    program = (
        "from tensorferry.execution.backends.torchscript import describe; print(describe()['cuda_allocator'])"
    )
    settings = {"PATH": "", variable: "max_split_size_mb:64"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "max_split_size_mb:64"


# -- on a GPU -----------------------------------------------------------------------------------


@pytest.fixture
def emulated():
    with torch_gpu.opened_by(EmulatedGpu):
        yield


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(autocast="BF16", cuda_graphs="on"),
        Tuning(channels_last=True, cuda_graphs="on"),
        Tuning(autocast="BF16", channels_last=True, shares_weights=True, cuda_graphs="on"),
    ],
)
@pytest.mark.parametrize("maker", TORCH, ids=lambda maker: maker.name)
def test_a_tuned_model_can_be_captured_and_answers_as_it_does_on_the_cpu(tmp_path, maker, tuning, emulated):
    spec = model_spec([IMAGE], CONVOLUTION["outputs"], max_batch_size=4)
    path = tmp_path / maker.filename
    maker.write(Convolution().eval(), path, (torch.zeros(2, 3, 8, 8),))
    on_cpu = maker.open(replace(spec, path=path, tuning=replace(tuning, cuda_graphs="auto")))
    model = maker.open(replace(spec, path=path, tuning=tuning, devices=("cuda:0",)), "cuda:0")
    model.attach(1)
    warm_up(model)
    np.testing.assert_allclose(
        answers(model, images())[0], answers(on_cpu, images())[0], rtol=1e-3, atol=1e-4
    )
    assert model.status.graphs == (1, 2, 4)
    model.close()
