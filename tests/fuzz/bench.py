"""A session of the http2 transport without sockets, handlers of every temper, and what must always hold."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.fuzz import wire

from tensorferry.config import ServerConfig
from tensorferry.transport import _http2

LIMITS = {
    "max_message_bytes": 100_000,
    "max_connection_receive_bytes": 150_000,
    "max_connection_send_bytes": 20_000,
    "max_header_list_bytes": 1024,
    "max_concurrent_streams": 8,
    "max_resets_burst": 20,
    "max_control_frames_burst": 40,
}
DETAILS = ("no: 100% ü\n", "", "ends with a space ", " ", "ü" * 5000, "plain", "\ud800", "%" * 4096)
COMPRESSIONS = ("identity", "identity", "gzip", "deflate")


class HandlerError(Exception):
    """What the failing handlers raise; anything else in the log is a finding."""


class Broken(AssertionError):
    """Something that must always hold doesn't."""


class Transport:
    """Takes what the session writes; like a real one, it reports its end later."""

    def __init__(self, bench: Bench) -> None:
        self.written = bytearray()
        self.closing = False
        self.reading = True
        self._full = False
        self._buffered = 0
        self._ended = False
        self._bench = bench

    def write(self, data: bytearray) -> None:
        self._require(not self._ended, "write after write_eof")
        self.written += data
        if self._bench.slow:
            self._buffered += len(data)
            self.fill()

    def fill(self) -> None:
        """The socket takes no more."""
        if not self._full:
            self._full = True
            self._bench.session.pause_writing()

    def drain(self) -> None:
        """The socket has taken everything."""
        self._buffered = 0
        if self._full:
            self._full = False
            self._bench.session.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def can_write_eof(self) -> bool:
        return not self._bench.tls

    def write_eof(self) -> None:
        self._require(not self._bench.tls, "write_eof on TLS")
        self._require(not self._ended, "write_eof twice")
        self._ended = True

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self._require(self.reading, "pause_reading while it is paused")
        self.reading = False

    def resume_reading(self) -> None:
        self._require(not self.reading, "resume_reading while it reads")
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    @staticmethod
    def _require(condition: bool, what: str) -> None:
        if not condition:
            raise Broken(what)


