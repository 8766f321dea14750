"""RPC tasks on the http2 transport: the servicer style of grpc.aio, on one stream.

Everything that isn't a unary callback runs here: one task for each call, with a
``ServicerContext`` that has what grpc.aio's has, so that ready-made servicers run unchanged.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from tensorferry.batching.pending import NEVER
from tensorferry.transport.context import ServicerContext

if TYPE_CHECKING:
    from tensorferry.transport._http2 import Stream

__all__ = ["RpcCall"]

_log = structlog.get_logger("tensorferry.transport")

#: A writer waits when this much of its stream's reply is still unsent.
_MAX_QUEUED_BYTES: Final = 1 << 20


class RpcCall:
    """One call: its inbox, its task, and the end of both. ``Stream`` calls the ``on_`` methods."""

    def __init__(self, stream: Stream, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self.stream = stream
        self._handler = handler
        self._inbox: deque[bytes] = deque()
        self._half_closed = False
        self._arrival: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.context = ServicerContext(self)
        self._task = self._loop.create_task(self._run())
        # Not within the task: one that is cancelled before its first step never runs at all.
        self._task.add_done_callback(self._over)
        self._timer = (
            None
            if stream.deadline == NEVER
            else self._loop.call_later(max(0.0, stream.deadline - time.monotonic()), self._expire)
        )

    # -- the wire's side ------------------------------------------------------------------------

    def on_message(self, message: bytes) -> None:
        """A request message is complete."""
        self._inbox.append(message)
        self._wake()

    def on_half_close(self) -> None:
        """The caller sends no more."""
        self._half_closed = True
        self._wake()

    def on_cancel(self) -> None:
        """The caller went away, or its stream failed; after a proper end this changes nothing."""
        self._task.cancel()

    def _expire(self) -> None:
        self.stream.finish(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "Deadline Exceeded", [])
        self._task.cancel()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # -- the handler's side ---------------------------------------------------------------------

    async def receive(self) -> bytes | None:
        """Return the next request message, or None when there will be none."""
        while not self._inbox:
            if self._half_closed:
                return None
            self._arrival = self._loop.create_future()
            await self._arrival
        message = self._inbox.popleft()
        self.stream.taken(len(message))
        return message

    async def send(self, message: Any) -> None:  # noqa: ANN401 - a message of the handler's response type
        """Serialise and queue a reply message; waits while the caller is slow to read."""
        serializer = self._handler.response_serializer
        reply = message if serializer is None else serializer(message)
        self.context.has_sent = True
        queued = self.stream.send_message(reply)
        if self.stream.is_finished:  # the stream has refused it; the handler learns it here
            await self.context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "a reply is larger than max_message_bytes"
            )
        while queued > _MAX_QUEUED_BYTES and not self.stream.is_closed:
            # Rare, and bounded by the caller's flow control: no need for a wake-up of its own.
            await asyncio.sleep(0.005)
            queued = self.stream.queued_bytes

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.receive()) is not None:
            yield self.parsed(message)

    def parsed(self, message: bytes) -> Any:  # noqa: ANN401 - a message of the handler's request type
        """Return a message as the handler takes it."""
        deserializer = self._handler.request_deserializer
        return message if deserializer is None else deserializer(message)

    async def _run(self) -> None:
        try:
            await self._call()
            self.context.conclude()
        except Exception as error:
            if not self.context.is_abort(error):
                _log.error("handler raised", path=self.stream.path.decode("latin-1"), exc_info=error)
                self.context.conclude(error)

    def _over(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Without an outcome it was cancelled: the caller is gone, and if not, it learns of it.
        self.stream.finish(grpc.StatusCode.CANCELLED.value[0], "", [])
        self.stream.rpc = None
        self.context.run_callbacks()

    async def _call(self) -> None:
        handler = self._handler
        method: Any
        if handler.request_streaming:
            requests: Any = self._requests()
        else:
            message = await self.receive()
            if message is None:
                await self.context.abort(
                    grpc.StatusCode.UNIMPLEMENTED, "the call takes one message, and none came"
                )
            requests = self.parsed(message)
        if not handler.response_streaming:
            method = handler.stream_unary if handler.request_streaming else handler.unary_unary
            reply = await method(requests, self.context)
            if self.context.is_ok:
                await self.send(reply)
            return
        method = handler.stream_stream if handler.request_streaming else handler.unary_stream
        replies: Any = method(requests, self.context)
        if hasattr(replies, "__aiter__"):
            await self._send_all(replies)
        else:
            await replies  # a coroutine that writes through the context

    async def _send_all(self, replies: Any) -> None:  # noqa: ANN401 - of the handler's response type
        try:
            async for reply in replies:
                self.context.require_open()
                await self.send(reply)
        finally:
            # At once, not when the garbage collector finds it: the handler may hold something.
            if hasattr(replies, "aclose"):
                await replies.aclose()
