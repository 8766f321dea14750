"""The fast transport: asyncio (uvloop) does the sockets, nghttp2 the protocol, once per socket read.

``_http2.pyx`` has the sessions; this file listens, keeps the connections, and looks after them twice
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
from tensorferry.transport import TransportStatistics, _http2, tls
from tensorferry.transport.listening import UnixSocket, address_of, reason_of
from tensorferry.transport.rpc import RpcCall

__all__ = ["Http2Transport"]

_log = structlog.get_logger("tensorferry.transport")

#: Connections that the kernel keeps until the loop gets to them.
_BACKLOG: Final = 1024
#: A peer gets this long to answer the end of TLS; it has all it needs by then.
_TLS_SHUTDOWN_S: Final = 2.0
#: How often connections are looked after, and how exact their timeouts are.
_ROUND_S: Final = 0.5
#: A peer gets this long to see a shutdown notice before the last stream is named (RFC 9113, 6.8).
_NOTICE_S: Final = 0.2
#: A peer that has had its last answer gets this long to take it and close.
_LINGER_S: Final = 2.0


class _Connection(_http2.Session, asyncio.BufferedProtocol):
    """A session that tells its transport when it comes and goes."""

    __slots__ = ("_owner", "is_leaving")

    def __init__(self, hub: _http2.Hub, owner: Http2Transport) -> None:
        super().__init__(hub)
        self._owner = owner
        self.is_leaving = False

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - a transport of either loop
        super().connection_made(transport)
        self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.closed(self)
        super().connection_lost(error)

    def leave(self) -> None:
        """Send the peer away in two steps, so that a call it sends just now isn't lost."""
        self.is_leaving = True
        self.shutdown_notice()
        asyncio.get_running_loop().call_later(_NOTICE_S, self.goaway)


class Http2Transport:
    """A gRPC server on nghttp2 behind the ``Transport`` interface."""

    name = "http2"

    def __init__(self, config: ServerConfig, reuse_port: bool) -> None:
        self._config = config
        self._reuse_port = reuse_port
        self._tls = tls.read(config)
        self._socket: UnixSocket | None = None
        self._connections: set[_Connection] = set()
        self._empty = asyncio.Event()
        self._stopping = False
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
        self._server = await self._listen(lambda: _Connection(hub, self), host, port)
        self._round = loop.call_later(_ROUND_S, self._look_after)
        return 0 if self._socket else int(self._server.sockets[0].getsockname()[1])

    async def _listen(self, make: Callable[[], _Connection], host: str, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"backlog": _BACKLOG}
        if self._tls is not None:
            options |= {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": self._config.handshake_timeout_s,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN_S,
            }
        if self._config.unix_path:
            self._socket = UnixSocket(self._config.unix_path)
            return await loop.create_unix_server(make, sock=self._socket.bind(), **options)
        try:
            return await loop.create_server(make, host, port, reuse_port=self._reuse_port or None, **options)
        except OSError as error:
            raise SettingsError(
                f"can't listen on {address_of(host, port)} for gRPC: {reason_of(error)}"
            ) from None

    async def stop(self, grace_s: float) -> None:
        """GOAWAY, wait, end; see the protocol."""
        if self._server is None:
            return
        self._stopping = True
        self._server.close()
        if self._socket is not None:
            self._socket.remove()
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
            calls = self.statistics().streams
            if calls:
                _log.warning("calls cut off: the drain timeout is over", calls=calls)
        for connection in list(self._connections):
            connection.abort()
        if self._round is not None:
            self._round.cancel()

    @property
    def connections(self) -> frozenset[_Connection]:
        """The connections that are open now."""
        return frozenset(self._connections)

    def statistics(self) -> TransportStatistics:
        """Return what the connections hold now."""
        connections = self._connections
        return TransportStatistics(
            len(connections),
            sum(each.stream_count for each in connections),
            sum(each.unsent_bytes for each in connections),
            sum(each.receiving_bytes for each in connections),
        )

    def opened(self, connection: _Connection) -> None:
        """A connection is there; called by it."""
        if self._stopping:
            connection.abort()  # it was accepted just before
        if len(self._connections) >= self._config.max_connections:
            _log.warning(
                "connection refused: max_connections is reached", max_connections=self._config.max_connections
            )
            connection.abort()
        if self._tls is not None and not tls.is_http2(connection.transport):
            _log.info("connection refused: its TLS doesn't offer h2 through ALPN", peer=connection.peer)
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
        self._round = asyncio.get_running_loop().call_later(_ROUND_S, self._look_after)
        now = time.monotonic()
        for connection in list(self._connections):
            self._look_after_one(connection, now)

    def _look_after_one(self, connection: _Connection, now: float) -> None:
        config = self._config
        age = now - connection.opened_at
        silence = now - connection.heard_at
        if connection.ended_at <= now:
            has_all = not connection.transport.get_write_buffer_size()
            if now > connection.ended_at + (_LINGER_S if has_all else config.keepalive_timeout_s):
                connection.abort()
        elif not connection.has_settings:
            if age > config.handshake_timeout_s:
                connection.abort()
        elif now >= connection.closes_at:
            connection.abort()
        elif config.max_connection_age_s and age > config.max_connection_age_s:
            if connection.closes_at == float("inf"):
                connection.closes_at = now + config.max_connection_age_grace_s
                connection.leave()
        elif (
            config.idle_timeout_s
            and not connection.stream_count
            and now - connection.busy_at > config.idle_timeout_s
        ):
            if not connection.is_leaving:
                connection.leave()
        elif config.keepalive_time_s and silence > config.keepalive_time_s:
            answered = connection.ping()
            if not answered and silence > config.keepalive_time_s + config.keepalive_timeout_s:
                connection.abort()


def _log_error(error: Exception) -> None:
    _log.error("unexpected error in a call", exc_info=error)
