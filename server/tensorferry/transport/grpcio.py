"""The portable transport: grpc.aio.

One generic handler looks methods up in the table. The generated registration isn't used: it makes
every call dearer on grpcio 1.84 and newer (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from tensorferry.batching.pending import NEVER
from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.service.methods import MethodTable, UnaryHandler
from tensorferry.tracing.context import headers_of
from tensorferry.transport import TransportStatistics, tls
from tensorferry.transport.listening import UnixSocket, address_of
from tensorferry.transport.tls import Tls

__all__ = ["GrpcioTransport"]

_log = structlog.get_logger("tensorferry.transport")

#: What the C core takes for "never".
_NEVER_MS: Final = 2**31 - 1

#: A level and not an algorithm: only then does grpcio ask what the caller takes. Of gzip and deflate,
#: those that the caller takes, 1 stands for the first and 3 for the last.
_COMPRESSION_LEVELS: Final = {"identity": 0, "gzip": 1, "deflate": 3}


class GrpcioTransport:
    """A grpc.aio server behind the ``Transport`` interface."""

    name = "grpcio"

    def __init__(self, config: ServerConfig, reuse_port: bool) -> None:
        self._config = config
        self._reuse_port = reuse_port
        self._tls = tls.read(config)
        self._socket: UnixSocket | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self, methods: MethodTable, host: str, port: int) -> int:
        """Listen and serve; see the protocol."""
        server = grpc.aio.server(
            handlers=[_Table(methods, is_tracing=bool(self._config.trace_endpoint))],
            options=[
                ("grpc.max_receive_message_length", self._config.max_message_bytes),
                ("grpc.max_send_message_length", self._config.max_message_bytes),
                ("grpc.max_metadata_size", self._config.max_header_list_bytes),
                ("grpc.absolute_max_metadata_size", self._config.max_header_list_bytes),
                ("grpc.so_reuseport", int(self._reuse_port)),
                ("grpc.default_compression_level", _COMPRESSION_LEVELS[self._config.response_compression]),
                *_limits(self._config),
            ],
        )
        if self._config.unix_path:
            self._socket = UnixSocket(self._config.unix_path)
            self._socket.clear()
        bound = self._bind(server, host if self._socket else address_of(host, port))
        if self._socket:
            self._socket.bound()
        await server.start()
        self._server = server
        return 0 if self._socket else bound

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        try:
            if self._tls is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError:
            bound = 0
        if not bound:
            raise SettingsError(
                f"can't listen on {address} for gRPC: is the port taken, or the address not this machine's?"
            )
        return bound

    async def stop(self, grace_s: float) -> None:
        """GOAWAY, wait, end; see the protocol."""
        if self._server is not None:
            await self._server.stop(grace_s)
        if self._socket is not None:
            self._socket.remove()

    def statistics(self) -> TransportStatistics:
        """Return zeros: grpcio doesn't say what it holds."""
        return TransportStatistics()


def _limits(config: ServerConfig) -> list[tuple[str, int]]:
    """Return those limits of the settings that the C core has a name for."""
    return [
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.max_connection_idle_ms", _milliseconds(config.idle_timeout_s)),
        ("grpc.max_connection_age_ms", _milliseconds(config.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", int(config.max_connection_age_grace_s * 1e3)),
        ("grpc.server_handshake_timeout_ms", int(config.handshake_timeout_s * 1e3)),
        ("grpc.keepalive_time_ms", _milliseconds(config.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1e3)),
        # Real clients ping every 10 s and more, also without calls; grpcio's own default (5
        # minutes) answers them with GOAWAY too_many_pings.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(config.min_ping_interval_s * 1e3)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1e3), _NEVER_MS) if seconds else _NEVER_MS


def _credentials(files: Tls) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(files.key, files.certificate)], files.client_ca, require_client_auth=files.client_ca is not None
    )


class _Call:
    """One unary call. The handler's outcome resolves the future that the RPC's task awaits."""

    __slots__ = ("_future", "deadline", "on_cancel", "traceparent", "tracestate")

    def __init__(self, future: asyncio.Future[bytes], deadline: float) -> None:
        self._future = future
        self.deadline = deadline
        self.on_cancel: Callable[[], None] | None = None
        self.traceparent: bytes | None = None
        self.tracestate: bytes | None = None

    def reply(self, message: bytes) -> None:
        if not self._future.done():
            self._future.set_result(message)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        if not self._future.done():
            self._future.set_exception(_Failure(code, details))


class _Failure(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details


class _Table(grpc.GenericRpcHandler):
    """Finds a call's handler by its path."""

    def __init__(self, methods: MethodTable, is_tracing: bool) -> None:
        self._handlers = {
            path: handler if isinstance(handler, grpc.RpcMethodHandler) else _adapted(handler, is_tracing)
            for path, handler in methods.items()
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(details.method) or _unknown(details.method)


def _unknown(path: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Answer as the http2 transport does: grpcio's own answer doesn't say which method."""

    async def refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no such method: {path}")

    handler: Callable[..., Any] = refuse
    return grpc.stream_stream_rpc_method_handler(handler)


def _adapted(handler: UnaryHandler, is_tracing: bool) -> grpc.RpcMethodHandler[Any, Any]:
    """Make a grpc.aio handler of a callback handler."""
    loop = asyncio.get_running_loop()

    async def unary(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        remaining_s = context.time_remaining()
        future: asyncio.Future[bytes] = loop.create_future()
        call = _Call(future, NEVER if remaining_s is None else time.monotonic() + remaining_s)
        try:
            if is_tracing:
                call.traceparent, call.tracestate = headers_of(context.invocation_metadata())
            handler(call, body)
        except Exception as error:
            _log.error("unexpected error in a call", exc_info=error)
            call.fail(grpc.StatusCode.UNKNOWN, "the handler raised; see the log")
        try:
            return await future
        except _Failure as failure:
            await context.abort(failure.code, failure.details)
        except asyncio.CancelledError:
            if call.on_cancel is not None:
                call.on_cancel()
            raise
        finally:
            call.on_cancel = None  # it leads back here: no cycle for the garbage collector

    adapted: Callable[..., Awaitable[Any]] = unary
    return grpc.unary_unary_rpc_method_handler(adapted)
