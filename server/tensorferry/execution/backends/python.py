"""Python models: ``<version>/model.py`` with a class ``Model``, run in a process of its own.

::

    class Model:
        def load(self, directory: Path, device: str) -> None: ...                # optional
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...
        def close(self) -> None: ...                                             # optional

``run`` gets a whole batch: the first dimension of each array counts rows, unless the model has no
batch dimension. The arrays lie in shared memory and may be written to; they are valid until ``run``
returns. docs/python_models.md is this for people.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.process_host import ProcessModel, open_in_process
from tensorferry.execution.backends.untuned import refuse_tuning
from tensorferry.model import BatchInput, ModelSpec, RunResult, TensorSpec
from tensorferry.tensors import DATATYPES, Tensor, tensor_of

__all__ = ["PythonModel", "load_here", "open_model"]

_TARGET: Final = f"{__name__}:load_here"
_NUMPY_NAMES: Final = {each.numpy: each.name for each in DATATYPES.values() if each.numpy is not None}
_Array = np.ndarray[Any, np.dtype[Any]]


def open_model(spec: ModelSpec, device: str) -> ProcessModel:
    """Load ``spec.path`` in a process of its own.

    Raises:
        ModelLoadError: there is no configuration or one with a datatype that numpy hasn't, or the
            file can't be imported, holds no model, or its ``load`` raises.
    """
    _check_configuration(spec)
    refuse_tuning(spec, _where(spec), "a Python model", "do it in its code")
    return open_in_process(_TARGET, spec, device)


def load_here(spec: ModelSpec, device: str) -> PythonModel:
    """Load ``spec.path`` into this process: what the model's own process does.

    Raises:
        ModelLoadError: as ``open_model``.
    """
    where = _where(spec)
    _refuse_triton(spec.path, where)
    module = _imported(spec.path, where)
    kind = _class_in(module, where)
    try:
        model = kind()
        if callable(load := getattr(model, "load", None)):
            load(spec.path.parent, device)
    except Exception as error:
        traceback.print_exc()
        raise ModelLoadError(f"{where}: {_said(error, spec.path)}") from error
    return PythonModel(model, spec)


class PythonModel:
    """An object with ``run``, as the protocol ``Model``."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:  # noqa: ANN401 - the user's own class
        self.spec = spec
        self._model = model
        self._dtypes = {each.name: each.numpy for each in DATATYPES.values()}

    def attach(self, intra_op_threads: int) -> None:
        """Nothing: the libraries' threads are counted in the environment, before they load."""

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch; see the protocol."""
        start = time.perf_counter_ns()
        arrays = {item.name: self._array(item) for item in inputs}
        rows = inputs[0].shape[0] if self.spec.has_batch_dimension else None
        formed = time.perf_counter_ns()
        returned = self._model.run(arrays)
        ran = time.perf_counter_ns()
        outputs = self._outputs(returned, rows)
        return RunResult(outputs, formed - start, ran - formed, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Call the model's own ``close``, if it has one."""
        if callable(close := getattr(self._model, "close", None)):
            close()

    def _array(self, item: BatchInput) -> _Array:
        data = item.parts[0] if len(item.parts) == 1 else bytearray().join(item.parts)
        if isinstance(data, bytes) or (isinstance(data, memoryview) and data.readonly):
            data = bytearray(data)  # the model may write to it
        dtype = self._dtypes[item.datatype]
        if not data:
            return np.empty(item.shape, dtype)
        return np.frombuffer(data, dtype).reshape(item.shape)

    def _outputs(self, returned: object, rows: int | None) -> list[Tensor]:
        spec = self.spec
        names = [each.name for each in spec.outputs]
        if not isinstance(returned, dict):
            raise ModelFailed(
                f"{_where(spec)}: run returned a {type(returned).__name__}, and must return a dict of"
                f" arrays by output name, {names}"
            )
        if returned.keys() != set(names):
            came = sorted(map(str, returned))
            raise ModelFailed(
                f"{_where(spec)}: run returned the outputs {came}, and its configuration names {names}"
            )
        return [self._output(each, returned[each.name], rows) for each in spec.outputs]

    def _output(self, expected: TensorSpec, value: object, rows: int | None) -> Tensor:
        what = f"{_where(self.spec)}: output {expected.name!r}"
        assert expected.datatype is not None, "the configuration states it"
        assert expected.dims is not None, "the configuration states them"
        if not isinstance(value, np.ndarray):
            raise ModelFailed(f"{what} is a {type(value).__name__}, and must be a numpy array")
        if value.dtype != expected.datatype.numpy:
            came = _NUMPY_NAMES.get(value.dtype, "none of the protocol's datatypes")
            raise ModelFailed(
                f"{what} is {value.dtype} ({came}), and its configuration says {expected.datatype.name};"
                f" convert it with .astype(numpy.{expected.datatype.numpy})"
            )
        wanted = expected.dims if rows is None else (rows, *expected.dims)
        if len(value.shape) != len(wanted) or any(
            dim not in (-1, size) for dim, size in zip(wanted, value.shape, strict=True)
        ):
            after = "" if rows is None else f" for a batch of {rows} rows"
            raise ModelFailed(f"{what} has shape {list(value.shape)}, expected {list(wanted)}{after}")
        return tensor_of(expected.name, value)


