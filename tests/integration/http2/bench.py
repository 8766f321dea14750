"""The http2 transport alone, on a loop in a thread, with a method table made for these tests."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import uvloop
from tests.integration.http2.raw import PATIENCE_S, RawConnection
from tests.integration.support import wait_until

from tensorferry.config import ServerConfig
from tensorferry.service.methods import MethodTable, UnaryCall
from tensorferry.transport.http2 import Http2Transport


class Methods:
    """What is served. Payloads are plain bytes, not protobuf.

    ``held`` gets each call of /t/Hold, which never ends by itself; ``cancelled`` the name of each
    method that was told that its caller is gone.
    """

    def __init__(self) -> None:
        self.held: queue.Queue[UnaryCall] = queue.Queue()
        self.started: queue.Queue[str] = queue.Queue()
        self.cancelled: queue.Queue[str] = queue.Queue()

    def table(self) -> MethodTable:
        """Return the method table."""
        return {
            "/t/Echo": lambda call, message: call.reply(message),
            "/t/Hold": self._hold,
            "/t/Zeros": lambda call, message: call.reply(bytes(int(message))),
            "/t/Fail": lambda call, message: call.fail(grpc.StatusCode.ABORTED, message.decode()),
            "/t/Raise": self._raise,
            "/t/RaiseAfterReply": self._raise_after_reply,
            "/t/Chat": grpc.stream_stream_rpc_method_handler(self._chat),
            "/t/Stuck": grpc.stream_stream_rpc_method_handler(self._stuck),
            "/t/Collect": grpc.stream_unary_rpc_method_handler(self._collect),
            "/t/Count": grpc.unary_stream_rpc_method_handler(self._count),
            "/t/Trailing": grpc.unary_stream_rpc_method_handler(self._trailing),
        }

    def _hold(self, call: UnaryCall, message: bytes) -> None:
        call.on_cancel = lambda: self._cancelled(call)  # a cycle, as in real handlers
        self.held.put(call)

    def _cancelled(self, call: UnaryCall) -> None:
        self.cancelled.put("Hold")

    def _raise(self, call: UnaryCall, message: bytes) -> None:
        raise ValueError("as the test wants")

    def _raise_after_reply(self, call: UnaryCall, message: bytes) -> None:
        call.reply(message)
        raise ValueError("as the test wants")

    async def _chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def _stuck(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.started.put("Stuck")
        try:
            await asyncio.Event().wait()
            yield b""
        except asyncio.CancelledError:
            self.cancelled.put("Stuck")
            raise

    async def _collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"|".join([request async for request in requests])

    async def _count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        number, size = map(int, request.split())
        for _ in range(number):
            yield bytes(size)

    async def _trailing(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        number, size = map(int, request.split())
        context.set_trailing_metadata(tuple((f"key-{index}", "v" * size) for index in range(number)))
        yield b"one"


class Bench:
    """A transport with ``settings`` that serves ``Methods``; ``connect`` talks to it."""

    def __init__(self, **settings: Any) -> None:
        self.methods = Methods()
        self.transport = Http2Transport(
            ServerConfig(**{"transport": "http2", "min_ping_interval_s": 0.0} | settings), False
        )
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = self.run(self.transport.start(self.methods.table(), "127.0.0.1", 0))
        self._opened: list[RawConnection] = []
        self.sessions: set[Any] = set()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the transport's loop to its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def background(self, coroutine: Any) -> Any:
        """Run a coroutine on the transport's loop; return its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def on_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the transport's thread."""

        async def call() -> Any:
            return function(*args)

        return self.run(call())

    def connect(self, settings: dict[int, int] | None = None, **options: Any) -> RawConnection:
        """Open a connection; it is closed with the bench."""
        connection = RawConnection(self.port, settings, **options)
        self._opened.append(connection)
        self.sessions |= self.on_loop(lambda: set(self.transport.connections))
        return connection

    def held(self) -> UnaryCall:
        """Return the next call of /t/Hold, once it is there."""
        return self.methods.held.get(timeout=PATIENCE_S)

    def total(self, name: str) -> int:
        """Add up a counter over all sessions there have been."""
        return self.on_loop(lambda: sum(getattr(each, name) for each in self.sessions))

    def settled(self) -> None:
        """Wait until no call is under way, and nothing is set aside for any."""
        for name in ("stream_count", "unsent_bytes", "receiving_bytes"):
            wait_until(lambda name=name: self.total(name) == 0, f"{name} is back to 0")

    def serves(self) -> None:
        """Check that a new connection is served."""
        connection = self.connect()
        assert connection.outcome(connection.call("/t/Echo", b"alive")).messages == [b"alive"]

    def close(self) -> None:
        """Drop the connections, see that they leave nothing behind, and stop."""
        try:
            for connection in self._opened:
                connection.close()
            wait_until(
                lambda: not self.on_loop(lambda: self.transport.connections), "the connections are gone"
            )
            self.settled()
        finally:
            self.run(self.transport.stop(0.0))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()
