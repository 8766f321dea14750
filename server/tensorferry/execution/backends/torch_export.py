"""Files of ``torch.export`` (``model.pt2``): an exported program, or a package that AOTInductor compiled.

An exported program is run as its graph, operation by operation from Python, which lets other threads
have the GIL within each operation. ``torch_export_mode: aoti`` has it compiled first, which takes
5 to 30 s at every load and is therefore not what ``auto`` does; ``tensorferry convert --to aoti``
compiles once. docs/decisions/0013-formats.md has what was measured.

Inputs and outputs meet the configuration's names as TorchScript's do (see ``torchscript``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends import torch_aoti
from tensorferry.execution.backends.signature import (
    Signature,
    SignatureTensor,
    check_output_count,
    checked,
    from_signature,
    input_order,
)
from tensorferry.execution.backends.torch_difference import check_tuning
from tensorferry.execution.backends.torch_sharing import Prepared, changed_by_program, prepared_once
from tensorferry.execution.backends.torch_tensors import (
    DTYPE_NAMES,
    check_device,
    first_line,
    open_torch,
    refuse_foreign_datatypes,
)
from tensorferry.execution.backends.torch_tuning import place_of, tuned
from tensorferry.model import Model, ModelSpec

__all__ = [
    "HOW_TO_EXPORT",
    "UnservableError",
    "load_program",
    "open_model",
    "program_call",
    "program_module",
    "program_signature",
]

#: Ends the errors about a batch dimension that is fixed.
HOW_TO_EXPORT: Final = (
    "export it with torch.export.export(module, args, dynamic_shapes=({0: torch.export.Dim('batch')},)),"
    " one entry for each argument, and at least 2 rows in args"
)

_COMPILE_TIMEOUT_S: Final = 600.0


class UnservableError(Exception):
    """An exported program that can't be served; the message says why, without the model's name."""


def open_model(spec: ModelSpec, device: str) -> Model:
    """Load ``spec.path`` onto ``device``.

    Raises:
        ModelLoadError: the file is neither of the two, is damaged, isn't what the configuration says, or
            its tuning spoils its answers.
    """
    where = f"model {spec.name!r} version {spec.version}"
    check_device(where, device)
    content = _content(spec.path, where)
    if content == "package":
        return torch_aoti.open_placed(spec, device)
    if spec.torch_export_mode == "aoti":
        return _open_compiled(spec, device, where)
    found = prepared_once(spec, device, _prepared)
    call = tuned(found.call, found.spec, place_of(device))
    return open_torch(call, found.spec, device, found.order, found.owned)


def load_program(path: Path, device: str = "cpu") -> torch.export.ExportedProgram:
    """Load an exported program, and move it to ``device`` if it isn't there.

    Raises:
        Exception: whatever torch raises for a file that it can't load.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    wanted = torch.device(device)
    if any(tensor.device != wanted for tensor in _tensors_of(program)) or wanted.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program


def program_signature(program: torch.export.ExportedProgram) -> Signature:
    """Return the names, datatypes and shapes of a program's flat inputs and outputs.

    A name is the argument's; an output's is its key in a dict that the program returns, and
    ``OUTPUT__<n>`` elsewhere.

    Raises:
        UnservableError: an input isn't a tensor, or there is no input or no output.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = tuple(_input_of(nodes, name) for name in program.graph_signature.user_inputs)
    names = _output_names(program)
    outputs = tuple(
        _tensor_of(name, nodes[str(node)].meta.get("val")) or SignatureTensor(name)
        if str(node) in nodes
        else SignatureTensor(name)
        for name, node in zip(names, program.graph_signature.user_outputs, strict=True)
    )
    if not inputs or not outputs:
        raise UnservableError("the program takes no inputs, or returns none; a model that is served has both")
    return Signature(inputs, outputs, _max_rows(program, nodes))


def program_call(
    program: torch.export.ExportedProgram,
) -> tuple[Callable[..., object], list[torch.Tensor]]:
    """Return a function of the program's flat inputs, and the memory that is the program's own.

    torch's own wrapper takes nested arguments apart and checks them at every call: 72 us for the
    fraud MLP, of which 44 go to that. The requests have been checked here, so it is left out.
    """
    return _module_call(program, program_module(program)), _tensors_of(program)


def program_module(program: torch.export.ExportedProgram) -> Any:  # noqa: ANN401 - made by torch.fx
    """Return the program as a module of its flat inputs, which returns its flat outputs."""
    module: Any = program.module(check_guards=False)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    module._forward_pre_hooks.clear()  # the check of the arguments
    module._forward_pre_hooks_with_kwargs.clear()
    return module


def _prepared(spec: ModelSpec, device: str) -> Prepared:
    """Load and check the program, which runs as its graph."""
    where = f"model {spec.name!r} version {spec.version}"
    place = place_of(device)
    try:
        program = load_program(spec.path, place)
        signature = program_signature(program)
    except UnservableError as error:
        raise ModelLoadError(f"{where}: {error}") from error
    except Exception as error:
        raise ModelLoadError(
            f"{where}: {spec.path} is not a program that this torch ({torch.__version__}) can load:"
            f" {first_line(error)}"
        ) from error
    if spec.from_signature:
        spec = from_signature(spec, signature)
    order = input_order(spec, [each.name for each in signature.inputs], where, "the program takes")
    check_output_count(spec, signature, where, "the program returns")
    refuse_foreign_datatypes(spec, where, "a torch.export program")
    spec = checked(spec, signature, order, where, HOW_TO_EXPORT)
    module = program_module(program)
    call = _module_call(program, module)
    changed = changed_by_program(module) if spec.tuning.shares_weights else ""
    check_tuning(module, call, spec, order, place)
    # Laying the weights out has given the module's tensors other memory than the program's.
    owned = [*module.parameters(), *module.buffers(), *_tensors_in(program.constants)]
    return Prepared(call, spec, order, owned, changed)


def _module_call(program: torch.export.ExportedProgram, module: Any) -> Callable[..., object]:  # noqa: ANN401
    forward: Callable[..., Any] = module.forward
    keys = _keys(program)
    if keys is None:
        return forward
    return lambda *inputs: dict(zip(keys, forward(*inputs), strict=True))


def _content(path: Path, where: str) -> str:
    """Say what is in the file: "package" or "program"; every byte of it has been checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ModelLoadError(
            f"{where}: {path} is not a file of torch.export: {error}; write it with torch.export.save or"
            " torch._inductor.aoti_compile_and_package"
        ) from error
    except Exception as error:
        raise ModelLoadError(f"{where}: {path} is damaged: {first_line(error)}; copy it again") from error
    if damaged is not None:
        raise ModelLoadError(f"{where}: {path} is damaged: {damaged} isn't what was written; copy it again")
    if any("/data/aotinductor/" in name for name in names):
        return "package"
    if any("/models/" in name or name.endswith("serialized_exported_program.json") for name in names):
        return "program"
    hint = (
        "; it is TorchScript, so call it model.pt"
        if any("/code/" in name for name in names)
        else "; write it with torch.export.save or torch._inductor.aoti_compile_and_package"
    )
    raise ModelLoadError(f"{where}: {path} holds neither a program nor a compiled package{hint}")


