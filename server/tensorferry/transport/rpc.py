"""RPC tasks on the http2 transport: the servicer style of grpc.aio, on one stream.

Everything that isn't a unary callback runs here: one task for each call, with a
``ServicerContext`` that has what grpc.aio's has, so that ready-made servicers run unchanged.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog

from tensorferry.batching.pending import NEVER

if TYPE_CHECKING:
    from tensorferry.transport._http2 import Stream

__all__ = ["RpcCall", "ServicerContext"]

_log = structlog.get_logger("tensorferry.transport")

#: A writer waits when this much of its stream's reply is still unsent.
_MAX_QUEUED_BYTES: Final = 1 << 20

Metadata = Sequence[tuple[str, str | bytes]]


class _Aborted(Exception):
    """Ends a handler from within ``context.abort``; the status has been given."""


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
        queued = self.stream.send_message(message if serializer is None else serializer(message))
        while queued > _MAX_QUEUED_BYTES and not self.stream.is_closed:
            # Rare, and bounded by the caller's flow control: no need for a wake-up of its own.
            await asyncio.sleep(0.005)
            queued = self.stream.queued_bytes

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.receive()) is not None:
            yield self._parsed(message)

    def _parsed(self, message: bytes) -> Any:  # noqa: ANN401
        deserializer = self._handler.request_deserializer
        return message if deserializer is None else deserializer(message)

    async def _run(self) -> None:
        try:
            await self._call()
            code, details = self.context.outcome()
            self.stream.finish(code, details, self.context.trailers())
        except _Aborted:
            pass
        except asyncio.CancelledError:
            # The caller is gone, or has its status: nothing more can be said to it.
            self.stream.finish(grpc.StatusCode.CANCELLED.value[0], "", [])
        except Exception as error:
            _log.error("handler raised", path=self.stream.path.decode("latin-1"), exc_info=error)
            details = f"Unexpected {type(error)}"
            self.stream.finish(grpc.StatusCode.UNKNOWN.value[0], details, self.context.trailers())
        finally:
            if self._timer is not None:
                self._timer.cancel()
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
            requests = self._parsed(message)
        if not handler.response_streaming:
            method = handler.stream_unary if handler.request_streaming else handler.unary_unary
            reply = await method(requests, self.context)
            if self.context.outcome()[0] == 0:
                await self.send(reply)
            return
        method = handler.stream_stream if handler.request_streaming else handler.unary_stream
        replies: Any = method(requests, self.context)
        if hasattr(replies, "__aiter__"):
            async for reply in replies:
                await self.send(reply)
        else:
            await replies  # a coroutine that writes through the context


class ServicerContext:
    """What a grpc.aio servicer may ask of its call."""

    def __init__(self, call: RpcCall) -> None:
        self._call = call
        self._stream = call.stream
        self._code: int = 0
        self._details = ""
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[ServicerContext], None]] = []

    async def read(self) -> Any:  # noqa: ANN401 - a message of the handler's request type
        """Return the next request, or ``grpc.aio.EOF``."""
        message = await self._call.receive()
        return grpc.aio.EOF if message is None else self._call._parsed(message)

    async def write(self, message: Any) -> None:  # noqa: ANN401
        """Send one reply message."""
        await self._call.send(message)

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send the reply's headers."""
        self._stream.send_headers(_encoded(metadata))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """End the call with an error. Raises, so that the handler ends too."""
        trailing = _encoded(trailing_metadata or self._trailing)
        self._stream.finish(code.value[0], details, trailing)
        raise _Aborted

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status object."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """Set the status that the call will end with."""
        self._code = code if isinstance(code, int) else code.value[0]

    def set_details(self, details: str) -> None:
        """Set the text that goes with the status."""
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set the metadata that follows the reply."""
        self._trailing = metadata

    def set_compression(self, compression: grpc.Compression) -> None:
        """Accepted and not needed: the transport's own setting decides."""

    def disable_next_message_compression(self) -> None:
        """Accepted and not needed: the transport's own setting decides."""

    def invocation_metadata(self) -> Metadata:
        """Return the caller's metadata; values of ``-bin`` keys are bytes."""
        return _decoded(self._stream.metadata or [])

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, or None."""
        deadline = self._stream.deadline
        return None if deadline == NEVER else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """Return the caller's address as grpcio writes it."""
        return self._stream.peer

    def code(self) -> int:
        """Return the status set so far."""
        return self._code

    def details(self) -> str:
        """Return the text set so far."""
        return self._details

    def trailing_metadata(self) -> Metadata:
        """Return the trailing metadata set so far."""
        return self._trailing

    def cancelled(self) -> bool:
        """Whether the caller is gone."""
        return self._stream.is_closed

    def done(self) -> bool:
        """Whether the call has its outcome."""
        return self._stream.is_finished or self._stream.is_closed

    def add_done_callback(self, callback: Callable[[ServicerContext], None]) -> None:
        """Call back when the call is over."""
        self._callbacks.append(callback)

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        """Return what TLS says of the caller: nothing here."""
        return {}

    def outcome(self) -> tuple[int, str]:
        """Return the status and text that the handler has set."""
        return self._code, self._details

    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Return the trailing metadata as it travels."""
        return _encoded(self._trailing)

    def run_callbacks(self) -> None:
        """Tell those that asked that the call is over."""
        for callback in self._callbacks:
            callback(self)


def _encoded(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    fields = []
    for key, value in metadata:
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            fields.append((key.encode("ascii"), binascii.b2a_base64(raw, newline=False).rstrip(b"=")))
        else:
            fields.append((key.encode("ascii"), value if isinstance(value, bytes) else value.encode("ascii")))
    return fields


def _decoded(fields: Sequence[tuple[bytes, bytes]]) -> Metadata:
    metadata: list[tuple[str, str | bytes]] = []
    for key, value in fields:
        if key.endswith(b"-bin"):
            # Several values may be joined by commas, each with or without its padding.
            for part in value.split(b","):
                try:
                    metadata.append((key.decode(), binascii.a2b_base64(part.strip() + b"==")))
                except binascii.Error:
                    continue
        elif key not in (b"te", b"user-agent") or key == b"user-agent":
            metadata.append((key.decode(), value.decode("latin-1")))
    return tuple(metadata)
