"""Writes a loaded model in another format, and says which formats it can take and how well it agrees."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tensorferry.converting.agreement import Agreement, Tolerance, compare
from tensorferry.converting.samples import Sample, Shape, samples_of
from tensorferry.converting.source import ConversionError, Source, load_source
from tensorferry.execution.backends.torch_aoti import compile_package, compiler
from tensorferry.execution.backends.torch_export import program_module, program_signature

__all__ = ["NAMES", "SUFFIXES", "Verdict", "verdict_on", "write"]

#: The formats that can be written -> the suffix of a file.
SUFFIXES: Final = {"torchscript": ".pt", "pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
NAMES: Final = tuple(SUFFIXES)

_OWN_NAMES: Final = {"torchscript": "torchscript", "program": "pt2", "package": "aoti", "onnx": "onnx"}
#: A batch of more than one row, so that no size is taken for a constant 1.
_EXAMPLE_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model can take a format: ``reason`` says why not, and then there is no ``agreement``."""

    name: str
    reason: str = ""
    agreement: Agreement | None = None

    @property
    def is_good(self) -> bool:
        """Whether the model can take the format and gives the same answers in it."""
        return not self.reason and (self.agreement is None or not self.agreement.fault)


def verdict_on(
    source: Source,
    name: str,
    shapes: Sequence[Shape],
    arrays: dict[str, torch.Tensor] | None = None,
    tolerance: Tolerance | None = None,
    out: Path | None = None,
) -> Verdict:
    """Convert ``source`` to the format ``name`` and compare; the file is kept as ``out``, if one is given."""
    if name == _OWN_NAMES[source.kind] and out is None:
        return Verdict(name, "", Agreement(0.0, 0.0))
    with tempfile.TemporaryDirectory(prefix="tensorferry-convert-") as directory:
        path = out or Path(directory) / f"model{SUFFIXES[name]}"
        samples = samples_of(shapes, arrays, source.signature.max_rows)
        try:
            write(source, name, shapes, path)
            converted = load_source(path)
        except ConversionError as error:
            return Verdict(name, str(error))
        return Verdict(name, "", compare(source.call, _in_order_of(source, converted), samples, tolerance))


def write(source: Source, name: str, shapes: Sequence[Shape], path: Path) -> None:
    """Write ``source`` in the format ``name`` as ``path``. Says nothing of whether it agrees.

    Raises:
        ConversionError: it can't be; the message says why.
    """
    missing = _missing(source, name)
    if missing:
        raise ConversionError(missing)
    writers: dict[str, Callable[[Source, Sequence[Shape], Path], None]] = {
        "torchscript": _write_torchscript,
        "pt2": _write_program,
        "aoti": _write_package,
        "onnx": _write_onnx,
    }
    try:
        with _quietly():
            writers[name](source, shapes, path)
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(_reason(error)) from error


def _missing(source: Source, name: str) -> str:
    if source.native is None and name != _OWN_NAMES[source.kind]:
        what = "a compiled package" if source.kind == "package" else "an ONNX model"
        return f"{what} can't be converted; convert the model that it was made from"
    if name == "aoti" and not compiler():
        return "there is no C++ compiler; install g++"
    if name == "onnx":
        lacking = [
            each for each in ("onnxruntime", "onnx", "onnxscript") if not importlib.util.find_spec(each)
        ]
        if lacking:
            return f"{', '.join(lacking)} not installed; pip install 'tensorferry[convert]'"
    return ""


def _program(source: Source, shapes: Sequence[Shape]) -> torch.export.ExportedProgram:
    """Return the source as an exported program whose batch dimension is as ``shapes`` say."""
    if source.kind == "program":
        program: torch.export.ExportedProgram = source.native
        return program
    from torch._export.converter import TS2EPConverter

    example = _example(shapes)
    program = TS2EPConverter(source.native, example).convert()
    if not any(each.is_batched for each in shapes):
        return program
    rows = {0: torch.export.Dim("batch")}
    dynamic = tuple(rows if each.is_batched else None for each in shapes)
    try:
        return torch.export.export(program.module(), example, dynamic_shapes=dynamic)
    except Exception:
        return program  # the converter leaves every size open, but its bounds are vaguer


def _example(shapes: Sequence[Shape]) -> tuple[torch.Tensor, ...]:
    at = [sample for sample in samples_of(shapes) if sample.label.startswith("random")]
    chosen: Sample = at[min(2, len(at) - 1)]
    return tuple(
        tensor[:_EXAMPLE_ROWS].clone() if shape.is_batched else tensor
        for tensor, shape in zip(chosen.tensors, shapes, strict=True)
    )


def _write_program(source: Source, shapes: Sequence[Shape], path: Path) -> None:
    torch.export.save(_program(source, shapes), path)


def _write_package(source: Source, shapes: Sequence[Shape], path: Path) -> None:
    program = _program(source, shapes)
    compile_package(program, program_signature(program), path)


def _write_onnx(source: Source, shapes: Sequence[Shape], path: Path) -> None:
    program = _program(source, shapes)
    signature = program_signature(program)
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=[each.name for each in signature.inputs],
        output_names=[each.name for each in signature.outputs],
    )


def _write_torchscript(source: Source, shapes: Sequence[Shape], path: Path) -> None:
    module: Any = source.native
    if source.kind == "program":
        trace: Callable[..., Any] = torch.jit.trace
        module = trace(program_module(source.native), _example(shapes), strict=False)
    module.save(str(path))


def _in_order_of(source: Source, converted: Source) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """Call ``converted`` with tensors in the order of ``source``: by name where the names are the same."""
    names = [each.name for each in source.signature.inputs]
    own = [each.name for each in converted.signature.inputs]
    if set(names) != set(own):
        return converted.call
    order = [names.index(name) for name in own]
    return lambda tensors: converted.call([tensors[index] for index in order])


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what torch says on the way: its warnings are about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
