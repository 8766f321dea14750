"""A transport by itself, with a method table of the test's own, on a loop in a thread.

What a transport must do with each kind of call is tried here without models: the methods below
do nothing but one thing each, and note what they see.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from types import TracebackType

import grpc
import uvloop
from tests.integration.support import PATIENCE_S

from tensorferry.config import ServerConfig
from tensorferry.service.methods import MethodTable, UnaryCall
from tensorferry.transport import choose

#: Loops by name; either must do.
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
PREFIX = "/conformance.Peer/"
MAX_MESSAGE_BYTES = 2 * 2**20

Context = grpc.aio.ServicerContext


class Peer:
    """A transport that serves ``Methods`` for the length of a ``with`` block."""

    def __init__(self, transport: str, loop: str, **settings: object) -> None:
        self._config = ServerConfig(transport=transport, max_message_bytes=MAX_MESSAGE_BYTES, **settings)
        self._loop_name = loop
        self._started: SimpleQueue[str | BaseException] = SimpleQueue()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self.transport = transport
        self.methods = Methods()
        self.address = ""

    def __enter__(self) -> Peer:
        self._thread.start()
        started = self._started.get(timeout=PATIENCE_S)
        if isinstance(started, BaseException):
            raise started
        self.address = started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the transport didn't stop"

    def note(self) -> str:
        """Return the next thing that a method has noted."""
        return self.methods.notes.get(timeout=PATIENCE_S)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=LOOPS[self._loop_name]) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        try:
            transport = choose(self._config)
            port = await transport.start(self.methods.table(), "127.0.0.1", 0)
        except BaseException as error:
            self._started.put(error)
            raise
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        self._started.put(f"127.0.0.1:{port}")
        await stopped.wait()
        await transport.stop(0.0)


class Methods:
    """The methods that are served.

    ``notes`` gets what they see of a caller that goes away; ``flooded`` is how many messages
    ``Flood`` has given to the transport.
    """

    def __init__(self) -> None:
        self.notes: SimpleQueue[str] = SimpleQueue()
        self.flooded = 0

    def table(self) -> MethodTable:
        """Return the method table; a method's path is PREFIX and its name."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        callbacks = (self.Echo, self.Sized, self.Fail, self.Hold, self.Remaining, self.Break)
        tasks = (
            self.EchoTask,
            self.Abort,
            self.AbortTwice,
            self.AbortSwallowed,
            self.AbortWithTrailersSet,
            self.SetCode,
            self.Raise,
            self.RaiseAfterSetCode,
            self.RemainingTask,
            self.BadTrailers,
            self.ManyTrailers,
            self.DoneCallback,
        )
        streams = (self.Count, self.Flood, self.CountThenAbort, self.CountThenRaise, self.Wait, self.Write)
        table: dict[str, object] = {PREFIX + each.__name__: each for each in callbacks}
        table |= {PREFIX + each.__name__: unary(each) for each in tasks}
        table |= {PREFIX + each.__name__: stream(each) for each in streams}
        table[PREFIX + "Join"] = grpc.stream_unary_rpc_method_handler(self.Join)
        for method in (self.EchoEach, self.ReadAndWrite, self.AnswerEarly, self.EchoMetadata):
            table[PREFIX + method.__name__] = grpc.stream_stream_rpc_method_handler(method)
        return table

    # -- callbacks ------------------------------------------------------------------------------

    def Echo(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802 - names of RPCs
        call.reply(body)

    def Sized(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802
        call.reply(bytes(int(body)))

    def Fail(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802
        call.fail(grpc.StatusCode.FAILED_PRECONDITION, body.decode())

    def Hold(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802
        def cancelled() -> None:
            self.notes.put("cancelled")

        call.on_cancel = cancelled
        self.notes.put("held")

    def Remaining(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802
        call.reply(b"%r" % (call.deadline - time.monotonic()))

    def Break(self, call: UnaryCall, body: bytes) -> None:  # noqa: N802
        raise ValueError("a callback that raises")

    # -- unary tasks ----------------------------------------------------------------------------

    async def EchoTask(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        received = _application(context)
        await context.send_initial_metadata(received)
        context.set_trailing_metadata(received[::-1])
        return request

    async def Abort(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        await context.abort(
            grpc.StatusCode.ABORTED, request.decode(), (("x-why", "because"), ("x-b-bin", b"\xff\0"))
        )
        raise AssertionError("abort returned")

    async def AbortTwice(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        try:
            await context.abort(grpc.StatusCode.ABORTED, "first")
        finally:
            try:
                await context.abort(grpc.StatusCode.INTERNAL, "second")
            except grpc.aio.UsageError:
                self.notes.put("refused")

    async def AbortSwallowed(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        try:
            await context.abort(grpc.StatusCode.ABORTED, "swallowed")
        except grpc.aio.AbortError:
            return request

    async def AbortWithTrailersSet(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_trailing_metadata((("x-set", "before"),))
        context.set_details("set before")
        await context.abort(grpc.StatusCode.ABORTED)

    async def SetCode(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("set by the handler")
        context.set_trailing_metadata((("x-set", "too"),))
        assert context.code() is grpc.StatusCode.NOT_FOUND
        return request

    async def Raise(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_trailing_metadata((("x-set", "before"),))
        raise ValueError(request.decode())

    async def RaiseAfterSetCode(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_code(grpc.StatusCode.DATA_LOSS)
        raise ValueError(request.decode())

    async def RemainingTask(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        remaining_s = context.time_remaining()
        return b"%r" % (float("inf") if remaining_s is None else remaining_s)

    async def BadTrailers(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_trailing_metadata((("x-bad", request.decode()),))
        return request

    async def ManyTrailers(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        context.set_trailing_metadata(tuple((f"x-{number}", "v") for number in range(int(request))))
        return request

    async def DoneCallback(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        def raising(_: Context) -> None:
            raise ValueError("a callback that raises")

        context.add_done_callback(lambda over: self.notes.put(f"done {over.done()} {over.details()}"))
        context.add_done_callback(raising)
        await context.abort(grpc.StatusCode.ABORTED, "for the callback")

    # -- streams --------------------------------------------------------------------------------

    async def Count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        count, size = map(int, request.split())
        context.set_trailing_metadata((("x-counted", str(count)),))
        for number in range(count):
            yield bytes([number % 256]) * size

    async def Flood(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        count, size = map(int, request.split())
        context.add_done_callback(lambda _: self.notes.put("done"))
        for number in range(count):
            self.flooded = number + 1
            yield bytes(size)

    async def CountThenAbort(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        for number in range(int(request)):
            yield b"%d" % number
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "no more", (("x-at", "the end"),))

    async def CountThenRaise(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        for number in range(int(request)):
            yield b"%d" % number
        raise ValueError("no more")

    async def Wait(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        context.add_done_callback(lambda _: self.notes.put("done"))
        yield request
        self.notes.put("held")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.notes.put("cancelled")
            raise

    async def Write(self, request: bytes, context: Context) -> None:  # noqa: N802
        await context.send_initial_metadata((("x-first", "1"),))
        await context.write(request)
        await context.write(request[::-1])
        context.set_code(grpc.StatusCode.CANCELLED)
        context.set_details("by the handler")

    async def Join(self, requests: AsyncIterator[bytes], context: Context) -> bytes:  # noqa: N802
        return b"+".join([request async for request in requests])

    async def EchoEach(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        async for request in requests:
            yield request

    async def ReadAndWrite(self, requests: AsyncIterator[bytes], context: Context) -> None:  # noqa: N802
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def AnswerEarly(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        async for request in requests:
            yield request
            return

    async def EchoMetadata(self, requests: AsyncIterator[bytes], context: Context) -> None:  # noqa: N802
        context.set_trailing_metadata(_application(context))


def _application(context: Context) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (each.key, each.value) for each in context.invocation_metadata() if each.key.startswith("x-")
    )
