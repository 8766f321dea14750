"""Requests of unlike lengths in one batch: filling up inputs, cutting back outputs, choosing company.

A padded tensor of a batch is ``[rows, outer..., length, inner...]``: one variable dimension
somewhere between fixed ones. Seen as bytes it is a table of ``rows * outer`` lines, each ``length``
runs of ``inner`` elements: padding lengthens the lines and cutting back shortens them, whatever the
datatype and wherever the dimension stands.

Pure functions of specifications, requests and tensors; nothing here keeps state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod

import numpy as np

from tensorferry.batching.pending import Pending
from tensorferry.errors import ConfigurationError
from tensorferry.model import LENGTH, BatchInput, Key, ModelSpec, PaddingSpec, TensorSpec
from tensorferry.tensors import DATATYPES, Buffer, Tensor, rows_of

__all__ = [
    "check_padding",
    "cut_axes",
    "cut_outputs",
    "fill_order",
    "lengths_input",
    "line_elements",
    "longest_bucket",
    "pad_bytes",
    "padded_input",
]


def fill_order(key: Key, keys: Iterable[Key]) -> list[Key]:
    """Return which of ``keys`` may fill up a batch of ``key``, in the order that wastes least.

    Those of the same model that differ in the bucket alone and have a smaller one, the nearest
    bucket first: each row of such a request is padded by the difference. Not those below half,
    whose rows would be mostly padding and cost more than a run of their own; and not the larger
    ones, which would lengthen every row of the batch. Empty where nothing is padded.
    """
    if not key or key[0][0] != LENGTH:
        return []
    rest, (bucket,) = key[1:], key[0][1]
    smaller = [
        other
        for other in keys
        if other and other[0][0] == LENGTH and other[1:] == rest and bucket / 2 <= other[0][1][0] < bucket
    ]
    return sorted(smaller, key=_bucket, reverse=True)


def _bucket(key: Key) -> int:
    return key[0][1][0]


def longest_bucket(padding: PaddingSpec, requests: Sequence[Pending]) -> int:
    """Return what a batch is padded to: the longest of its requests, rounded up to its bucket; 0 if empty."""
    longest = max([request.bound.length for request in requests], default=0)
    return padding.bucket_of(longest) or 0


@lru_cache(maxsize=64)
def pad_bytes(datatype: str, value: float) -> bytes:
    """Return one element of padding.

    Raises:
        ConfigurationError: the datatype can't hold ``value``.
    """
    kind = DATATYPES[datatype]
    try:
        if datatype == "BF16":
            # The upper half of a float32, rounded to the nearest.
            (bits,) = struct.unpack("<I", struct.pack("<f", value))
            return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF)
        if kind.numpy is None:
            raise ValueError
        if kind.numpy.kind == "f":
            with np.errstate(over="raise"):
                return np.array(value).astype(kind.numpy).tobytes()
        number = int(value)
        if number != value or (kind.numpy.kind == "b" and number not in (0, 1)):
            raise ValueError
        return np.array(number, dtype=kind.numpy).tobytes()
    except (ValueError, OverflowError, FloatingPointError, struct.error):
        raise ConfigurationError(
            f"the pad value {value:g} is none that a {datatype} input can have; choose one that it can"
        ) from None


def check_padding(spec: ModelSpec) -> None:
    """Make sure that every padded input can hold the pad value.

    Raises:
        ConfigurationError: one can't; names the model and the input.
    """
    if spec.padding is None:
        return
    for each in spec.inputs:
        if each.name in spec.padding.inputs and each.datatype is not None:
            try:
                pad_bytes(each.datatype.name, spec.padding.pad_value)
            except ConfigurationError as error:
                raise ConfigurationError(f"model {spec.name!r}: input {each.name!r}: {error}") from None


def line_elements(spec: ModelSpec) -> int:
    """Return how many elements one row of one unit of length has, over all padded inputs."""
    if spec.padding is None:
        return 0
    padded = spec.padding.inputs
    # A product of dims with one -1 among them is minus that of the others.
    return -sum([prod(each.dims) for each in spec.inputs if each.name in padded and each.dims])


def padded_input(
    tensor: TensorSpec, parts: Sequence[Buffer], requests: Sequence[Pending], length: int, pad_value: float
) -> tuple[tuple[int, ...], list[Buffer]]:
    """Fill up one input of several requests to ``length``.

    ``parts`` holds each request's data of that input. Returns the row shape and the batch's parts.
    A request whose length it is already is passed on as it is. Neither is one copied that has a
    single line (one row, and the variable dimension first): its padding is a part of its own.
    """
    assert tensor.datatype is not None, "a padded input has a datatype"
    assert tensor.dims is not None, "a padded input has dims"
    row_shape = tuple([length if dim == -1 else dim for dim in tensor.dims])
    shortest = min([request.bound.length for request in requests])
    if shortest == length:
        return row_shape, list(parts)
    outer, inner_bytes = _table(tensor)
    element = pad_bytes(tensor.datatype.name, pad_value)
    fill = memoryview(element * ((length - shortest) * inner_bytes // len(element)))
    padded: list[Buffer] = []
    for request, part in zip(requests, parts, strict=True):
        missing = (length - request.bound.length) * inner_bytes
        lines = request.bound.rows * outer
        if lines == 1 or not missing:
            padded.append(part)
            if missing:
                padded.append(fill[:missing])
        else:
            padded.append(_filled_up(part, lines, length * inner_bytes, fill[:missing]))
    return row_shape, padded


def _filled_up(part: Buffer, lines: int, line_bytes: int, fill: memoryview) -> memoryview:
    """Copy a request's lines into longer ones that end with ``fill``."""
    table = np.empty((lines, line_bytes), dtype=np.uint8)
    own_bytes = line_bytes - len(fill)
    table[:, :own_bytes] = np.frombuffer(part, dtype=np.uint8).reshape(lines, own_bytes)
    table[:, own_bytes:] = np.frombuffer(fill, dtype=np.uint8)
    return table.reshape(-1).data


