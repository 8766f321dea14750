"""Messages to tensors and back: pure functions.

``raw_input_contents`` are viewed, not copied. Typed contents are turned into the same raw bytes,
so that nothing behind this file knows of them. Answers are always raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tensorferry.errors import InvalidRequest
from tensorferry.model import ModelSpec
from tensorferry.service.shared_memory import OFF
from tensorferry.tensors import DATATYPES, Tensor
from tensorferry.wire import open_inference_pb2 as pb

__all__ = [
    "decode_inputs",
    "described_outputs",
    "encode_response",
    "integer_of",
    "label_of",
    "priority_of",
    "refusal",
    "requested_outputs",
    "split_key_of",
    "timeout_of",
    "wants_timing",
]

#: Which field of InferTensorContents holds which datatypes.
_TYPED_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode_inputs(message: pb.ModelInferRequest, raw: Sequence[bytes] | None = None) -> list[Tensor]:
    """Return the request's inputs in the order they are in.

    ``raw`` is their data where that isn't the message's own.

    Raises:
        InvalidRequest: the data isn't there, is there twice, or doesn't fit its datatype.
    """
    raw = message.raw_input_contents if raw is None else raw
    inputs = message.inputs
    if not inputs:
        raise refusal(message, "the request has no inputs")
    if not raw:
        return [_typed(message, each) for each in inputs]
    if len(raw) != len(inputs):
        raise refusal(
            message,
            f"{len(raw)} raw_input_contents for {len(inputs)} inputs; there must be one for each",
        )
    tensors = []
    for each, data in zip(inputs, raw, strict=True):
        if each.HasField("contents"):
            raise refusal(
                message, f"input {each.name!r} has typed contents beside raw_input_contents; send one of them"
            )
        if each.parameters:
            _refuse_shared_memory(message, each.name, each.parameters)
        tensors.append(Tensor(each.name, each.datatype, tuple(each.shape), data))
    return tensors


def requested_outputs(message: pb.ModelInferRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of the outputs to answer with; () means all.

    Raises:
        InvalidRequest: an output that the model doesn't have, one named twice, or a wish that
            isn't offered here (classification, shared memory).
    """
    if not message.outputs:
        return ()
    known = {each.name for each in spec.outputs}
    names: list[str] = []
    for each in message.outputs:
        if each.name not in known:
            raise refusal(message, f"no output {each.name!r}; the model has {sorted(known)}")
        if each.name in names:
            raise refusal(message, f"output {each.name!r} is requested twice")
        if "classification" in each.parameters:
            raise refusal(message, f"output {each.name!r}: the classification extension isn't offered here")
        _refuse_shared_memory(message, each.name, each.parameters)
        names.append(each.name)
    return tuple(names)


def timeout_of(message: pb.ModelInferRequest) -> float:
    """Return the request's own ``timeout`` parameter in seconds (microseconds on the wire); 0.0 if unset.

    Raises:
        InvalidRequest: it is not an integer > 0.
    """
    if "timeout" not in message.parameters:
        return 0.0
    microseconds = integer_of(message.parameters["timeout"])
    if microseconds <= 0:
        raise refusal(message, "parameter 'timeout' must be an integer > 0, in microseconds")
    return microseconds / 1e6


def priority_of(message: pb.ModelInferRequest) -> int:
    """Return the request's ``priority`` parameter: 1 is the highest, and 0 (or unset) the model's default.

    Raises:
        InvalidRequest: it is not an integer >= 0. Whether the model has the level, its batcher knows.
    """
    if "priority" not in message.parameters:
        return 0
    priority = integer_of(message.parameters["priority"])
    if priority < 0:
        raise refusal(message, "parameter 'priority' must be an integer >= 0; 1 is the highest")
    return priority


def label_of(message: pb.ModelInferRequest) -> str:
    """Return the request's ``label`` parameter: which label's version is to answer; "" if none.

    Raises:
        InvalidRequest: it is no text.
    """
    return _text(message, "label")


def split_key_of(message: pb.ModelInferRequest) -> str:
    """Return the request's ``split_key`` parameter: who is asking, for a split that sticks; "" if none.

    Raises:
        InvalidRequest: it is no text.
    """
    return _text(message, "split_key")