def _open_compiled(spec: ModelSpec, device: str, where: str) -> Model:
    """Compile and open the program; the package is kept while the model is: its process may load it again."""
    directory = tempfile.mkdtemp(prefix="tensorferry-aoti-")
    try:
        package = Path(directory) / "model.pt2"
        _compile(spec.path, package, where)
        model = torch_aoti.open_placed(replace(spec, path=package), device)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, directory, ignore_errors=True)
    return model


def _compile(path: Path, package: Path, where: str) -> None:
    """Compile in a process of its own: it is seconds of Python, which would keep the GIL from the others."""
    if not torch_aoti.compiler():
        raise ModelLoadError(
            f"{where}: torch_export_mode is aoti, and there is no C++ compiler; install g++, compile it"
            " elsewhere with 'tensorferry convert --to aoti', or set torch_export_mode to graph"
        )
    command = [sys.executable, "-m", "tensorferry.execution.backends.torch_export", str(path), str(package)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"{where}: compiling took longer than {_COMPILE_TIMEOUT_S:g} s") from error
    if done.returncode or not package.exists():
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ModelLoadError(
            f"{where}: AOTInductor can't compile {path}: {reason}; set torch_export_mode to graph"
        )


def _input_of(nodes: dict[str, Any], name: object) -> SignatureTensor:
    tensor = _tensor_of(str(name), nodes[str(name)].meta.get("val")) if str(name) in nodes else None
    if tensor is None:
        raise UnservableError(
            f"the program's argument {str(name)!r} isn't a tensor, and only tensors can be sent; fix it in"
            " the module before the export"
        )
    return tensor


def _tensor_of(name: str, value: object) -> SignatureTensor | None:
    if not isinstance(value, torch.Tensor):
        return None
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return SignatureTensor(name, DTYPE_NAMES.get(value.dtype, ""), shape)


def _keys(program: torch.export.ExportedProgram) -> list[str] | None:
    """The keys of the dict that the program returns; None if it returns none, or a nested one."""
    out: Any = program.call_spec.out_spec
    if out is None or out.type is not dict or not all(child.is_leaf() for child in out.children()):
        return None
    return [str(key) for key in out.context]


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    count = len(program.graph_signature.user_outputs)
    return _keys(program) or [f"OUTPUT__{index}" for index in range(count)]


def _max_rows(program: torch.export.ExportedProgram, nodes: dict[str, Any]) -> int:
    """The upper bound of the inputs' first dimension; 0 if there is none."""
    bounds = []
    for name in program.graph_signature.user_inputs:
        value = nodes[str(name)].meta.get("val")
        size = value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else 0
        symbol: Any = getattr(getattr(size, "node", None), "expr", None)  # an int has none
        constraint: Any = program.range_constraints.get(symbol)
        if constraint is not None and constraint.upper.is_finite and constraint.upper < 2**31:
            bounds.append(int(constraint.upper))
    return min(bounds, default=0)


def _tensors_of(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    return _tensors_in(program.state_dict) + _tensors_in(program.constants)


def _tensors_in(named: Mapping[str, object]) -> list[torch.Tensor]:
    return [each for each in named.values() if isinstance(each, torch.Tensor)]


if __name__ == "__main__":
    _program = load_program(Path(sys.argv[1]))
    torch_aoti.compile_package(_program, program_signature(_program), Path(sys.argv[2]))
