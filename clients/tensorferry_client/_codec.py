"""numpy arrays to and from the protocol's messages: pure functions.

Rules for this file: no calls, no channels. Requests carry raw contents only; answers are
understood raw and typed. Tensor data is little-endian and row-major, as the protocol says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client._errors import InvalidRequest, ServerError

__all__ = [
    "DATATYPES",
    "InferResult",
    "Inputs",
    "Parameter",
    "TypedArray",
    "bfloat16_of",
    "infer_request",
    "infer_result",
    "with_routing",
]

#: A value of the protocol's parameter maps.
Parameter = bool | int | float | str

#: Every datatype of the protocol, by name, and its numpy dtype; None where numpy has none.
DATATYPES: Final[dict[str, np.dtype[np.generic] | None]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": None,
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": None,
}

_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items() if dtype is not None}

#: The field of typed contents that holds a datatype. FP16 and BF16 have none.
_TYPED_FIELDS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True, eq=False)
class TypedArray:
    """An input whose datatype numpy can't say: ``TypedArray(bits, "BF16")`` with ``bits`` uint16.

    Any datatype of fixed size may be named, as long as the array's elements are as wide.
    """

    array: NDArray[np.generic]
    datatype: str

    def __post_init__(self) -> None:
        dtype = np.dtype(np.uint16) if self.datatype == "BF16" else DATATYPES.get(self.datatype)
        if dtype is None:
            raise InvalidRequest(f"no datatype {self.datatype!r} of fixed size in the protocol")
        if self.array.dtype.itemsize != dtype.itemsize or self.array.dtype.hasobject:
            raise InvalidRequest(
                f"{self.datatype} takes {dtype.itemsize} bytes an element, and {self.array.dtype} isn't that"
            )


#: Inputs of a request by name. An array of objects, bytes or strings travels as BYTES.
Inputs = Mapping[str, NDArray[np.generic] | TypedArray]


@dataclass(frozen=True, slots=True, eq=False)
class InferResult:
    """An answer.

    Attributes:
        model: The model's name.
        version: The version that answered.
        id: The request's own id, or what the server put in its place.
        outputs: By name, in the server's order. The arrays are read-only views of the message
            (``.copy()`` gives one to write to). BF16 is widened to float32, which loses nothing; BYTES is
            an array of ``bytes`` objects.
        parameters: What else the server says.
    """

    model: str
    version: str
    id: str
    outputs: dict[str, NDArray[Any]]
    parameters: dict[str, Parameter]


def bfloat16_of(array: NDArray[np.floating[Any]]) -> TypedArray:
    """Return floats as BF16 for an input, rounded to the nearest, ties to even; NaN stays NaN."""
    single = np.asarray(array, dtype=np.float32)
    bits = np.atleast_1d(single).view(np.uint32).reshape(single.shape)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding could carry a NaN over into infinity or zero; this is the quiet NaN.
    return TypedArray(np.where(np.isnan(single), np.uint16(0x7FC0), rounded), "BF16")


def infer_request(
    model: str,
    inputs: Inputs,
    *,
    version: str = "",
    outputs: Sequence[str] | None = None,
    request_id: str = "",
    parameters: Mapping[str, Parameter] | None = None,
) -> pb.ModelInferRequest:
    """Build a request. ``outputs`` names those wanted; None or empty asks for all.

    Raises:
        InvalidRequest: an array's dtype is none of the protocol's, or a parameter fits no field.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        datatype, shape, raw = _encoded(name, value)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    for name in outputs or ():
        request.outputs.add(name=name)
    for key, parameter in (parameters or {}).items():
        _set_parameter(request.parameters[key], key, parameter)
    return request


def with_routing(
    parameters: Mapping[str, Parameter] | None, label: str, split_key: str
) -> Mapping[str, Parameter]:
    """Return a request's parameters with a label and a split key; one that is empty is left out.

    Raises:
        InvalidRequest: the parameters hold another value of it already.
    """
    merged = dict(parameters or {})
    for name, value in (("label", label), ("split_key", split_key)):
        if value and merged.setdefault(name, value) != value:
            raise InvalidRequest(f"{name} is {value!r}, and {merged[name]!r} in the parameters; give one")
    return merged


def infer_result(response: pb.ModelInferResponse) -> InferResult:
    """Read an answer.

    Raises:
        ServerError: shapes and data don't fit together, or a datatype is unknown.
    """
    outputs = response.outputs
    raw = response.raw_output_contents
    if raw and len(raw) != len(outputs):
        raise ServerError(f"the answer has {len(outputs)} outputs and {len(raw)} raw buffers")
    if raw:
        arrays = {output.name: _from_raw(output, data) for output, data in zip(outputs, raw, strict=True)}
    else:
        arrays = {output.name: _from_typed(output) for output in outputs}
    parameters = {key: _parameter_of(value) for key, value in response.parameters.items()}
    return InferResult(response.model_name, response.model_version, response.id, arrays, parameters)


