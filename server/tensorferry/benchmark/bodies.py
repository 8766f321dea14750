"""Requests for any model: made-up values, zeros, or what a file holds, in the shapes that the model takes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensorferry.errors import ConfigurationError
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["Contents", "request_bodies"]

_NUMPY: Final = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    "BF16": "<f4",
}  # fmt: skip
#: How many different requests are made up; they are sent in turn.
_DIFFERENT: Final = 16

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """What requests hold.

    ``rows`` fills an open first dimension; ``shapes`` gives a whole shape, without the rows, for
    inputs whose other dimensions are open. ``data`` is "random", "zeros" or a ``.npz`` file with an
    array for each input. ``version`` "" lets the server choose. ``timeout_us`` is how long a request may
    wait in the queue, ``priority`` 1 goes first; None leaves them out.
    """

    rows: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data: str = "random"
    version: str = ""
    timeout_us: int | None = None
    priority: int | None = None


def request_bodies(metadata: pb.ModelMetadataResponse, contents: Contents) -> list[bytes]:
    """Return serialised ModelInferRequests, different ones, to be sent in turn.

    Raises:
        ConfigurationError: a dimension is open, a datatype can't be made up, or the file doesn't fit;
            says which input and what to give.
    """
    _check_names(metadata, contents)
    if contents.data in ("random", "zeros"):
        count = 1 if contents.data == "zeros" else _DIFFERENT
        draw = np.random.default_rng(0)
        made = [{each.name: _made(each, contents, draw) for each in metadata.inputs} for _ in range(count)]
    else:
        made = _from_file(metadata, contents)
    return [_message(metadata, inputs, contents) for inputs in made]


def _check_names(metadata: pb.ModelMetadataResponse, contents: Contents) -> None:
    known = [each.name for each in metadata.inputs]
    for name in contents.shapes:
        if name not in known:
            raise ConfigurationError(
                f"--shape {name}: {metadata.name!r} has no such input; it has {', '.join(known)}"
            )


def _shape(tensor: pb.ModelMetadataResponse.TensorMetadata, contents: Contents) -> list[int]:
    """Return the shape of an input, with the rows where the model's first dimension is open."""
    batches = bool(tensor.shape) and tensor.shape[0] < 0
    given = contents.shapes.get(tensor.name)
    rest = list(tensor.shape[1:] if batches else tensor.shape)
    if given is not None:
        fits = len(given) == len(rest) and all(
            size in (-1, mine) for size, mine in zip(rest, given, strict=True)
        )
        if not fits:
            raise ConfigurationError(
                f"--shape {tensor.name}:{_dims(given)}: the model takes {_dims(rest)} (-1 is open)"
                + (", without the rows, which --rows gives" if batches else "")
            )
        rest = list(given)
    if any(size < 0 for size in rest):
        example = _dims([8 if size < 0 else size for size in rest])
        raise ConfigurationError(
            f"input {tensor.name!r} takes {_dims(rest)}, where -1 is open: "
            f"say how large with --shape, such as --shape {tensor.name}:{example}"
        )
    return [contents.rows, *rest] if batches else rest


def _dims(sizes: Any) -> str:  # noqa: ANN401 - any sequence of int, a repeated field too
    return ",".join(map(str, sizes)) or "()"


def _made(
    tensor: pb.ModelMetadataResponse.TensorMetadata, contents: Contents, draw: np.random.Generator
) -> Array:
    """Return normal numbers, or integers and booleans of 0 and 1; or zeros."""
    if tensor.datatype not in _NUMPY:
        raise ConfigurationError(
            f"input {tensor.name!r} takes {tensor.datatype}, for which no values can be made up: "
            f"give them with --data FILE.npz, which holds an array named {tensor.name!r}"
        )
    dtype, shape = np.dtype(_NUMPY[tensor.datatype]), _shape(tensor, contents)
    if contents.data == "zeros":
        return np.zeros(shape, dtype)
    values = draw.standard_normal(shape) if dtype.kind == "f" else draw.integers(0, 2, shape)
    return values.astype(dtype)


def _from_file(metadata: pb.ModelMetadataResponse, contents: Contents) -> list[dict[str, Array]]:
    """Return a request for every ``rows`` rows of the file's arrays; the rest of a division is left out."""
    arrays = _read(Path(contents.data))
    found: list[dict[str, Array]] = []
    for each in metadata.inputs:
        if each.name not in arrays:
            raise ConfigurationError(
                f"--data {contents.data} has no array {each.name!r}; it has {', '.join(arrays) or 'none'}"
            )
        pieces = _pieces(each, arrays[each.name], contents)
        if found and len(pieces) != len(found):
            raise ConfigurationError(
                f"--data {contents.data}: {each.name!r} makes {len(pieces)} requests, and the inputs before "
                f"it {len(found)}: give every array as many rows"
            )
        found = found or [{} for _ in pieces]
        for request, piece in zip(found, pieces, strict=True):
            request[each.name] = piece
    return found


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"--data {path} can't be read ({error}): give random, zeros, or a file that numpy.savez wrote"
        ) from None


def _pieces(
    tensor: pb.ModelMetadataResponse.TensorMetadata, values: Array, contents: Contents
) -> list[Array]:
    batches = bool(tensor.shape) and tensor.shape[0] < 0
    fits = values.ndim == len(tensor.shape) and all(
        size in (-1, mine) for size, mine in zip(tensor.shape, values.shape, strict=True)
    )
    if not fits:
        raise ConfigurationError(
            f"--data: {tensor.name!r} has the shape {_dims(values.shape)}; "
            f"the model takes {_dims(tensor.shape)} (-1 is open)"
        )
    if tensor.datatype in _NUMPY:
        dtype = np.dtype(_NUMPY[tensor.datatype])
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise ConfigurationError(
                f"--data: {tensor.name!r} is {values.dtype}; the model takes {tensor.datatype}"
            )
        values = values.astype(dtype)
    if not batches:
        return [values]
    count = len(values) // contents.rows
    if not count:
        raise ConfigurationError(
            f"--data: {tensor.name!r} has {len(values)} rows, fewer than --rows {contents.rows}"
        )
    return [values[place * contents.rows : (place + 1) * contents.rows] for place in range(count)]


def _message(metadata: pb.ModelMetadataResponse, inputs: Mapping[str, Array], contents: Contents) -> bytes:
    request = pb.ModelInferRequest(model_name=metadata.name, model_version=contents.version)
    for each in metadata.inputs:
        values = inputs[each.name]
        request.inputs.add(name=each.name, datatype=each.datatype, shape=values.shape)
        request.raw_input_contents.append(_raw(each.datatype, values))
    if contents.timeout_us is not None:
        request.parameters["timeout"].int64_param = contents.timeout_us
    if contents.priority is not None:
        request.parameters["priority"].uint64_param = contents.priority
    return request.SerializeToString()


def _raw(datatype: str, values: Array) -> bytes:
    """Return elements as the wire has them: BF16 is the upper half of FP32, BYTES a length and the bytes."""
    if datatype == "BF16":
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if datatype == "BYTES":
        items = [each if isinstance(each, bytes) else str(each).encode() for each in values.ravel().tolist()]
        return b"".join(struct.pack("<I", len(each)) + each for each in items)
    return values.tobytes()
