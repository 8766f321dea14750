"""What a servicer is given beside its request, on the http2 transport: the context of grpc.aio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog

from tensorferry.batching.pending import NEVER
from tensorferry.transport.metadata import Fields, Metadata, decoded, encoded

if TYPE_CHECKING:
    from tensorferry.transport.rpc import RpcCall

__all__ = ["ServicerContext"]

_log = structlog.get_logger("tensorferry.transport")


class ServicerContext:
    """What a grpc.aio servicer may ask of its call. ``has_sent`` tells whether the reply has begun."""

    def __init__(self, call: RpcCall) -> None:
        self._call = call
        self._stream = call.stream
        self._code: grpc.StatusCode | int | None = None
        self._details = ""
        self._trailing: Metadata = ()
        self._trailers: Fields = []
        self._abort: grpc.aio.AbortError | None = None
        self.has_sent = False
        self._callbacks: list[Callable[[ServicerContext], None]] = []

    async def read(self) -> Any:  # noqa: ANN401 - a message of the handler's request type
        """Return the next request, or ``grpc.aio.EOF``."""
        self.require_open()
        message = await self._call.receive()
        return grpc.aio.EOF if message is None else self._call.parsed(message)

    async def write(self, message: Any) -> None:  # noqa: ANN401
        """Send one reply message."""
        self.require_open()
        await self._call.send(message)

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send the reply's headers.

        Raises:
            ValueError: a name or value that can't travel.
            grpc.aio.UsageError: they have been sent.
        """
        self.require_open()
        if self.has_sent:
            raise grpc.aio.UsageError("the initial metadata has been sent: send it once, before any message")
        self._stream.send_headers(encoded(metadata))
        self.has_sent = True

    async def abort(
        self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """End the call with an error. Raises, so that the handler ends too.

        Raises:
            grpc.aio.AbortError: always; a handler that catches it can't undo the abort.
            grpc.aio.UsageError: the call was aborted before.
            ValueError: metadata that can't travel.
        """
        if self._abort is not None:
            raise grpc.aio.UsageError("the call has been aborted: abort it once")
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self._abort = grpc.aio.AbortError("Locally aborted.")
        self._code = code
        self._details = details or self._details
        self._stream.finish(_number(code), self._details, self._trailers)
        raise self._abort

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status object."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """Set the status that the call will end with."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the text that goes with the status."""
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set the metadata that follows the reply.

        Raises:
            ValueError: a name or value that can't travel.
        """
        self._trailers = encoded(metadata)
        self._trailing = tuple(metadata)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Accepted and not needed: the transport's own setting decides."""

    def disable_next_message_compression(self) -> None:
        """Accepted and not needed: the transport's own setting decides."""

    def invocation_metadata(self) -> Metadata:
        """Return the caller's metadata; values of ``-bin`` keys are bytes."""
        return decoded(self._stream.metadata or [])

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, or None."""
        deadline = self._stream.deadline
        return None if deadline == NEVER else max(0.0, deadline - time.monotonic())

    def peer(self) -> str:
        """Return the caller's address as grpcio writes it."""
        return self._stream.peer

    def code(self) -> grpc.StatusCode | int | None:
        """Return the status set so far, as it was given."""
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

    def peer_identities(self) -> None:
        """Return who TLS says the caller is: nobody here."""

    def peer_identity_key(self) -> None:
        """Return the name of what identifies the caller: nothing here."""

    # -- the call's side ------------------------------------------------------------------------

    @property
    def is_ok(self) -> bool:
        """Whether the call ends well, as far as the handler has said."""
        return self._abort is None and _number(self._code) == 0

    def is_abort(self, error: Exception) -> bool:
        """Whether ``error`` is this call's abort."""
        return error is self._abort

    def require_open(self) -> None:
        """Make sure that the call can go on.

        Raises:
            grpc.aio.AbortError: it was aborted, and the handler didn't let that end it.
            grpc.aio.UsageError: it has its outcome.
        """
        if self._abort is not None:
            raise self._abort
        if self._stream.is_finished:
            raise grpc.aio.UsageError("the call has its outcome already")

    def conclude(self, error: Exception | None = None) -> None:
        """Give the outcome that the handler has set, or raised. After an abort this changes nothing."""
        if error is not None:
            self._code = self._code if _number(self._code) else grpc.StatusCode.UNKNOWN
            self._details = f"Unexpected {type(error)}: {error}"
        self._stream.finish(_number(self._code), self._details, self._trailers)

    def run_callbacks(self) -> None:
        """Tell those that asked that the call is over."""
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception as error:
                _log.error("done callback raised", path=self._stream.path.decode("latin-1"), exc_info=error)


def _number(code: grpc.StatusCode | int | None) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code if 0 <= code <= 16 else grpc.StatusCode.UNKNOWN.value[0]
    return int(code.value[0])
