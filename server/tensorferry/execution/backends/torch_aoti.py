"""Packages that AOTInductor compiled from an exported program: machine code, in a ``.pt2`` file.

Two things set them apart from every other format:

* The compiled code doesn't look at its inputs' shapes: given a smaller tensor it reads past its
  end. So what a package takes is found out at load: from what ``tensorferry convert`` wrote into
  it, or by running the package's own checks, which are off otherwise.
* torch holds the GIL for the whole of a run. A package whose batches take longer than what runs on
  the loop thread anyway is therefore given a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends.signature import (
    Signature,
    SignatureTensor,
    check_output_count,
    checked,
    from_signature,
    input_order,
)
from tensorferry.execution.backends.torch_tensors import (
    DTYPES,
    check_device,
    first_line,
    open_torch,
    refuse_foreign_datatypes,
)
from tensorferry.execution.backends.torch_tuning import place_of
from tensorferry.execution.backends.untuned import refuse_tuning
from tensorferry.execution.drift import INLINE_BELOW_S
from tensorferry.model import BatchInput, Model, ModelSpec, TensorSpec

__all__ = ["compile_package", "compiler", "load_package", "open_package", "open_placed"]

_SIGNATURE_KEY: Final = "tensorferry_signature"
_CHECKS: Final = "AOTI_RUNTIME_CHECK_INPUTS"
_HOW_TO_COMPILE: Final = "compile it again from a program exported with dynamic_shapes"
#: Names in a package's metadata -> flags in /proc/cpuinfo. Code for a core that this isn't is a SIGILL.
_CPU_FLAGS: Final = {
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_TILE": "amx_tile",
}
_INSTEAD: Final = "serve the exported program, or compile one of a module that does it itself"
_MEASURED_RUNS: Final = 10

#: Packages read the environment when they first run; one at a time is made to check its inputs.
_checking = threading.Lock()
# Set before any other thread reads it, so that a later change replaces a value and moves no table.
os.putenv(_CHECKS, "0")


def compiler() -> str | None:
    """Return the path of a C++ compiler that AOTInductor can use; None if there is none."""
    return shutil.which("g++") or shutil.which("clang++")


def compile_package(
    program: torch.export.ExportedProgram, signature: Signature, path: Path, threads: int = 1
) -> None:
    """Compile ``program`` for this machine's processor and write it, with its signature, as ``path``.

    Raises:
        Exception: whatever the compiler raises.
    """
    inductor: Any = torch._inductor
    options = {"aot_inductor.metadata": {_SIGNATURE_KEY: _dumped(signature)}, "compile_threads": threads}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def open_placed(spec: ModelSpec, device: str) -> Model:
    """Load a package where its runs stall nobody: in this process if they are short, else in its own.

    Raises:
        ModelLoadError: as ``open_package``.
    """
    model = open_package(spec, device)
    if device != "cpu" or spec.execution == "inline" or _longest_run_s(model) < INLINE_BELOW_S:
        return model
    model.close()
    from tensorferry.execution.backends.process_host import open_in_process

    return open_in_process(f"{__name__}:open_package", spec, device)


def open_package(spec: ModelSpec, device: str) -> Model:
    """Load a package into this process.

    Raises:
        ModelLoadError: it is for another processor or device, or isn't what the configuration says.
    """
    where = f"model {spec.name!r} version {spec.version}"
    refuse_tuning(spec, where, "a compiled package", _INSTEAD, has_graphs=True)
    check_device(where, device)
    place = place_of(device)
    runner, metadata = _loaded(spec.path, place, where)
    input_names, output_names = _flat_names(runner.get_call_spec())
    signature = _signature_in(metadata)
    if spec.from_signature:
        if signature is None:
            raise ModelLoadError(
                f"{where}: a compiled package doesn't say what its inputs are; write a config.pbtxt, or"
                " compile it with 'tensorferry convert --to aoti'"
            )
        spec = from_signature(spec, signature)
    if signature is not None:
        input_names = [each.name for each in signature.inputs]
        output_names = [each.name for each in signature.outputs]
    else:
        signature = Signature(
            tuple(SignatureTensor(name) for name in input_names),
            tuple(SignatureTensor(name) for name in output_names),
        )
    order = input_order(spec, input_names, where, "the package takes")
    check_output_count(spec, signature, where, "the package returns")
    refuse_foreign_datatypes(spec, where, "a compiled package")
    checked(spec, signature, order, where, _HOW_TO_COMPILE)
    if signature.inputs[0].shape is None:
        _run_own_checks(spec, place, order, where)
    return open_torch(_call_of(runner, output_names), spec, device, order)


def load_package(path: Path) -> tuple[Callable[..., object], Signature | None]:
    """Load a package on the CPU; return a function of its flat inputs, and its signature if it has one.

    Raises:
        ModelLoadError: it can't be loaded here.
    """
    runner, metadata = _loaded(path, "cpu", str(path))
    signature = _signature_in(metadata)
    names = [each.name for each in signature.outputs] if signature else []
    return _call_of(runner, names), signature


def _loaded(path: Path, device: str, where: str) -> tuple[Any, dict[str, str]]:
    internals: Any = torch._C._aoti
    loader = internals.AOTIModelPackageLoader
    try:
        metadata = dict(loader.load_metadata_from_package(str(path), "model"))
        _check_machine(metadata, device, where)
        placed = torch.device(device)
        # Without torch's locks for several threads, of which one alone runs a package on a GPU: they ask
        # the device whether the run before has ended, which can't be asked of a run that was captured.
        is_single = placed.type == "cuda"
        runner = loader(str(path), "model", is_single, 1, -1 if placed.index is None else placed.index)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{where}: {path} is not a package that this torch ({torch.__version__}) can load:"
            f" {first_line(error)}"
        ) from error
    return runner, metadata


def _call_of(runner: Any, output_names: Sequence[str]) -> Callable[..., object]:  # noqa: ANN401
    run = _first_run_apart(runner.run)
    if not output_names or any(name.startswith("OUTPUT__") for name in output_names):
        return lambda *inputs: run(list(inputs))
    return lambda *inputs: dict(zip(output_names, run(list(inputs)), strict=True))


def _first_run_apart(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make the first run wait for a probe that is under way: it reads the environment that the probe sets.

    A package that began so would go on checking, and its checks refuse one row.
    """
    has_run = False

    def guarded(tensors: list[torch.Tensor]) -> Any:  # noqa: ANN401 - what the package returns
        nonlocal has_run
        if has_run:
            return run(tensors)
        with _checking:
            answer = run(tensors)
        has_run = True
        return answer

    return guarded


