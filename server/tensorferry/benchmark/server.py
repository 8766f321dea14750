"""What the server is asked around a run: what a model takes, and how its own counts have grown."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc

from tensorferry.errors import ConfigurationError
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = ["BenchServer", "Counts", "ServerSays", "difference", "read_address"]

_TIMEOUT_S: Final = 10.0
_CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Counts:
    """ModelStatistics, added up over the versions; durations in ns."""

    requests: int = 0
    failures: int = 0
    rows: int = 0
    executions: int = 0
    success_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    cache_hits: int = 0


@dataclass(frozen=True, slots=True)
class ServerSays:
    """How the server saw the time between two ``Counts``: means for a request, in ms.

    Other callers' requests are in it. ``batch_rows`` is the mean of rows an execution.
    """

    requests: int
    failures: int
    rows: int
    executions: int
    cache_hits: int
    batch_rows: float | None
    total_ms: float | None
    queue_ms: float | None
    input_ms: float | None
    infer_ms: float | None
    output_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def difference(before: Counts, after: Counts) -> ServerSays | None:
    """Return what happened between the two; None if the counts went back, as after a restart."""
    delta = Counts(*(getattr(after, name) - getattr(before, name) for name in Counts.__slots__))
    if min(getattr(delta, name) for name in Counts.__slots__) < 0:
        return None

    def mean_ms(duration_ns: int) -> float | None:
        return duration_ns / delta.requests / 1e6 if delta.requests else None

    return ServerSays(
        requests=delta.requests,
        failures=delta.failures,
        rows=delta.rows,
        executions=delta.executions,
        cache_hits=delta.cache_hits,
        batch_rows=delta.rows / delta.executions if delta.executions else None,
        total_ms=mean_ms(delta.success_ns),
        queue_ms=mean_ms(delta.queue_ns),
        input_ms=mean_ms(delta.input_ns),
        infer_ms=mean_ms(delta.infer_ns),
        output_ms=mean_ms(delta.output_ns),
    )


def read_address(text: str) -> str:
    """Return a ``host:port`` as it was given.

    Raises:
        ConfigurationError: it isn't one; says what to give.
    """
    host, _, port = text.rpartition(":")
    if text.startswith("unix:") or "://" in text or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(
            f"--server {text!r} isn't HOST:PORT of a plain-text gRPC port, such as localhost:8001 "
            "(no TLS, no unix socket)"
        )
    return text


class BenchServer:
    """A server that speaks the Open Inference Protocol; ``close`` in the end.

    Every method raises ``ConfigurationError`` with what to do, if it is needed and not answered.
    """

    def __init__(self, address: str) -> None:
        self._address = read_address(address)
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except OSError as error:
            raise ConfigurationError(
                f"no server can be reached at {address} ({error}): is it up? Give its gRPC port with --server"
            ) from None
        self._channel = grpc.insecure_channel(address)
        self._stub = pb_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def metadata(self, model: str, version: str) -> pb.ModelMetadataResponse:
        """Return what a model takes and gives."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        try:
            found: pb.ModelMetadataResponse = self._stub.ModelMetadata(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ConfigurationError(self._why_not(model, error)) from None
        found.name = model
        return found

    def counts(self, model: str, version: str) -> Counts | None:
        """Return the model's statistics now; None if the server doesn't say."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        answer = self._asked(self._stub.ModelStatistics, request)
        if answer is None:
            return None
        total = dict.fromkeys(Counts.__slots__, 0)
        for each in answer.model_stats:
            stats = each.inference_stats
            total["requests"] += stats.success.count
            total["failures"] += stats.fail.count
            total["rows"] += each.inference_count
            total["executions"] += each.execution_count
            total["success_ns"] += stats.success.ns
            total["queue_ns"] += stats.queue.ns
            total["input_ns"] += stats.compute_input.ns
            total["infer_ns"] += stats.compute_infer.ns
            total["output_ns"] += stats.compute_output.ns
            total["cache_hits"] += stats.cache_hit.count
        return Counts(**total)

    def _asked(self, method: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - a message
        try:
            return method(request, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return None

    def _why_not(self, model: str, error: grpc.RpcError) -> str:
        code, details = error.code(), error.details()
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
            index = self._asked(self._stub.RepositoryIndex, pb.RepositoryIndexRequest(ready=True))
            names = sorted({each.name for each in index.models}) if index is not None else []
            there = f"it serves {', '.join(names)}" if names else "it serves none that is ready"
            return f"the server at {self._address} says: {details}; {there}"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return f"{self._address} doesn't speak the Open Inference Protocol: is it the gRPC port?"
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return (
                f"{self._address} doesn't answer as a plain-text gRPC server ({code.name}: {details}): is it "
                "the gRPC port, and without TLS? bench speaks no TLS"
            )
        return f"the server at {self._address} doesn't say what {model!r} takes: {code.name}: {details}"
