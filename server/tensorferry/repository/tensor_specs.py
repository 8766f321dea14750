"""The checks on ``input`` and ``output``, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from tensorferry.model import TensorSpec
from tensorferry.repository.source import ConfigSource, FieldPath, quoted
from tensorferry.tensors import DATATYPES, DataType
from tensorferry.wire import model_config_pb2
from tensorferry.wire.model_config_pb2 import ModelInput, ModelOutput

__all__ = ["checked_datatype", "tensor_specs"]

#: The enum's numbers that name a datatype: all but TYPE_INVALID. TYPE_STRING is the protocol's BYTES.
_DATATYPES: Final[dict[int, DataType]] = {
    number: DATATYPES["BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")]
    for name, number in model_config_pb2.DataType.items()
    if name != "TYPE_INVALID"
}


def tensor_specs(source: ConfigSource, field: Literal["input", "output"]) -> tuple[TensorSpec, ...]:
    """Check the model's inputs or outputs.

    Raises:
        ModelConfigError: there are none, or one has no name, no datatype or no shape that can be.
    """
    declared: Sequence[ModelInput | ModelOutput]
    declared = list(source.config.input if field == "input" else source.config.output)
    if not declared:
        what = f"declares no {field}; add '{field}' with name, data_type and dims"
        raise source.error(f"{what}, or remove the file to take them from the model")
    indexes: dict[str, int] = {}
    specs: list[TensorSpec] = []
    for index, tensor in enumerate(declared):
        at = (field, index)
        if not tensor.name:
            raise source.error(f"{field} {index} has no name; give it one", *at)
        if tensor.name in indexes:
            what = f"{quoted(tensor.name)} is the name of {field} {indexes[tensor.name]} and of {index}"
            raise source.error(f"{what}; each needs its own", *at, "name")
        indexes[tensor.name] = index
        label = f"{field} {quoted(tensor.name)}"
        datatype = checked_datatype(source, tensor.data_type, label, at)
        _check_dims(source, tensor.dims, label, at)
        specs.append(TensorSpec(tensor.name, datatype, tuple(tensor.dims)))
    return tuple(specs)


def checked_datatype(source: ConfigSource, number: int, label: str, at: FieldPath) -> DataType:
    """Return the datatype for the enum's ``number``; ``label`` names the tensor at ``at`` in the error.

    Raises:
        ModelConfigError: missing, invalid, or TYPE_STRING, which no format takes.
    """
    datatype = _DATATYPES.get(number)
    if datatype is None:
        what = "unknown or TYPE_INVALID" if source.sets(*at, "data_type") else "missing"
        what = f"the data_type of {label} is {what}; give one, such as TYPE_FP32"
        raise source.error(what, *at, "data_type")
    if not datatype.itemsize:
        what = f"{label} is TYPE_STRING, which no format takes here; use a numeric type"
        raise source.error(what, *at, "data_type")
    return datatype


def _check_dims(source: ConfigSource, dims: Sequence[int], label: str, at: FieldPath) -> None:
    if not dims and not source.config.max_batch_size:
        what = "add dims, such as [1], or set a max_batch_size above 0 to have the shape [rows]"
        raise source.error(f"{label} has no dims; {what}", *at, "dims")
    for index, dim in enumerate(dims):
        if dim == 0 or dim < -1:
            what = f"{label} has {dim} in dims; use a size of 1 or more, or -1 for any size"
            raise source.error(what, *at, "dims", index)