def _encoded(name: str, value: NDArray[np.generic] | TypedArray) -> tuple[str, tuple[int, ...], bytes]:
    if isinstance(value, TypedArray):
        return value.datatype, value.array.shape, _little_endian(value.array)
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(
            f"input {name!r} is a {type(value).__name__}; give a numpy array or a TypedArray"
        )
    if value.dtype.kind in "OSU":
        return "BYTES", value.shape, _joined_bytes(name, value)
    datatype = _NAMES.get(value.dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidRequest(f"input {name!r}: the protocol has no datatype for numpy's {value.dtype}")
    return datatype, value.shape, _little_endian(value)


def _little_endian(array: NDArray[np.generic]) -> bytes:
    # tobytes() copies once, and in row-major order whatever the array's own.
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _joined_bytes(name: str, array: NDArray[np.generic]) -> bytes:
    """Join the elements, each after its length in four bytes."""
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        data = element.encode() if isinstance(element, str) else element
        if not isinstance(data, bytes):
            raise InvalidRequest(f"input {name!r} holds a {type(element).__name__}; BYTES takes bytes or str")
        parts += (len(data).to_bytes(4, "little"), data)
    return b"".join(parts)


def _set_parameter(field: pb.InferParameter, key: str, value: Parameter) -> None:
    if isinstance(value, bool):  # before int, of which it is one
        field.bool_param = value
    elif isinstance(value, int):
        if -(2**63) <= value < 2**63:
            field.int64_param = value
        elif 0 <= value < 2**64:
            field.uint64_param = value
        else:
            raise InvalidRequest(f"parameter {key!r} is {value}, which fits no 64 bits")
    elif isinstance(value, float):
        field.double_param = value
    elif isinstance(value, str):
        field.string_param = value
    else:
        raise InvalidRequest(f"parameter {key!r} is a {type(value).__name__}; give a bool, int, float or str")


def _parameter_of(parameter: pb.InferParameter) -> Parameter:
    chosen = parameter.WhichOneof("parameter_choice")
    value: Parameter = "" if chosen is None else getattr(parameter, chosen)
    return value


def _from_raw(output: pb.ModelInferResponse.InferOutputTensor, data: bytes) -> NDArray[Any]:
    count = _count(output)
    if output.datatype == "BYTES":
        return _object_array(_split_bytes(output.name, data), output, count)
    dtype = np.dtype(np.uint16) if output.datatype == "BF16" else DATATYPES.get(output.datatype)
    if dtype is None:
        raise ServerError(f"output {output.name!r} has unknown datatype {output.datatype!r}")
    if len(data) != count * dtype.itemsize:
        raise ServerError(
            f"output {output.name!r} has {len(data)} bytes, and shape {list(output.shape)}"
            f" of {output.datatype} takes {count * dtype.itemsize}"
        )
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype.newbyteorder("<"))
    if output.datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
        array.flags.writeable = False
    return array.reshape(tuple(output.shape))


def _from_typed(output: pb.ModelInferResponse.InferOutputTensor) -> NDArray[Any]:
    count = _count(output)
    field = _TYPED_FIELDS.get(output.datatype)
    if field is None:
        raise ServerError(
            f"output {output.name!r} is {output.datatype}, which has no typed contents, and no raw came"
        )
    values = getattr(output.contents, field)
    if output.datatype == "BYTES":
        return _object_array(list(values), output, count)
    if len(values) != count:
        raise ServerError(_miscounted(output, len(values)))
    try:
        array: NDArray[Any] = np.array(values, dtype=DATATYPES[output.datatype])
    except OverflowError as problem:
        raise ServerError(
            f"output {output.name!r} holds a value out of {output.datatype}'s range"
        ) from problem
    array.flags.writeable = False
    return array.reshape(tuple(output.shape))


def _count(output: pb.ModelInferResponse.InferOutputTensor) -> int:
    if any(size < 0 for size in output.shape):
        raise ServerError(f"output {output.name!r} has a negative size in shape {list(output.shape)}")
    return prod(output.shape)


def _miscounted(output: pb.ModelInferResponse.InferOutputTensor, came: int) -> str:
    return (
        f"output {output.name!r} has {came} elements, and shape {list(output.shape)} takes {_count(output)}"
    )


def _split_bytes(name: str, data: bytes) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise ServerError(f"output {name!r} is BYTES and ends in the middle of an element")
        elements.append(data[start + 4 : end])
        start = end
    return elements


def _object_array(
    elements: list[bytes], output: pb.ModelInferResponse.InferOutputTensor, count: int
) -> NDArray[Any]:
    if len(elements) != count:
        raise ServerError(_miscounted(output, len(elements)))
    array = np.empty(count, dtype=np.object_)
    array[:] = elements
    array.flags.writeable = False
    return array.reshape(tuple(output.shape))