def _check_machine(metadata: dict[str, str], device: str, where: str) -> None:
    made_for = metadata.get("AOTI_DEVICE_KEY", "cpu")
    if made_for != torch.device(device).type:
        raise ModelLoadError(
            f"{where}: the package was compiled for {made_for}, and instance_group puts it on {device};"
            " compile it for that, or change the instance_group"
        )
    machine = metadata.get("AOTI_MACHINE", "")
    flags = _cpu_flags()
    lacking = [
        name
        for name in metadata.get("AOTI_CPU_ISA", "").split()
        if flags and name in _CPU_FLAGS and _CPU_FLAGS[name] not in flags
    ]
    if (machine and machine != platform.machine()) or lacking:
        lacks = f"{machine} {' '.join(lacking)}".strip()
        raise ModelLoadError(
            f"{where}: the package was compiled for a processor with {lacks}, which this one lacks; compile"
            " it on a machine like this one"
        )


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _flat_names(call_spec: list[str]) -> tuple[list[str], list[str]]:
    """Return names for the flat inputs and outputs, as far as the package says: keywords, keys, numbers."""
    from torch.utils._pytree import treespec_loads

    takes: Any = treespec_loads(call_spec[0])
    gives: Any = treespec_loads(call_spec[1])
    positional, keywords = takes.children()
    names = [f"INPUT__{index}" for index in range(takes.num_leaves)]
    if all(child.is_leaf() for child in keywords.children()):
        names[positional.num_leaves :] = [str(key) for key in keywords.context]
    if gives.type is dict and all(child.is_leaf() for child in gives.children()):
        return names, [str(key) for key in gives.context]
    return names, [f"OUTPUT__{index}" for index in range(gives.num_leaves)]


