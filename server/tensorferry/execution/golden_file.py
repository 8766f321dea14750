"""The golden file of a version: inputs with the outputs that the version must give for them.

``golden.npz`` holds arrays named ``inputs/<name>`` and ``outputs/<name>``, and may hold the scalars
``rtol`` and ``atol``. ``golden.json`` has the same in an object::

    {"inputs": {"features": [[0.1, 2.0]]}, "outputs": {"score": [[0.9]]}, "rtol": 1e-4}

A JSON tensor is nested lists, or ``{"datatype": ..., "shape": ..., "data": ...}``.

Rules for this file: it reads, and knows nothing of running. Nothing in the file is executed:
pickled objects are refused.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tensorferry.errors import ModelLoadError
from tensorferry.model import ModelSpec
from tensorferry.tensors import DATATYPES, DataType, Tensor, tensor_of

__all__ = ["Array", "Golden", "read_golden"]

Array = npt.NDArray[np.generic]

#: A golden file is a handful of rows; one much larger was put there by mistake.
_MAX_BYTES: Final = 64 * 2**20
#: JSON is read with the GIL held: nobody is answered for the 5 ms that this much takes.
_MAX_JSON_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Golden:
    """What a golden file says.

    ``inputs`` are tensors of the model's datatypes, in the file's order. ``outputs`` maps names to
    the expected values, of whatever numpy type the file has them in. ``rtol`` and ``atol`` are None
    where the file leaves them to the defaults.
    """

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, Array]
    rtol: float | None = None
    atol: float | None = None


def read_golden(path: Path, spec: ModelSpec) -> Golden:
    """Read a golden file for a model of ``spec``.

    Raises:
        ModelLoadError: it can't be read, has nothing to compare, or names a tensor or holds a
            value that the model doesn't have. Says how to mend it.
    """
    where = f"model {spec.name!r} version {spec.version}: {path}"
    try:
        is_npz = path.suffix == ".npz"
        _check_size(path.stat().st_size, is_npz)
        parsed = _read_npz(path) if is_npz else _read_json(path, spec)
        return _checked(path, spec, *parsed)
    except _Wrong as error:
        raise ModelLoadError(f"{where}: {error}") from error
    except OSError as error:
        raise ModelLoadError(f"{where}: can't be read: {error.strerror or error}") from error


class _Wrong(Exception):
    """What is wrong in the file; the file's name is still missing."""


def _check_size(size: int, is_npz: bool) -> None:
    most = _MAX_BYTES if is_npz else _MAX_JSON_BYTES
    if size > most:
        instead = "" if is_npz else ", or make it a golden.npz"
        raise _Wrong(f"is larger than {most // 1024} KiB; keep a few rows{instead}")


#: Inputs with the datatype that each is to have ("" for the model's own), outputs, rtol, atol.
_Parsed = tuple[dict[str, tuple[str, Array]], dict[str, Array], dict[str, float]]


def _read_npz(path: Path) -> _Parsed:
    inputs: dict[str, tuple[str, Array]] = {}
    outputs: dict[str, Array] = {}
    tolerances: dict[str, float] = {}
    for key, array in _arrays_of(path).items():
        kind, slash, name = key.partition("/")
        if slash and kind == "inputs":
            inputs[name] = ("", array)
        elif slash and kind == "outputs":
            outputs[name] = array
        elif key in ("rtol", "atol"):
            if array.size != 1:
                raise _Wrong(f"{key!r} has {array.size} elements, and must be one number")
            tolerances[key] = _tolerance(key, array.reshape(-1)[0].item())
        else:
            raise _Wrong(
                f"the array {key!r} has no meaning; name it inputs/<name> or outputs/<name>, or remove it"
            )
    return inputs, outputs, tolerances


