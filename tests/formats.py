"""The formats that the backends' tests run over. A backend joins the suite by an entry in ``MAKERS``."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorferry.execution.backends import torch_aoti
from tensorferry.execution.backends.torch_export import program_signature
from tensorferry.testing.models import save, save_onnx, save_package, save_program

#: ``write(module, path, inputs)``: the module, and one tensor of 2 rows for each of its arguments.
Write = Callable[[nn.Module, Path, tuple[torch.Tensor, ...]], object]


@dataclass(frozen=True)
class Maker:
    """How the tests get a model of one format.

    ``missing`` says what this machine lacks for it; "" if nothing. ``describes`` says whether the
    file tells its inputs' names, datatypes and shapes; ``names_inputs`` whether it tells the names.
    """

    name: str
    platform: str
    filename: str
    write: Write
    missing: Callable[[], str] = lambda: ""
    describes: bool = True
    names_inputs: bool = True

    def open(self, spec, device="cpu"):
        """Open a model of this format with ``spec``, whose path is the file."""
        from tensorferry.execution.backends import BACKENDS

        return importlib.import_module(BACKENDS[self.platform]).open_model(spec, device)


def _needs(*packages: str) -> Callable[[], str]:
    def missing() -> str:
        lacking = [each for each in packages if importlib.util.find_spec(each) is None]
        return f"{', '.join(lacking)} not installed" if lacking else ""

    return missing


def _needs_compiler() -> str:
    return "" if torch_aoti.compiler() else "no C++ compiler"


_compiled: dict[tuple[type, bool], Path] = {}
_directory: list[Path] = []


def _cached(module: nn.Module, path: Path, inputs: tuple[torch.Tensor, ...], is_described: bool) -> None:
    """Compile each class of module once for all tests: it takes 5 s and more."""
    key = (type(module), is_described)
    if key not in _compiled:
        import atexit
        import tempfile

        directory = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        package = directory / "model.pt2"
        if is_described:
            program = save_program(module, directory / "program.pt2", inputs)
            torch_aoti.compile_package(program, program_signature(program), package)
        else:
            save_package(module, package, inputs)
        _compiled[key] = package
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_compiled[key], path)


MAKERS = (
    Maker(
        "torchscript",
        "pytorch_libtorch",
        "model.pt",
        lambda module, path, inputs: save(module, path),
        describes=False,
    ),
    Maker("program", "torch_aoti", "model.pt2", save_program),
    Maker(
        "package",
        "torch_aoti",
        "model.pt2",
        lambda module, path, inputs: _cached(module, path, inputs, True),
        _needs_compiler,
    ),
    Maker(
        "plain_package",
        "torch_aoti",
        "model.pt2",
        lambda module, path, inputs: _cached(module, path, inputs, False),
        _needs_compiler,
        describes=False,
        names_inputs=False,
    ),
    Maker("onnx", "onnxruntime_onnx", "model.onnx", save_onnx, _needs("onnxruntime", "onnx", "onnxscript")),
)


def over_formats(wanted: Callable[[Maker], bool] = lambda maker: True):
    """Parametrize a test over the formats, passing over those that this machine can't make."""
    return pytest.mark.parametrize(
        "maker",
        [
            pytest.param(
                maker, id=maker.name, marks=pytest.mark.skipif(bool(maker.missing()), reason=maker.missing())
            )
            for maker in MAKERS
            if wanted(maker)
        ],
    )
