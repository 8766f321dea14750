"""A model file of any format, loaded so that it can be called and converted."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from tensorferry.errors import ConfigurationError, ModelLoadError
from tensorferry.execution.backends.signature import Signature, SignatureTensor
from tensorferry.execution.backends.torch_aoti import load_package
from tensorferry.execution.backends.torch_export import (
    UnservableError,
    load_program,
    program_call,
    program_signature,
)

__all__ = ["ConversionError", "Kind", "Source", "load_source"]

#: "program" is a file of torch.export.save, "package" one that AOTInductor compiled.
Kind = Literal["torchscript", "program", "package", "onnx"]

_SUFFIXES: Final = (".pt", ".pt2", ".onnx")

_load: Final[Callable[..., Any]] = torch.jit.load


class ConversionError(ConfigurationError):
    """A file that can't be read or converted, or a sample that the model doesn't take."""


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded file. ``call`` takes tensors in the signature's order and returns the outputs in a list.

    ``native`` is what torch loaded: a ScriptModule, an ExportedProgram, or None.
    """

    path: Path
    kind: Kind
    signature: Signature
    call: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
    native: Any


def load_source(path: Path) -> Source:
    """Load a file by its suffix: ``.pt``, ``.pt2`` or ``.onnx``.

    Raises:
        ConversionError: it can't be loaded.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file; give a model's file ({', '.join(_SUFFIXES)})")
    loaders = {".pt": _torchscript, ".pt2": _exported, ".onnx": _onnx}
    loader = loaders.get(path.suffix)
    if loader is None:
        raise ConversionError(
            f"{path}: the suffix says the format, and {path.suffix!r} isn't one of {', '.join(_SUFFIXES)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loader(path)
    except ConversionError:
        raise
    except (ModelLoadError, UnservableError) as error:
        raise ConversionError(f"{path}: {error}".replace(f"{path}: {path}: ", f"{path}: ")) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path}: can't be loaded as its suffix says: {reason}") from error


def _torchscript(path: Path) -> Source:
    module = _load(str(path), map_location="cpu").eval()
    schema = module.forward.schema
    inputs = tuple(SignatureTensor(each.name) for each in schema.arguments[1:])
    return Source(path, "torchscript", Signature(inputs, ()), _flat(module), module)


def _exported(path: Path) -> Source:
    with zipfile.ZipFile(path) as archive:
        is_package = any("/data/aotinductor/" in name for name in archive.namelist())
    if is_package:
        call, signature = load_package(path)
        if signature is None:
            raise ConversionError(
                f"{path}: a compiled package doesn't say what it takes; convert the program that it was"
                " made from"
            )
        return Source(path, "package", signature, _flat(call), None)
    program = load_program(path)
    return Source(path, "program", program_signature(program), _flat(program_call(program)[0]), program)


def _onnx(path: Path) -> Source:
    try:
        from tensorferry.execution.backends import onnxruntime as backend
    except ImportError as error:
        raise ConversionError(
            f"{path}: onnxruntime isn't installed; install it with: pip install 'tensorferry[onnx]'"
        ) from error
    session = backend.open_session(str(path), 1, "cpu", str(path))
    signature = backend.session_signature(session, str(path))
    names = [each.name for each in signature.inputs]

    def call(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, arrays)]

    return Source(path, "onnx", signature, call, None)


def _flat(function: Callable[..., Any]) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    def call(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode():
            returned = function(*[tensor.clone() for tensor in tensors])
        if isinstance(returned, torch.Tensor):
            return [returned]
        return list(returned.values() if isinstance(returned, dict) else returned)

    return call
