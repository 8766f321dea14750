"""The real GPU's code can't run without one; what can be told of it by looking is told here."""

import ast
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.execution.backends import torch_cuda, torch_gpu
from tensorferry.execution.backends.torch_cuda import CudaGpu
from tensorferry.execution.backends.torch_gpu import Gpu, fill_pinned
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