def _dumped(signature: Signature) -> str:
    tensors = [
        [[each.name, each.datatype, each.shape] for each in side]
        for side in (signature.inputs, signature.outputs)
    ]
    return json.dumps([*tensors, signature.max_rows])


def _signature_in(metadata: dict[str, str]) -> Signature | None:
    try:
        inputs, outputs, max_rows = json.loads(metadata[_SIGNATURE_KEY])
        sides = [
            tuple(SignatureTensor(name, datatype, tuple(shape)) for name, datatype, shape in side)
            for side in (inputs, outputs)
        ]
        return Signature(sides[0], sides[1], int(max_rows))
    except (KeyError, ValueError, TypeError):
        return None


def _run_own_checks(spec: ModelSpec, device: str, order: Sequence[int], where: str) -> None:
    """Run a copy of the package that checks its inputs, at the smallest and largest that may come.

    Two rows are the least: the checks that torch writes refuse one row, which the code itself takes.

    Raises:
        ModelLoadError: the package doesn't take what the configuration allows.
    """
    rows = sorted({min(2, spec.max_batch_size), spec.max_batch_size}) if spec.has_batch_dimension else [0]
    with _checking:
        os.putenv(_CHECKS, "1")
        try:
            runner, _ = _loaded(spec.path, device, where)
            for count, free in itertools.product(rows, (2, 3)):
                tensors = [_zeros(spec.model_inputs[index], count, free, device) for index in order]
                runner.run(tensors)
        except RuntimeError as error:
            raise ModelLoadError(
                f"{where}: the package doesn't take what the configuration says, in the order of its"
                f" arguments: {first_line(error)}; correct dims, data_type or max_batch_size, or"
                f" {_HOW_TO_COMPILE}"
            ) from error
        finally:
            os.putenv(_CHECKS, "0")


def _zeros(tensor: TensorSpec, rows: int, free: int, device: str) -> torch.Tensor:
    assert tensor.dims is not None, "a configured input has dims"
    assert tensor.datatype is not None, "a configured input has a datatype"
    dims = [free if dim == -1 else dim for dim in tensor.dims]
    return torch.zeros([rows, *dims] if rows else dims, dtype=DTYPES[tensor.datatype.name], device=device)


def _longest_run_s(model: Model) -> float:
    """Return the best of a few runs of the largest batch; infinity where its size isn't known."""
    spec = model.spec
    if not all(each.is_fixed for each in spec.model_inputs):
        return float("inf")
    batch = [_zero_input(each, spec) for each in spec.model_inputs]
    best = float("inf")
    for _ in range(_MEASURED_RUNS):
        started = time.perf_counter()
        try:
            model.run(batch)
        except Exception:
            return 0.0  # warm-up says what is wrong
        best = min(best, time.perf_counter() - started)
    return best


def _zero_input(tensor: TensorSpec, spec: ModelSpec) -> BatchInput:
    assert tensor.dims is not None, "it is fixed"
    assert tensor.datatype is not None, "it is fixed"
    shape = (spec.max_batch_size, *tensor.dims) if spec.has_batch_dimension else tensor.dims
    size = tensor.datatype.itemsize
    for dim in shape:
        size *= dim
    return BatchInput(tensor.name, tensor.datatype.name, shape, [bytes(size)])
