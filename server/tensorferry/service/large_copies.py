"""Copies large tensors out of and into shared memory on other threads, so that the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from tensorferry.batching.pending import Pending
from tensorferry.engine import Engine
from tensorferry.errors import QueueFull
from tensorferry.service.answers import Answer
from tensorferry.service.methods import UnaryCall
from tensorferry.service.shared_requests import INLINE_BYTES, SharedRequest
from tensorferry.tensors import Buffer

__all__ = ["LargeAnswer", "LargeCopies"]

#: One copies as fast as one core does, and two about as fast as memory is.
_THREADS: Final = 2


class LargeCopies:
    """Copies that are under way. What they take is bounded together with the bytes in flight.

    Used on the loop thread, where the callbacks come, too.
    """

    def __init__(self, engine: Engine, most_bytes: int) -> None:
        self._engine = engine
        self._most_bytes = most_bytes
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shared-memory")
        #: Of the copies that wait or are under way.
        self.byte_size = 0

    def read(
        self,
        call: UnaryCall,
        request: SharedRequest,
        on_read: Callable[[Sequence[Buffer]], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        """Read a request's inputs; then call ``on_read`` with them, or ``on_error``.

        Neither is called where the caller has gone away meanwhile.

        Raises:
            QueueFull: the server holds as many bytes as it may.
            InvalidRequest: as ``SharedRequest.read``, of a request whose inputs are small.
        """
        if request.byte_size <= INLINE_BYTES:
            on_read(request.read())
            return
        held = self._engine.in_flight_bytes + self.byte_size
        if held + request.byte_size > self._most_bytes:
            raise QueueFull(
                f"{held} bytes are in flight or being copied, and with {request.byte_size} more from shared"
                f" memory it would be above the server's max_inflight_bytes of {self._most_bytes}"
            )
        reading = _Reading(call, on_read, on_error)
        self._start(request.byte_size, request.read, reading.ended)

    def encode(self, answer: LargeAnswer, request: Pending) -> None:
        """Write a request's outputs and encode the answer; then give it to ``answer``."""
        size = sum([len(output.data) for output in request.outputs])
        self._start(size, lambda: answer.plan.encode(answer.identity, request), answer.encoded)

    def _start(self, byte_size: int, work: Callable[[], Any], on_end: Callable[[Future[Any]], None]) -> None:
        self.byte_size += byte_size

        def ended(future: Future[Any]) -> None:
            self.byte_size -= byte_size
            on_end(future)

        future = self._pool.submit(work)
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(ended, done))


class LargeAnswer(Answer):
    """An answer whose outputs may be too large to be written on the loop thread."""

    __slots__ = ("_copies",)

    def __init__(self, answer: Answer, copies: LargeCopies) -> None:
        super().__init__(answer.call, answer.plan, answer.identity, answer.failures)
        self._copies = copies

    def __call__(self, request: Pending) -> None:
        """Answer the call, now or when its outputs are written."""
        is_small = sum([len(output.data) for output in request.batch_outputs]) <= INLINE_BYTES
        if is_small or request.error is not None:
            super().__call__(request)
        else:
            self._copies.encode(self, request)

    def encoded(self, future: Future[bytes]) -> None:
        """Answer the call with what another thread has made of it."""
        error = future.exception()
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self.call.reply(future.result())


class _Reading:
    """One read, whose caller may go away before it ends."""

    def __init__(
        self,
        call: UnaryCall,
        on_read: Callable[[Sequence[Buffer]], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._is_wanted = True
        self._on_read = on_read
        self._on_error = on_error
        call.on_cancel = self._cancel

    def _cancel(self) -> None:
        self._is_wanted = False

    def ended(self, future: Future[Sequence[Buffer]]) -> None:
        """Tell whoever waits, if anybody does."""
        if not self._is_wanted:
            return
        error = future.exception()
        if isinstance(error, Exception):
            self._on_error(error)
        else:
            self._on_read(future.result())
