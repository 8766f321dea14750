"""The real GPU's code: what looking at it tells, and what it does to a ``torch.cuda`` in miniature."""

import ast
import inspect
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.execution.pretend_cuda import UUID, PretendCuda
from tests.unit.support import model_spec, tensor_spec

from tensorferry.device import Tuning
from tensorferry.errors import DeviceLost
from tensorferry.execution.backends import torch_cuda, torch_gpu
from tensorferry.execution.backends.torch_cuda import CudaGpu
from tensorferry.execution.backends.torch_device import DeviceModel
from tensorferry.execution.backends.torch_gpu import Gpu, fill_pinned
from tensorferry.execution.warmup import warm_up
from tensorferry.model import BatchInput
from tensorferry.tensors import array_of
from tensorferry.testing.emulated_gpu import EmulatedGpu

METHODS = [
    name for name, value in vars(Gpu).items() if inspect.isfunction(value) and not name.startswith("_")
]
TREE = ast.parse(inspect.getsource(torch_cuda))


def is_torch_cuda(node) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_cuda"


def of_torch_cuda() -> set[str]:
    return {node.attr for node in ast.walk(TREE) if is_torch_cuda(node)}


def calls_of_torch_cuda() -> list[tuple[str, ast.Call]]:
    return [
        (each.func.attr, each)
        for each in ast.walk(TREE)
        if isinstance(each, ast.Call) and is_torch_cuda(each.func)
    ]


@pytest.mark.parametrize("implementation", [CudaGpu, EmulatedGpu])
@pytest.mark.parametrize("method", METHODS)
def test_both_gpus_take_what_the_protocol_says(implementation, method):
    expected = list(inspect.signature(getattr(Gpu, method)).parameters)
    assert list(inspect.signature(getattr(implementation, method)).parameters) == expected


def test_all_that_the_real_one_asks_of_torch_is_there():
    assert len(of_torch_cuda()) > 10
    assert [name for name in of_torch_cuda() if not hasattr(torch.cuda, name)] == []


