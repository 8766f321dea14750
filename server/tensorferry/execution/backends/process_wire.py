"""What the server and a model's process say to each other, and how the server checks what it hears.

Each message is one packet of JSON: a kind, then its fields. The first, from the server, is pickled:
the child trusts the server, and the server doesn't trust the child.

==============  ===================================================  ==========================
from            message                                              answer
==============  ===================================================  ==========================
server          (target, device, specification), pickled             ``loaded`` or ``refused``
server          ``attach`` threads                                   none
server          ``run`` output region, tensors                       ``ran``, ``failed``, ``raised``
server          ``close``                                            the end of the process
child           ``loaded`` inputs, outputs, datatypes
child           ``refused`` message
child           ``ran`` tensors, times (ns)
child           ``failed`` message                                   a ModelFailed of the model's
child           ``raised`` type, message, traceback                  any other exception
==============  ===================================================  ==========================

A tensor is [name, datatype, shape, offset, bytes]; its data lies in a shared region.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, Final

from tensorferry.errors import ModelFailed
from tensorferry.model import ModelSpec, TensorSpec
from tensorferry.tensors import DATATYPES, DataType, Tensor

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Malformed",
    "check_outputs",
    "completed",
    "decode",
    "decode_order",
    "described",
    "encode",
    "encode_order",
    "outputs_in",
]

#: A packet of a local socket can't be larger by default.
MAX_MESSAGE_BYTES: Final = 200_000

_MAX_DIMENSIONS: Final = 64
_MAX_NAME: Final = 1024


class Malformed(Exception):
    """The child sent what is no message. It isn't spoken to again."""


class _SpecPickler(pickle.Pickler):
    """Datatypes are compared by identity, so they travel by name."""

    def persistent_id(self, obj: object) -> str | None:
        return obj.name if isinstance(obj, DataType) else None


class _SpecUnpickler(pickle.Unpickler):
    def persistent_load(self, pid: str) -> DataType:
        return DATATYPES[pid]


def encode_order(target: str, device: str, spec: ModelSpec) -> bytes:
    """Return the first message: what to load, and where."""
    buffer = io.BytesIO()
    _SpecPickler(buffer).dump((target, device, spec))
    return buffer.getvalue()


def decode_order(data: bytes) -> tuple[str, str, ModelSpec]:
    """Return what ``encode_order`` was given. Only for what the server sent."""
    target, device, spec = _SpecUnpickler(io.BytesIO(data)).load()
    return target, device, spec


def encode(kind: str, *fields: object) -> bytes:
    """Return a message of any other kind."""
    return json.dumps([kind, *fields], separators=(",", ":")).encode()


def decode(data: bytes) -> tuple[str, list[Any]]:
    """Return a message's kind and fields.

    Raises:
        Malformed: it is no message.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed("what isn't JSON") from error
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise Malformed("what isn't a message")
    return message[0], message[1:]


def described(spec: ModelSpec) -> tuple[object, ...]:
    """Return what loading may have taught of a model: the fields of ``loaded``."""
    tensors = [
        [[each.name, each.datatype and each.datatype.name, each.dims] for each in group]
        for group in (spec.inputs, spec.outputs)
    ]
    return (*tensors, sorted(spec.datatypes))


def completed(spec: ModelSpec, fields: Sequence[Any]) -> ModelSpec:
    """Return the specification with what the child learned at load.

    A model in a process of its own keeps its stream's thread: waiting for it on the loop thread
    would hold up every other call.

    Raises:
        Malformed: the fields aren't those of ``loaded``.
    """
    if len(fields) != 3 or not all(isinstance(each, list) for each in fields):
        raise Malformed("a description that isn't one")
    datatypes = fields[2]
    if not all(isinstance(name, str) and name in DATATYPES for name in datatypes):
        raise Malformed("an unknown datatype")
    inputs, outputs = (tuple([_tensor_spec(each) for each in group]) for group in fields[:2])
    if not outputs:
        raise Malformed("a model without outputs")
    return replace(spec, inputs=inputs, outputs=outputs, datatypes=frozenset(datatypes), execution="thread")


def check_outputs(spec: ModelSpec, tensors: object) -> int:
    """Check the tensors of ``ran``; return the bytes of the region that they reach to.

    Raises:
        Malformed: they aren't tensors.
        ModelFailed: they aren't what the specification says.
    """
    if not isinstance(tensors, list) or len(tensors) != len(spec.outputs):
        raise Malformed(f"something else than its {len(spec.outputs)} outputs")
    reach = 0
    for tensor, expected in zip(tensors, spec.outputs, strict=True):
        if not isinstance(tensor, list) or len(tensor) != 5:
            raise Malformed("an output that isn't a tensor")
        name, datatype, shape, offset, byte_size = tensor
        if name != expected.name or not isinstance(datatype, str) or datatype not in DATATYPES:
            raise Malformed(f"a tensor that isn't output {expected.name!r}")
        if not _is_shape(shape) or not _is_size(offset) or not _is_size(byte_size):
            raise Malformed(f"an output {expected.name!r} of no shape or size")
        if byte_size != DATATYPES[datatype].itemsize * prod(shape):
            raise Malformed(f"an output {expected.name!r} whose bytes don't fit its shape")
        _check_output(spec, expected, datatype, tuple(shape))
        reach = max(reach, offset + byte_size)
    return reach


def outputs_in(tensors: Sequence[Sequence[Any]], data: memoryview) -> list[Tensor]:
    """View the tensors of a checked ``ran`` in the memory that they were written to."""
    return [
        Tensor(name, datatype, tuple(shape), data[offset : offset + byte_size])
        for name, datatype, shape, offset, byte_size in tensors
    ]


def _check_output(spec: ModelSpec, expected: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
    what = f"model {spec.name!r}: output {expected.name!r}"
    if expected.datatype is not None and datatype != expected.datatype.name:
        raise ModelFailed(f"{what} is {datatype}, and its configuration says {expected.datatype.name}")
    row_shape = shape[1:] if spec.has_batch_dimension else shape
    if expected.dims is None or row_shape == expected.dims:
        return
    if len(row_shape) != len(expected.dims) or any(
        dim not in (-1, size) for dim, size in zip(expected.dims, row_shape, strict=True)
    ):
        after = " after the batch dimension" if spec.has_batch_dimension else ""
        raise ModelFailed(
            f"{what} has shape {list(shape)}, and its configuration says {list(expected.dims)}{after}"
        )


def _tensor_spec(described: object) -> TensorSpec:
    if not isinstance(described, list) or len(described) != 3:
        raise Malformed("a description of no tensor")
    name, datatype, dims = described
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise Malformed("a tensor without a name")
    if datatype is not None and (not isinstance(datatype, str) or datatype not in DATATYPES):
        raise Malformed(f"a tensor {name!r} of no datatype")
    if dims is not None and not _is_shape(dims, least=-1):
        raise Malformed(f"a tensor {name!r} of no shape")
    return TensorSpec(
        name, None if datatype is None else DATATYPES[datatype], None if dims is None else tuple(dims)
    )


def _is_shape(value: object, least: int = 0) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and size >= least for size in value)
    )


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0