def _where(spec: ModelSpec) -> str:
    return f"model {spec.name!r} version {spec.version}"


def _check_configuration(spec: ModelSpec) -> None:
    if spec.from_signature:
        raise ModelLoadError(
            f"{_where(spec)}: a Python model doesn't say what it takes and returns; write a config.pbtxt"
            " that names its inputs and outputs with data_type and dims"
        )
    for each in (*spec.model_inputs, *spec.outputs):
        if each.datatype is None or each.datatype.numpy is None:
            name = "no datatype" if each.datatype is None else each.datatype.name
            raise ModelLoadError(
                f"{_where(spec)}: {each.name!r} is {name}, which a Python model can't have: numpy has no such"
                " type of fixed size; use FP32 or another numeric type"
            )


def _refuse_triton(path: Path, where: str) -> None:
    """Say what to change in a model that was written for Triton's Python backend.

    By its text: importing it would fail for want of Triton's own module.
    """
    try:
        classes = {
            each.name for each in ast.walk(ast.parse(path.read_bytes())) if isinstance(each, ast.ClassDef)
        }
    except SyntaxError as error:
        raise ModelLoadError(f"{where}: {path.name}:{error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{where}: {path} can't be read: {error}") from error
    if "TritonPythonModel" in classes and "Model" not in classes:
        raise ModelLoadError(
            f"{where}: {path.name} is written for Triton's Python backend. To port it, name the class Model;"
            " turn initialize(args) into load(directory, device) and finalize() into close();"
            " turn execute(requests) into run(inputs), which gets one batch as a dict of arrays by input"
            " name and returns a dict of arrays by output name"
        )


def _imported(path: Path, where: str) -> ModuleType:
    """Import the model's file as a module of its own name; its neighbours can be imported too."""
    sys.path.insert(0, str(path.parent))
    sys.dont_write_bytecode = True  # the repository is read, not written to
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ModelLoadError(f"{where}: {path.name} isn't a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        traceback.print_exc()
        raise ModelLoadError(f"{where}: can't be imported: {_said(error, path)}") from error
    return module


def _class_in(module: ModuleType, where: str) -> type[Any]:
    own = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and each.__module__ == module.__name__
        and callable(getattr(each, "run", None))
    ]
    named = [each for each in own if each.__name__ == "Model"]
    if len(named or own) != 1:
        found = ", ".join(each.__name__ for each in own) or "none"
        raise ModelLoadError(
            f"{where}: {module.__name__}.py must hold a class Model with a method run(self, inputs);"
            f" classes with such a method: {found}"
        )
    kind: type[Any] = (named or own)[0]
    return kind


def _said(error: Exception, path: Path) -> str:
    """The exception's type, the last line of its message, and where in the model's files it arose."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(path.parent)
    ]
    return f"{said} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else said