def wants_timing(message: pb.ModelInferRequest) -> bool:
    """Whether the request asks for its timing breakdown: its ``timing`` parameter is true.

    Raises:
        InvalidRequest: it is no bool.
    """
    if "timing" not in message.parameters:
        return False
    value = message.parameters["timing"]
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise refusal(message, "parameter 'timing' must be true or false (bool_param)")
    return value.bool_param


def _text(message: pb.ModelInferRequest, name: str) -> str:
    if name not in message.parameters:
        return ""
    value = message.parameters[name]
    if value.WhichOneof("parameter_choice") != "string_param":
        raise refusal(message, f"parameter {name!r} must be text (string_param)")
    return value.string_param


def integer_of(value: pb.InferParameter) -> int:
    """Return a parameter's integer, which clients send as one of three types; -1 if it is none."""
    kind = value.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return value.int64_param
    if kind == "uint64_param":
        return value.uint64_param
    text = value.string_param
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def encode_response(
    spec: ModelSpec, request_id: str, outputs: Sequence[Tensor], requested: Sequence[str] = ()
) -> pb.ModelInferResponse:
    """Build the answer with all outputs, or with those ``requested``, in that order."""
    response = pb.ModelInferResponse(model_name=spec.name, model_version=str(spec.version), id=request_id)
    if requested:
        by_name = {output.name: output for output in outputs}
        outputs = [by_name[name] for name in requested]
    for output in outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(bytes(output.data))
    return response


def described_outputs(outputs: Sequence[Tensor], rows: int) -> bytes:
    """Serialise the ``outputs`` field of an answer of ``rows`` rows, without the data."""
    response = pb.ModelInferResponse()
    for output in outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=(rows, *output.shape[1:]))
    return response.SerializeToString()


def _typed(message: pb.ModelInferRequest, each: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    if each.parameters:
        _refuse_shared_memory(message, each.name, each.parameters)
    filled = [field.name for field, _ in each.contents.ListFields()]
    shape = tuple(each.shape)
    wanted = _TYPED_FIELDS.get(each.datatype)
    if not filled:
        if 0 in shape and each.datatype in DATATYPES:
            return Tensor(each.name, each.datatype, shape, b"")
        raise refusal(
            message, f"input {each.name!r} has no data, neither raw_input_contents nor typed contents"
        )
    if wanted is None:
        reason = (
            "has no typed contents; send raw_input_contents" if each.datatype in DATATYPES else "is unknown"
        )
        raise refusal(message, f"input {each.name!r}: datatype {each.datatype!r} {reason}")
    if filled != [wanted]:
        raise refusal(
            message, f"input {each.name!r} is {each.datatype}, which belongs into {wanted}, not {filled}"
        )
    if each.datatype == "BYTES":
        return Tensor(each.name, each.datatype, shape, b"")  # refused by name, for what it is, by the model
    return Tensor(each.name, each.datatype, shape, _packed(message, each, getattr(each.contents, wanted)))


def _packed(
    message: pb.ModelInferRequest, each: pb.ModelInferRequest.InferInputTensor, values: Sequence[float]
) -> bytes:
    dtype = DATATYPES[each.datatype].numpy
    assert dtype is not None, "every datatype with typed contents is one of numpy's"
    count = 1
    for size in each.shape:
        count *= size
    if len(values) != count:
        raise refusal(
            message,
            f"input {each.name!r} has {len(values)} elements, and shape {list(each.shape)} takes {count}",
        )
    try:
        # Python integers out of the datatype's range raise; the field is wider than INT8, say.
        return np.array(values, dtype=dtype).tobytes()
    except OverflowError:
        raise refusal(
            message, f"input {each.name!r} has an element out of the range of {each.datatype}"
        ) from None


def _refuse_shared_memory(message: pb.ModelInferRequest, name: str, parameters: object) -> None:
    if "shared_memory_region" in parameters:  # type: ignore[operator]  # a protobuf map
        raise refusal(message, f"{name!r}: {OFF}")


def refusal(message: pb.ModelInferRequest, what: str) -> InvalidRequest:
    """Return the error that says what is wrong with a request."""
    return InvalidRequest(f"model {message.model_name!r}: {what}")