def _arrays_of(path: Path) -> dict[str, Array]:
    """Read an archive as numpy.savez writes it: a zip file of arrays, ``<name>.npy``."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum([each.file_size for each in archive.infolist()]) > _MAX_BYTES:
                raise _Wrong(f"unpacks to more than {_MAX_BYTES // 2**20} MiB; keep a few rows")
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        raise _Wrong(
            f"is no archive of numbers as numpy.savez writes it ({_line(error)}); write it again"
        ) from error
    return arrays


def _read_json(path: Path, spec: ModelSpec) -> _Parsed:
    try:
        parsed = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"is not JSON: {_line(error)}; correct it there") from error
    if not isinstance(parsed, dict):
        raise _Wrong('is no object; it must be {"inputs": {...}, "outputs": {...}}')
    unknown = parsed.keys() - {"inputs", "outputs", "rtol", "atol"}
    if unknown:
        raise _Wrong(f"has {min(unknown)!r}; known are inputs, outputs, rtol and atol: correct or remove it")
    tensors: dict[str, dict[str, tuple[str, Array]]] = {}
    for kind, declared in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        named = parsed.get(kind, {})
        if not isinstance(named, dict):
            raise _Wrong(f"{kind!r} must be an object of tensors by name")
        own = {each.name: each.datatype for each in declared}
        tensors[kind] = {
            name: _json_tensor(f"{kind}/{name}", value, own.get(name)) for name, value in named.items()
        }
    tolerances = {key: _tolerance(key, parsed[key]) for key in ("rtol", "atol") if key in parsed}
    return tensors["inputs"], {name: array for name, (_, array) in tensors["outputs"].items()}, tolerances


def _json_tensor(what: str, value: object, own: DataType | None) -> tuple[str, Array]:
    """Return the datatype that a tensor states ("" if it states none) and its values."""
    stated, shape = "", None
    if isinstance(value, dict):
        unknown = value.keys() - {"datatype", "shape", "data"}
        if unknown or "data" not in value:
            raise _Wrong(f"{what!r} must be nested lists, or an object of datatype, shape and data")
        stated, shape, value = value.get("datatype", ""), value.get("shape"), value["data"]
        if not isinstance(stated, str) or (stated and stated not in DATATYPES):
            raise _Wrong(f"{what!r} has the datatype {stated!r}; known are {', '.join(DATATYPES)}")
    datatype = DATATYPES[stated] if stated else own
    try:
        array = _array(value, datatype)
        if shape is not None:
            array = array.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise _Wrong(f"{what!r} is no tensor: {_line(error)}; give every row the same length") from error
    return stated, array


def _array(value: object, datatype: DataType | None) -> Array:
    """Make an array of JSON's values. Integers keep all of their 64 bits."""
    array = np.array(value)
    if array.size == 0 and datatype is not None and datatype.numpy is not None:
        return array.astype(datatype.numpy)
    if array.dtype.kind == "O" and datatype is not None and datatype.name == "UINT64":
        return np.array(value, dtype=np.uint64)
    if array.dtype.kind not in "biuf":
        raise ValueError("its elements must be numbers or true and false")
    return array


def _tolerance(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _Wrong(f"{key!r} is {value!r}, and must be a number of at least 0")
    return float(value)


def _checked(
    path: Path,
    spec: ModelSpec,
    inputs: dict[str, tuple[str, Array]],
    outputs: dict[str, Array],
    tolerances: dict[str, float],
) -> Golden:
    if not outputs:
        raise _Wrong("has no outputs, so that there is nothing to compare; add outputs/<name>")
    known = [each.name for each in spec.outputs]
    for name, expected in outputs.items():
        if name not in known:
            raise _Wrong(f"unknown output {name!r}; the model gives {known}")
        if expected.dtype.kind not in "biuf":
            raise _Wrong(f"output {name!r} is {expected.dtype}; a golden file holds numbers only")
    own = {each.name: each.datatype for each in spec.inputs}
    tensors = []
    for name, (stated, array) in inputs.items():
        if name not in own:
            raise _Wrong(f"unknown input {name!r}; the model takes {list(own)}")
        datatype = DATATYPES[stated] if stated else own[name]
        tensors.append(_input(name, array, datatype, is_typed=path.suffix == ".npz"))
    return Golden(path, tuple(tensors), outputs, **tolerances)


def _input(name: str, array: Array, datatype: DataType | None, is_typed: bool) -> Tensor:
    """Bring an input to the model's datatype: floats are rounded to it, integers must fit."""
    if datatype is None:
        if not is_typed:
            raise _Wrong(
                f"input {name!r}: the model has no configuration that says its datatype; give it as"
                ' {"datatype": ..., "shape": ..., "data": ...}'
            )
        if array.dtype not in [each.numpy for each in DATATYPES.values()]:
            raise _Wrong(
                f"input {name!r} is {array.dtype}, which the protocol doesn't have; save it as another"
            )
        return tensor_of(name, array)
    if datatype.name == "BYTES" or array.dtype.kind not in "biuf":
        raise _Wrong(f"input {name!r} is {array.dtype} for {datatype.name}; a golden file holds numbers only")
    if datatype.numpy is None:
        return Tensor(name, datatype.name, array.shape, _bf16(array))
    with np.errstate(all="ignore"):
        cast = array.astype(datatype.numpy)
    if datatype.numpy.kind != "f" and not (array.dtype.kind != "f" and np.array_equal(cast, array)):
        raise _Wrong(
            f"input {name!r} is {array.dtype} and has values that {datatype.name} can't hold; correct it"
        )
    return tensor_of(name, cast)


def _bf16(array: Array) -> bytes:
    """Round to the nearest BF16, ties to even: the upper half of a float32; a NaN stays one."""
    single = np.ascontiguousarray(array, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16).tobytes()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
