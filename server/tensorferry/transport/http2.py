"""The fast transport: asyncio (uvloop) does the sockets, nghttp2 the protocol, once per socket read.

``_http2.pyx`` has the sessions; this file listens, keeps the connections, and looks after them once
a second: handshake and idle timeouts, keepalive, maximum age.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError
from tensorferry.service.methods import MethodTable
from tensorferry.transport import _http2
from tensorferry.transport.rpc import RpcCall

__all__ = ["Http2Transport"]

_log = structlog.get_logger("tensorferry.transport")

#: How often connections are looked after, and how exact their timeouts are.
_ROUND_S: Final = 0.5
#: A peer gets this long to see a shutdown notice before the last stream is named (RFC 9113, 6.8).
_NOTICE_S: Final = 0.2


class _Connection(_http2.Session, asyncio.BufferedProtocol):
    """A session that tells its transport when it comes and goes."""

    __slots__ = ("_owner",)

    def __init__(self, hub: _http2.Hub, owner: Http2Transport) -> None:
        super().__init__(hub)
        self._owner = owner

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - a transport of either loop
        super().connection_made(transport)
        self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.closed(self)
        super().connection_lost(error)


class Http2Transport:
    """A gRPC server on nghttp2 behind the ``Transport`` interface."""

    name = "http2"

    def __init__(self, config: ServerConfig, reuse_port: bool) -> None:
        self._config = config
        self._reuse_port = reuse_port
        self._connections: set[_Connection] = set()
        self._empty = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._round: asyncio.TimerHandle | None = None

    async def start(self, methods: MethodTable, host: str, port: int) -> int:
        """Listen and serve; see the protocol."""
        loop = asyncio.get_running_loop()
        unary: dict[bytes, Callable[..., None]] = {}
        rpcs: dict[bytes, grpc.RpcMethodHandler[Any, Any]] = {}
        for path, handler in methods.items():
            if isinstance(handler, grpc.RpcMethodHandler):
                rpcs[path.encode()] = handler
            else:
                unary[path.encode()] = handler
        hub = _http2.Hub(
            unary,
            rpcs,
            start_rpc=RpcCall,
            call_soon=loop.call_soon,
            log_error=_log_error,
            limits=self._config,
        )
        try:
            self._server = await loop.create_server(
                lambda: _Connection(hub, self), host, port, backlog=1024, reuse_port=self._reuse_port or None
            )
        except OSError as error:
            raise SettingsError(
                f"can't listen on {host}:{port} for gRPC: {error.strerror or error}"
            ) from None
        self._round = loop.call_later(_ROUND_S, self._look_after)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """GOAWAY, wait, end; see the protocol."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.shutdown_notice()
        deadline = time.monotonic() + grace_s
        if self._connections:
            await asyncio.sleep(min(_NOTICE_S, grace_s))
        for connection in list(self._connections):
            connection.goaway()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while self._connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            _log.warning("calls cut off: the drain timeout is over", connections=len(self._connections))
        for connection in list(self._connections):
            connection.abort()
        if self._round is not None:
            self._round.cancel()

    def opened(self, connection: _Connection) -> None:
        """A connection is there; called by it."""
        if len(self._connections) >= self._config.max_connections:
            _log.warning(
                "connection refused: max_connections is reached", max_connections=self._config.max_connections
            )
            connection.abort()
        self._connections.add(connection)
        raw = connection.transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def closed(self, connection: _Connection) -> None:
        """A connection is gone; called by it."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _look_after(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            self._look_after_one(connection, now)
        self._round = asyncio.get_running_loop().call_later(_ROUND_S, self._look_after)

    def _look_after_one(self, connection: _Connection, now: float) -> None:
        config = self._config
        age = now - connection.opened_at
        silence = now - connection.heard_at
        if not connection.has_settings:
            if age > config.handshake_timeout_s:
                connection.abort()
        elif now >= connection.closes_at:
            connection.abort()
        elif config.max_connection_age_s and age > config.max_connection_age_s:
            if connection.closes_at == float("inf"):
                connection.closes_at = now + config.max_connection_age_grace_s
                connection.goaway()
        elif (
            config.idle_timeout_s
            and not connection.stream_count
            and now - connection.busy_at > config.idle_timeout_s
        ):
            connection.goaway()
        elif config.keepalive_time_s and silence > config.keepalive_time_s:
            answered = connection.ping()
            if not answered and silence > config.keepalive_time_s + config.keepalive_timeout_s:
                connection.abort()


def _log_error(error: Exception) -> None:
    _log.error("unexpected error in a call", exc_info=error)