def lengths_input(spec: ModelSpec, requests: Sequence[Pending]) -> BatchInput | None:
    """Return the input with each row's true length, [rows, 1]; None if the model takes none."""
    lengths = spec.padding.lengths if spec.padding is not None else None
    if lengths is None or lengths.datatype is None:
        return None
    each = np.array([request.bound.length for request in requests], dtype=lengths.datatype.numpy)
    if not spec.has_batch_dimension:
        return BatchInput(lengths.name, lengths.datatype.name, (1,), [each.tobytes()])
    by_row = np.repeat(each, [request.bound.rows for request in requests])
    return BatchInput(lengths.name, lengths.datatype.name, (len(by_row), 1), [by_row.tobytes()])


def cut_axes(spec: ModelSpec) -> dict[str, int]:
    """Return the outputs that are cut back, and which dimension of a batch's tensor is their length."""
    names = spec.padding.outputs if spec.padding is not None else ()
    return {
        each.name: each.dims.index(-1) + spec.has_batch_dimension
        for each in spec.outputs
        if each.name in names and each.dims is not None
    }


def cut_outputs(
    outputs: Sequence[Tensor], axes: dict[str, int], request: Pending, first_row: int, batch_rows: int
) -> list[Tensor]:
    """Return a request's own rows of a batch's ``outputs``, those of ``axes`` at its own length.

    ``batch_rows`` is 0 for a model without a batch dimension. Each output is contiguous, and copied
    only if it is cut and has several lines.
    """
    answer = []
    for output in outputs:
        own = rows_of(output, first_row, request.bound.rows) if batch_rows else output
        axis = axes.get(own.name)
        answer.append(own if axis is None else _cut(own, axis, request.bound.length))
    return answer


def _cut(tensor: Tensor, axis: int, length: int) -> Tensor:
    """Shorten one dimension of a tensor to ``length``."""
    shape = (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
    lines = prod(tensor.shape[:axis])
    line_bytes = len(tensor.data) // max(1, lines)
    own_bytes = line_bytes // tensor.shape[axis] * length
    if lines == 1:
        return Tensor(tensor.name, tensor.datatype, shape, tensor.data[:own_bytes])
    table = np.frombuffer(tensor.data, dtype=np.uint8).reshape(lines, line_bytes)
    return Tensor(
        tensor.name, tensor.datatype, shape, np.ascontiguousarray(table[:, :own_bytes]).reshape(-1).data
    )


def _table(tensor: TensorSpec) -> tuple[int, int]:
    """Return the lines of one row of a padded tensor, and the bytes of one unit of length."""
    assert tensor.dims is not None, "a padded tensor has dims"
    assert tensor.datatype is not None, "a padded tensor has a datatype"
    axis = tensor.dims.index(-1)
    return prod(tensor.dims[:axis]), prod(tensor.dims[axis + 1 :]) * tensor.datatype.itemsize
