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

__all__ = ["GrpcioTransport"]

_log = structlog.get_logger("tensorferry.transport")

#: Real clients ping every 10 s and more, also without calls; grpcio's own default (5 minutes)
#: answers them with GOAWAY too_many_pings.
_KEEPALIVE: Final = (
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class GrpcioTransport:
    """A grpc.aio server behind the ``Transport`` interface."""

    name = "grpcio"

    def __init__(self, config: ServerConfig, reuse_port: bool) -> None:
        self._config = config
        self._reuse_port = reuse_port
        self._server: grpc.aio.Server | None = None

    async def start(self, methods: MethodTable, host: str, port: int) -> int:
        """Listen and serve; see the protocol."""
        server = grpc.aio.server(
            handlers=[_Table(methods)],
            options=[
                ("grpc.max_receive_message_length", self._config.max_message_bytes),
                ("grpc.max_send_message_length", self._config.max_message_bytes),
                ("grpc.so_reuseport", int(self._reuse_port)),
                *_KEEPALIVE,
            ],
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if not bound:
            raise SettingsError(
                f"can't listen on {address} for gRPC: is the port taken, or the address not this machine's?"
            )
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """GOAWAY, wait, end; see the protocol."""
        if self._server is not None:
            await self._server.stop(grace_s)


class _Call:
    """One unary call. The handler's outcome resolves the future that the RPC's task awaits."""

    __slots__ = ("_future", "deadline", "on_cancel")

    def __init__(self, future: asyncio.Future[bytes], deadline: float) -> None:
        self._future = future
        self.deadline = deadline
        self.on_cancel: Callable[[], None] | None = None

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
    """Finds a call's handler by its path; unknown ones are answered UNIMPLEMENTED by grpcio."""

    def __init__(self, methods: MethodTable) -> None:
        self._handlers = {
            path: handler if isinstance(handler, grpc.RpcMethodHandler) else _adapted(handler)
            for path, handler in methods.items()
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(details.method)


def _adapted(handler: UnaryHandler) -> grpc.RpcMethodHandler[Any, Any]:
    """Make a grpc.aio handler of a callback handler."""
    loop = asyncio.get_running_loop()

    async def unary(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        remaining_s = context.time_remaining()
        future: asyncio.Future[bytes] = loop.create_future()
        call = _Call(future, NEVER if remaining_s is None else time.monotonic() + remaining_s)
        handler(call, body)
        try:
            return await future
        except _Failure as failure:
            await context.abort(failure.code, failure.details)
        except asyncio.CancelledError:
            if call.on_cancel is not None:
                call.on_cancel()
            raise

    adapted: Callable[..., Awaitable[Any]] = unary
    return grpc.unary_unary_rpc_method_handler(adapted)