class Call:
    """One unary call: what was answered, and whether it was cancelled."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.done = False
        self.cancels = 0
        stream.on_cancel = self.cancel

    def cancel(self) -> None:
        self.cancels += 1
        if self.done or self.cancels > 1:
            raise Broken("on_cancel twice, or after the outcome")

    def reply(self, body: bytes) -> None:
        self.done = True
        self.stream.reply(body)

    def fail(self, number: int) -> None:
        self.done = True
        self.stream.fail(number % 17, DETAILS[number % len(DETAILS)])


class Rpc:
    """One call of the servicer style. Events after its end are a finding."""

    def __init__(self, stream: Any, value: object) -> None:
        if value == "raises":
            raise HandlerError
        self.stream = stream
        self.inbox: list[int] = []
        self.over = False
        self.half_closed = False

    def on_message(self, message: bytes) -> None:
        if self.half_closed:
            raise Broken("a message after the half-close")
        self.inbox.append(len(message))

    def on_half_close(self) -> None:
        if self.half_closed:
            raise Broken("two half-closes")
        self.half_closed = True

    def on_cancel(self) -> None:
        self.over = True


class Bench:
    """One connection. The fuzz program calls ``receive``, ``tick``, and what handlers call.

    ``slow`` fills the socket with each write; ``tls`` has no half-close.
    """

    def __init__(self, compression: int = 0, slow: bool = False, tls: bool = False) -> None:
        self.slow = slow
        self.tls = tls
        self.calls: list[Call] = []
        self.rpcs: list[Rpc] = []
        self.lost = False
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.compression = COMPRESSIONS[compression % len(COMPRESSIONS)]
        self._soon: list[Callable[[], None]] = []
        self._unraisable: list[str] = []
        self.errors: list[Exception] = []
        self._parsed = 0
        unary = {
            b"/echo": lambda stream, body: stream.reply(body),
            b"/later": lambda stream, body: self.calls.append(Call(stream)),
            b"/fails": lambda stream, body: stream.fail(5, "not here"),
            b"/raises": self._raise,
            b"/replies-and-raises": self._reply_and_raise,
            b"/never": lambda stream, body: None,
        }
        self.hub = _http2.Hub(
            unary,
            {b"/rpc": "rpc", b"/rpc-raises": "raises"},
            start_rpc=self._start,
            call_soon=self._soon.append,
            log_error=self.errors.append,
            limits=ServerConfig(response_compression=self.compression, **LIMITS),
        )
        self.session = _http2.Session(self.hub)
        self.transport = Transport(self)
        self.session.connection_made(self.transport)

    # -- the methods ----------------------------------------------------------------------------

    def _raise(self, stream: Any, body: bytes) -> None:
        raise HandlerError

    def _reply_and_raise(self, stream: Any, body: bytes) -> None:
        stream.reply(body)
        raise HandlerError

    def _start(self, stream: Any, value: object) -> Rpc:
        rpc = Rpc(stream, value)
        self.rpcs.append(rpc)
        return rpc

    # -- the loop's side ------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Give the session what a socket read brought, if it still reads."""
        if self.lost or self.transport.closing or not self.transport.reading:
            return
        view = self.session.get_buffer(-1)
        if len(data) > len(view):
            raise ValueError(f"{len(data)} bytes don't fit into the read buffer of {len(view)}")
        view[: len(data)] = data
        self._guarded(lambda: self.session.buffer_updated(len(data)))

    def tick(self) -> None:
        """Run what was put off, as the loop does."""
        while self._soon:
            due, self._soon[:] = list(self._soon), []
            for callback in due:
                self._guarded(callback)
        if self.transport.closing and not self.lost:
            self.lose()

    def act(self, action: Callable[[], Any]) -> None:
        """Run something of the handler's or the transport's side."""
        self._guarded(action)

    def lose(self) -> None:
        """The connection is gone: every call on it is over, and nothing is left."""
        if self.lost:
            return
        self.lost = True
        self._guarded(lambda: self.session.connection_lost(None))
        session = self.session
        left = (session.stream_count, session.unsent_bytes, session.receiving_bytes)
        if left != (0, 0, 0):
            raise Broken(f"streams, unsent and receiving bytes after the end: {left}")

    def end(self) -> None:
        """Lose the connection, then use every handle once more: nothing may come of it."""
        self.lose()
        for call in self.calls:
            if not call.done and not call.cancels and not call.stream.is_finished:
                raise Broken("a call was neither answered nor cancelled")
            self.act(lambda call=call: call.stream.reply(b"late"))
            self.act(lambda call=call: call.stream.fail(2, "late"))
        for rpc in self.rpcs:
            if not rpc.over and rpc.stream.rpc is not None:
                raise Broken("an RPC wasn't told of its end")
            for late in (
                lambda rpc=rpc: rpc.stream.send_message(b"late"),
                lambda rpc=rpc: rpc.stream.finish(0, "", [(b"a", b"b")]),
                lambda rpc=rpc: rpc.stream.taken(0),
            ):
                self.act(late)
        for late in (
            self.session.shutdown_notice,
            self.session.goaway,
            self.session.ping,
            self.session.flush,
        ):
            self.act(late)
        self.tick()

    # -- what must hold -------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], Any]) -> None:
        before = sys.unraisablehook
        sys.unraisablehook = lambda raised: self._unraisable.append(repr(raised.exc_value))
        try:
            action()
        finally:
            sys.unraisablehook = before
        if self._unraisable:
            raise Broken(f"raised in a callback of nghttp2: {self._unraisable}")
        for error in self.errors:
            if not isinstance(error, HandlerError):
                raise error
        self.errors.clear()
        session = self.session
        if min(session.stream_count, session.unsent_bytes, session.receiving_bytes) < 0:
            raise Broken("a counter is negative")
        if session.stream_count > LIMITS["max_concurrent_streams"]:
            raise Broken("streams that are over are still there")
        if session.receiving_bytes > LIMITS["max_connection_receive_bytes"]:
            raise Broken("more is set aside than max_connection_receive_bytes")
        self._check_written()

    def _check_written(self) -> None:
        """What was written is whole frames, and each stream's data whole messages so far."""
        new = bytes(self.transport.written[self._parsed :])
        self._parsed = len(self.transport.written)
        for kind, flags, stream, payload in wire.frames(new):
            if kind == wire.DATA:
                self.sent[stream] += payload
            elif kind == wire.HEADERS and flags & wire.END_STREAM:
                self._check_messages(bytes(self.sent.pop(stream, b"")))

    @staticmethod
    def _check_messages(data: bytes) -> None:
        """An ended stream's data are whole messages."""
        at = 0
        while at < len(data):
            at += 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if at != len(data):
            raise Broken(f"a stream ended {at - len(data)} bytes before its message did")
