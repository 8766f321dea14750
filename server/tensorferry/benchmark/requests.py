"""Request bodies: serialised ModelInferRequests, made from what the server says that its model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = ["infer_message", "messages_for", "random_inputs"]

_NUMPY: Final = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DATATYPES: Final = {np.dtype(code): name for name, code in _NUMPY.items()}
_PATIENCE_S: Final = 10.0


def infer_message(
    model: str,
    inputs: Mapping[str, NDArray[np.generic]],
    *,
    version: str = "",
    timeout_us: int | None = None,
    priority: int | None = None,
) -> bytes:
    """Return a ModelInferRequest with raw tensors, and with the parameters ``timeout`` and ``priority``.

    ``timeout_us`` is how long the request may wait in the queue, in microseconds; ``priority`` is
    1 or more, where 1 goes first. None leaves a parameter out.

    Raises:
        ValueError: an array's dtype has no datatype in the protocol.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        datatype = _DATATYPES.get(array.dtype)
        if datatype is None:
            raise ValueError(f"input {name!r} is {array.dtype}: use one of {', '.join(_NUMPY)}")
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    if priority is not None:
        request.parameters["priority"].uint64_param = priority
    return request.SerializeToString()


def messages_for(
    target: str,
    model: str,
    *,
    rows: int = 1,
    count: int = 1,
    timeout_us: int | None = None,
    priority: int | None = None,
) -> list[bytes]:
    """Ask ``target`` what ``model`` takes; return ``count`` different requests of ``rows`` rows each.

    Raises:
        grpc.RpcError: it doesn't answer within 10 s, or has no such model.
        ValueError: the model takes a datatype for which there are no random values.
    """
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = stub.ModelMetadata(
            pb.ModelMetadataRequest(name=model), timeout=_PATIENCE_S, wait_for_ready=True
        )
    return [
        infer_message(model, random_inputs(metadata, rows, seed), timeout_us=timeout_us, priority=priority)
        for seed in range(count)
    ]


def random_inputs(
    metadata: pb.ModelMetadataResponse, rows: int, seed: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Return an array for each input: normal numbers, or integers and booleans of 0 and 1.

    An open first dimension becomes ``rows``, any other open one 1.

    Raises:
        ValueError: an input's datatype has no random values here.
    """
    draw = np.random.default_rng(seed)
    found: dict[str, NDArray[np.generic]] = {}
    for each in metadata.inputs:
        if each.datatype not in _NUMPY:
            raise ValueError(
                f"input {each.name!r} of {metadata.name!r} takes {each.datatype}: build the request"
            )
        dtype = np.dtype(_NUMPY[each.datatype])
        shape = [size if size >= 0 else 1 for size in each.shape]
        if shape and each.shape[0] < 0:
            shape[0] = rows
        values = draw.standard_normal(shape) if dtype.kind == "f" else draw.integers(0, 2, shape)
        found[each.name] = values.astype(dtype)
    return found
