"""The calls of the protocol as values: which method, what request, how to read the answer.

Both clients make them; neither knows how a request is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from tensorferry.wire import model_config_pb2
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client._codec import InferResult, Inputs, Parameter, infer_request, infer_result

__all__ = [
    "STREAM_INFER",
    "UNARY_METHODS",
    "Call",
    "infer",
    "model_config",
    "model_metadata",
    "model_ready",
    "path_of",
    "repository_index",
    "serialize",
    "server_live",
    "server_metadata",
    "server_ready",
    "statistics",
]

T = TypeVar("T")

#: The type of each method's answer, by the method's name.
UNARY_METHODS: Final[dict[str, type[Message]]] = {
    "ServerLive": pb.ServerLiveResponse,
    "ServerReady": pb.ServerReadyResponse,
    "ModelReady": pb.ModelReadyResponse,
    "ServerMetadata": pb.ServerMetadataResponse,
    "ModelMetadata": pb.ModelMetadataResponse,
    "ModelInfer": pb.ModelInferResponse,
    "ModelConfig": pb.ModelConfigResponse,
    "ModelStatistics": pb.ModelStatisticsResponse,
    "RepositoryIndex": pb.RepositoryIndexResponse,
}

STREAM_INFER: Final = "ModelStreamInfer"


def path_of(method: str) -> str:
    """Return the method's path on the wire."""
    return f"/inference.GRPCInferenceService/{method}"


def serialize(request: Message) -> bytes:
    """Return the request's bytes; one serializer for every method."""
    return request.SerializeToString()


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call, ready to be made any number of times. ``method`` is a key of ``UNARY_METHODS``."""

    method: str
    request: Message
    # The method decides the message's type, which Python's types can't follow.
    decode: Callable[[Any], T]


def infer(
    model: str,
    inputs: Inputs,
    version: str,
    outputs: Sequence[str] | None,
    request_id: str,
    parameters: Mapping[str, Parameter] | None,
) -> Call[InferResult]:
    """ModelInfer; see ``Client.infer``."""
    request = infer_request(
        model, inputs, version=version, outputs=outputs, request_id=request_id, parameters=parameters
    )
    return Call("ModelInfer", request, infer_result)


def server_live() -> Call[bool]:
    """ServerLive."""

    def live(response: pb.ServerLiveResponse) -> bool:
        return response.live

    return Call("ServerLive", pb.ServerLiveRequest(), live)


def server_ready() -> Call[bool]:
    """ServerReady."""

    def ready(response: pb.ServerReadyResponse) -> bool:
        return response.ready

    return Call("ServerReady", pb.ServerReadyRequest(), ready)


def model_ready(model: str, version: str) -> Call[bool]:
    """ModelReady."""

    def ready(response: pb.ModelReadyResponse) -> bool:
        return response.ready

    return Call("ModelReady", pb.ModelReadyRequest(name=model, version=version), ready)


def server_metadata() -> Call[pb.ServerMetadataResponse]:
    """ServerMetadata."""
    return Call("ServerMetadata", pb.ServerMetadataRequest(), _itself)


def model_metadata(model: str, version: str) -> Call[pb.ModelMetadataResponse]:
    """ModelMetadata."""
    return Call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), _itself)


def model_config(model: str, version: str) -> Call[model_config_pb2.ModelConfig]:
    """ModelConfig."""

    def config(response: pb.ModelConfigResponse) -> model_config_pb2.ModelConfig:
        return response.config

    return Call("ModelConfig", pb.ModelConfigRequest(name=model, version=version), config)


def statistics(model: str, version: str) -> Call[list[pb.ModelStatistics]]:
    """ModelStatistics."""

    def stats(response: pb.ModelStatisticsResponse) -> list[pb.ModelStatistics]:
        return list(response.model_stats)

    return Call("ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version), stats)


def repository_index(ready_only: bool) -> Call[list[pb.RepositoryIndexResponse.ModelIndex]]:
    """RepositoryIndex."""

    def models(response: pb.RepositoryIndexResponse) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        return list(response.models)

    return Call("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready_only), models)


def _itself(response: T) -> T:
    return response