@pytest.mark.parametrize(
    ("name", "call"), calls_of_torch_cuda(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_call_of_torch_fits_its_signature(name, call):
    function = getattr(torch.cuda, name)
    if name in ("Stream", "Event", "CUDAGraph"):
        function = function.__new__
        first = [None]
    else:
        first = []
    if function is torch.cuda.CUDAGraph.__new__ or not inspect.isroutine(function):
        return
    inspect.signature(function).bind(*first, *call.args, **{each.arg: each.value for each in call.keywords})


def test_a_capture_is_begun_with_arguments_that_torch_has():
    parameters = inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters
    assert {"pool", "capture_error_mode"} <= set(parameters)


def test_without_a_device_asking_for_one_is_an_error_of_torch():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises((RuntimeError, AssertionError)):
        torch_gpu.gpu_of("cuda:0")


@given(st.lists(st.binary(max_size=9000), max_size=12))
def test_parts_fill_memory_one_after_another(parts):
    whole = b"".join(parts)
    target = torch.zeros(len(whole), dtype=torch.uint8)
    fill_pinned(target, [memoryview(part) for part in parts])
    assert target.numpy().tobytes() == whole


def test_parts_that_are_not_the_memory_s_bytes_are_a_fault():
    with pytest.raises((AssertionError, ValueError)):
        fill_pinned(torch.zeros(5, dtype=torch.uint8), [b"123"])


@pytest.fixture
def cuda(monkeypatch):
    pretend = PretendCuda()
    monkeypatch.setattr(torch_cuda, "_cuda", pretend.module)
    monkeypatch.setattr(torch_cuda, "_new_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(torch_cuda, "_taken", set())
    with torch_gpu.opened_by(lambda name: CudaGpu("cpu")), pretend:
        yield pretend


def opened(call, dims=(2,), datatype="FP32", owned=(), max_batch_size=4, **tuning) -> DeviceModel:
    inputs, outputs = [tensor_spec("x", datatype, dims)], [tensor_spec("y", datatype, dims)]
    spec = replace(model_spec(inputs, outputs, max_batch_size=max_batch_size), tuning=Tuning(**tuning))
    return DeviceModel(call, spec, "cuda:0", [0], owned)


def rows_of(*values) -> list[BatchInput]:
    return [BatchInput("x", "FP32", (len(values), 2), [struct.pack("<2f", value, 0) for value in values])]


def first_column(result) -> list[float]:
    return array_of(result.outputs[0])[:, 0].tolist()


def double(x):
    return x * 2


def test_a_model_s_whole_life_on_it(cuda):
    model = opened(double)
    warm_up(model)
    assert (model.status.graphs, model.status.no_graphs) == ((1, 2, 4), "")
    assert model.status.gpu_uuid == f"GPU-{UUID}"
    launches = [model.launch(rows_of(*range(count))) for count in (1, 4, 2)]
    results = [launch.wait() for launch in launches]
    assert [first_column(each) for each in results] == [[0], [0, 2, 4, 6], [0, 2]]
    assert all(each.device.is_graph for each in results)
    padded = model.launch(rows_of(5, 6, 7)).wait()
    assert first_column(padded) == [10, 12, 14]
    model.close()
    assert cuda.given_back


@pytest.mark.parametrize(("graphs", "runs"), [("auto", [("run 0", "replay")]), ("off", [])])
def test_each_step_of_a_batch_is_on_its_own_stream_and_waits_for_the_one_before(cuda, graphs, runs):
    model = opened(double, cuda_graphs=graphs)
    warm_up(model)
    cuda.story.clear()
    model.launch(rows_of(1, 2)).wait()
    copy_in = [("copy 0", "record"), ("copy 0", "copy_"), ("copy 0", "record")]
    run = [("run 0", "wait"), ("run 0", "record"), *runs, ("run 0", "record")]
    copy_out = [("copy 1", "wait"), ("copy 1", "record"), ("copy 1", "copy_"), ("copy 1", "record")]
    assert cuda.story == [*copy_in, *run, *copy_out, ("host", "synchronize")]


def test_what_loading_has_enqueued_is_waited_for_before_a_model_runs(cuda):
    opened(double)
    assert cuda.story[0] == ("default", "synchronize")
    assert cuda.devices == [torch.device("cpu")]


def test_models_run_on_streams_of_their_own_and_give_them_back(cuda):
    models = [opened(double, staging_slots=1) for _ in range(33)]
    for model in models[-2:]:
        warm_up(model)
    assert models[31].status.graphs == (1, 2, 4)
    assert "more than 32" in models[32].status.no_graphs
    del models, model
    again = opened(double, staging_slots=1)
    warm_up(again)
    assert again.status.no_graphs == ""


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.0"])
def test_a_capture_that_fails_is_over_and_the_next_can_begin(cuda, monkeypatch, version):
    ended = []
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *args: ended.append(args))

    def waits(x):
        if cuda.capturing is not None and x.shape[0] != 1:
            cuda.fails_to_end = RuntimeError("capture was invalidated")
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore words")
        return x * 2

    model = opened(waits)
    warm_up(model)
    assert model.status.no_graphs == (
        "the model can't be captured: CUDA error: operation not permitted when stream is capturing"
    )
    assert ended == ([(0, (0, 1))] if version.startswith("2.11") else [])
    assert cuda.capturing is None
    assert first_column(model.launch(rows_of(3)).wait()) == [6]
    cuda.fails_to_end = None
    other = opened(double)
    warm_up(other)
    assert other.status.graphs == (1, 2, 4)


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript\n"
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "run_func_(container_handle_) API call failed at model_container_runner.cpp, line 144",
]


@pytest.mark.parametrize("full", FULL)
def test_however_torch_says_that_memory_ran_out_the_batch_is_run_in_pieces(cuda, full):
    def hungry(x):
        if x.shape[0] > 1:
            if isinstance(full, str):  # all that is left of it: the allocator has counted it
                cuda.times_full += 1
                raise RuntimeError(full)
            raise full
        return x * 2

    model = opened(hungry, cuda_graphs="off")
    result = model.launch(rows_of(1, 2, 3, 4)).wait()
    assert first_column(result) == [2, 4, 6, 8]
    assert (result.device.row_limit, result.device.out_of_memory) == (1, True)


def test_an_error_of_the_model_s_own_stays_one_though_memory_ran_out_before(cuda):
    cuda.times_full = 7

    def wrong(x):
        raise RuntimeError("API call failed")

    model = opened(wrong, cuda_graphs="off")
    with pytest.raises(RuntimeError, match="API call failed") as caught:
        model.launch(rows_of(1, 2))
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert first_column(opened(double).launch(rows_of(1)).wait()) == [2]


def test_a_device_that_fails_the_probe_too_is_lost(cuda, monkeypatch):
    def fails(x):
        def ones(*_args, **_more):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch, "ones", ones)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model = opened(fails, cuda_graphs="off")
    with pytest.raises(DeviceLost, match="illegal memory access"):
        model.launch(rows_of(1))


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize(
    ("datatype", "dims", "max_batch_size", "data"),
    [
        ("BOOL", (3,), 4, b"\1\0\1"),
        ("FP32", (0,), 4, b""),
        ("FP16", (), 0, b"\0\x3c"),
        ("INT64", (2, 0), 0, b""),
        ("UINT8", (1,), 0, b"\7"),
    ],
)
def test_tensors_of_any_size_go_there_and_back(cuda, graphs, datatype, dims, max_batch_size, data):
    model = opened(lambda x: x, dims, datatype, max_batch_size=max_batch_size, cuda_graphs=graphs)
    warm_up(model)
    shape = (1, *dims) if max_batch_size else dims
    result = model.launch([BatchInput("x", datatype, shape, [data])]).wait()
    assert (result.outputs[0].shape, bytes(result.outputs[0].data)) == (shape, data)
    assert model.status.no_graphs == ""


def test_an_output_that_is_the_model_s_own_memory_is_copied_before_the_next_run_changes_it(cuda):
    count = torch.zeros(1, 2)

    def counted(x):
        count.add_(1)
        return count.expand(x.shape[0], 2) if x.shape[0] > 1 else count

    model = opened(counted, owned=[count], cuda_graphs="off")
    for outputs in (model._forward(torch.zeros(1, 2)), model._forward(torch.zeros(3, 2))):
        assert outputs[0].untyped_storage().data_ptr() != count.untyped_storage().data_ptr()
        assert outputs[0].is_contiguous()


def test_why_a_torchscript_model_can_not_be_captured_is_told_without_where_it_was(cuda):
    def waits(x):
        if cuda.capturing is not None:
            raise RuntimeError(
                "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript\n"
                '  File "code/m.py", line 7, in forward\nRuntimeError: CUDA error: operation not permitted\n'
                "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
            )
        return x * 2

    model = opened(waits)
    warm_up(model)
    assert model.status.no_graphs.endswith("captured: RuntimeError: CUDA error: operation not permitted")
