"""Datatypes and tensors as they travel: raw bytes with a name, a datatype and a shape.

Rules for this file: it knows the protocol's datatypes and nothing of models, torch or gRPC.
Tensor data is little-endian and row-major, as the protocol says, and is viewed, not copied.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from tensorferry.errors import InvalidRequest

__all__ = ["DATATYPES", "Buffer", "DataType", "Tensor", "array_of", "byte_size", "rows_of", "tensor_of"]

# The wire format is little-endian, and the hot path views bytes in place.
assert sys.byteorder == "little", "Tensorferry runs on little-endian machines only"

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class DataType:
    """A datatype of the Open Inference Protocol.

    ``itemsize`` is in bytes; 0 for BYTES, whose elements vary. ``numpy`` is None where numpy
    has no such type (BF16).
    """

    name: str
    itemsize: int
    numpy: np.dtype[np.generic] | None


def _numpy(name: str, kind: type[np.generic]) -> DataType:
    dtype: np.dtype[np.generic] = np.dtype(kind)
    return DataType(name, dtype.itemsize, dtype)


#: Every datatype of the protocol, by name. Which of them a model takes is its backend's business.
DATATYPES: Final[dict[str, DataType]] = {
    datatype.name: datatype
    for datatype in (
        _numpy("BOOL", np.bool_),
        _numpy("UINT8", np.uint8),
        _numpy("UINT16", np.uint16),
        _numpy("UINT32", np.uint32),
        _numpy("UINT64", np.uint64),
        _numpy("INT8", np.int8),
        _numpy("INT16", np.int16),
        _numpy("INT32", np.int32),
        _numpy("INT64", np.int64),
        _numpy("FP16", np.float16),
        DataType("BF16", 2, None),
        _numpy("FP32", np.float32),
        _numpy("FP64", np.float64),
        DataType("BYTES", 0, None),
    )
}

_BY_NUMPY: Final = {datatype.numpy: datatype for datatype in DATATYPES.values() if datatype.numpy is not None}


@dataclass(slots=True)
class Tensor:
    """A named tensor. ``data`` holds ``shape`` elements of ``datatype`` (the protocol's name), raw.

    Whoever holds the tensor may read ``data`` for as long as it holds it; nobody writes to it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


def byte_size(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes that ``shape`` takes. Python's integers don't wrap: 2**40 x 30 stays what it is."""
    return prod(shape) * itemsize


def rows_of(tensor: Tensor, first_row: int, rows: int) -> Tensor:
    """View ``rows`` rows of a tensor, from ``first_row`` on."""
    row_bytes = len(tensor.data) // tensor.shape[0]
    data = tensor.data[first_row * row_bytes : (first_row + rows) * row_bytes]
    return Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), data)


def tensor_of(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """View a numpy array as a tensor; copies only if it isn't contiguous or not in native byte order.

    Raises:
        InvalidRequest: the array's dtype is none of the protocol's.
    """
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    datatype = _BY_NUMPY.get(native.dtype)
    if datatype is None:
        raise InvalidRequest(f"tensor {name!r}: the protocol has no datatype for numpy's {array.dtype}")
    return Tensor(name, datatype.name, array.shape, native.reshape(-1).view(np.uint8).data)


def array_of(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """View a tensor as a read-only numpy array. BF16, which numpy lacks, is widened to float32 (exact).

    Raises:
        InvalidRequest: the datatype is BYTES or unknown.
    """
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None or not datatype.itemsize:
        raise InvalidRequest(f"tensor {tensor.name!r}: no numpy array for datatype {tensor.datatype}")
    if datatype.numpy is None:
        widened = np.frombuffer(tensor.data, dtype=np.uint16).astype(np.uint32) << 16
        return widened.view(np.float32).reshape(tensor.shape)
    array = np.frombuffer(tensor.data, dtype=datatype.numpy).reshape(tensor.shape)
    array.flags.writeable = False
    return array
