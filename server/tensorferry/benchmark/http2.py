"""HTTP/2 as a gRPC client of unary calls needs it, fast, and without sockets.

Rules for this file: bytes in, bytes out; no clock, no socket. It reads of an answer what tells how
the call ended, and counts the rest: the tensors are not looked at.

What makes it fast: a request is a handful of ready-made bytes joined around its stream id, since
once the header fields are in the server's dynamic table (RFC 7541, 2.3.2) a request's
header block is always the same; and of an answer only the last header block is looked up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hpack import Encoder

from tensorferry.benchmark.endings import Ending, Endings, Failure

__all__ = ["Connection", "ProtocolError", "Request", "frame"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 5, 6, 7, 8, 9,
)  # fmt: skip
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

_CANCEL: Final = 8
_DATA_HEAD_BYTES: Final = 5  # a frame's head without the stream id
_LARGEST_FRAME_BYTES: Final = 2**24 - 1
_LARGEST: Final = 2**31 - 1
_DEFAULT_WINDOW_BYTES: Final = 65_535
_DEFAULT_FRAME_BYTES: Final = 16_384
#: Credit is given back when this much has come: half of what the server was given.
_CREDIT_BYTES: Final = 2**30
#: By code: RFC 9113, 7.
_ERRORS: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
_LAST: Final = END_STREAM | END_HEADERS

_HEAD: Final = struct.Struct(">BHBBI")
_WORD: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")


class ProtocolError(Exception):
    """The server sent what this client can't read; the connection is of no more use."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One kind of request: header fields, and the gRPC message with its five-byte prefix."""

    fields: tuple[tuple[str, str], ...]
    framed: bytes

    @classmethod
    def unary(
        cls, path: str, authority: str, message: bytes, more: Iterable[tuple[str, str]] = ()
    ) -> Request:
        """Return the request of a unary call; ``more`` are its metadata, such as grpc-timeout."""
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "tensorferry-bench"),
            *more,
        )
        return cls(fields, struct.pack(">BI", 0, len(message)) + message)


@dataclass(slots=True)
class _Unfinished:
    """A request whose message the server's windows haven't let through yet."""

    rest: memoryview
    window_bytes: int


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


class Connection:
    """One connection's state. ``begin`` and ``receive`` leave bytes in ``outbox``, to be sent in order.

    ``room`` says how many calls may be begun now. ``usable`` becomes False when the server says
    that it takes no more. ``most_open`` bounds the calls that are open at one time, beside what the
    server says of it.
    """

    def __init__(self, endings: Endings, most_open: int | None = None) -> None:
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, _LARGEST))
        self.outbox: list[bytes | memoryview] = [
            PREFACE,
            frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings)),
            frame(WINDOW_UPDATE, 0, 0, _WORD.pack(_LARGEST - _DEFAULT_WINDOW_BYTES)),
        ]
        self.greeted = False
        self.usable = True
        self._endings = endings
        self._most_open = _LARGEST if most_open is None else most_open
        self._encoder = Encoder()
        self._ready: dict[Request, tuple[bytes, bytes, bytes]] = {}
        self._calls: list[int] = []  # by stream id // 2; -1 once it has ended
        self._open = 0
        self._input = b""
        self._uncredited_bytes = 0
        self._partial: tuple[int, int, bytes] | None = None
        self._unfinished: dict[int, _Unfinished] = {}
        self._peer = {INITIAL_WINDOW_SIZE: _DEFAULT_WINDOW_BYTES, MAX_FRAME_SIZE: _DEFAULT_FRAME_BYTES}
        self._window_bytes = _DEFAULT_WINDOW_BYTES

    def __repr__(self) -> str:
        return f"<Connection: {self._open} open of {len(self._calls)}, {len(self._unfinished)} unfinished>"

    @property
    def open(self) -> int:
        """Calls begun and not ended."""
        return self._open

    @property
    def room(self) -> int:
        """How many calls may be begun now."""
        most = min(self._peer.get(MAX_CONCURRENT_STREAMS, _LARGEST), self._most_open)
        return most - self._open if self.usable else 0

    # -- requests -------------------------------------------------------------------------------

    def begin(self, request: Request, call: int) -> None:
        """Put a request into the outbox, on a new stream; ``call`` is named when it has ended."""
        stream = 2 * len(self._calls) + 1
        self._calls.append(call)
        self._open += 1
        size = len(request.framed)
        ready = self._ready.get(request)
        fits = size <= self._window_bytes and size <= self._peer[INITIAL_WINDOW_SIZE]
        if ready and fits and not self._unfinished and size <= self._peer[MAX_FRAME_SIZE]:
            self._window_bytes -= size
            number = _WORD.pack(stream)
            self.outbox += (ready[0], number, ready[1], number, ready[2])
            return
        block = ready[1][:-_DATA_HEAD_BYTES] if ready else self._block(request)
        self.outbox.append(frame(HEADERS, END_HEADERS, stream, block))
        self._unfinished[stream] = _Unfinished(memoryview(request.framed), self._peer[INITIAL_WINDOW_SIZE])
        self._send_unfinished()

    def _block(self, request: Request) -> bytes:
        """Encode the header fields; keep the frames if encoding them again would give the same bytes."""
        before = list(self._encoder.header_table.dynamic_entries)
        block = self._encoder.encode(request.fields)
        if before != list(self._encoder.header_table.dynamic_entries):
            self._ready.clear()  # the places in the table have shifted
        else:
            # A message of more than one frame is sent frame by frame; it needs the block alone.
            size = min(len(request.framed), _LARGEST_FRAME_BYTES)
            data = _HEAD.pack(size >> 16, size & 0xFFFF, DATA, END_STREAM, 0)[:_DATA_HEAD_BYTES]
            self._ready[request] = (frame(HEADERS, END_HEADERS, 0, block)[:5], block + data, request.framed)
        return block

    def _send_unfinished(self) -> None:
        largest = self._peer[MAX_FRAME_SIZE]
        for stream, each in list(self._unfinished.items()):
            while (
                each.rest
                and (size := min(len(each.rest), each.window_bytes, self._window_bytes, largest)) > 0
            ):
                flags = END_STREAM if size == len(each.rest) else 0
                self.outbox += (_HEAD.pack(size >> 16, size & 0xFFFF, DATA, flags, stream), each.rest[:size])
                each.rest = each.rest[size:]
                each.window_bytes -= size
                self._window_bytes -= size
            if not each.rest:
                del self._unfinished[stream]

    # -- answers --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[tuple[int, int]]:
        """Read what has come, split anywhere; return (call, number of its ending) of calls that ended.

        Raises:
            ProtocolError: it isn't HTTP/2 as a server may speak it.
        """
        data = self._input + data if self._input else data
        ended: list[tuple[int, int]] = []
        at, size, unpack = 0, len(data), _HEAD.unpack_from
        while size - at >= 9:
            high, low, kind, flags, stream = unpack(data, at)
            end = at + 9 + (high << 16 | low)
            if high and end - at - 9 > _DEFAULT_FRAME_BYTES:
                raise ProtocolError(
                    f"a frame of {end - at - 9} bytes, more than SETTINGS_MAX_FRAME_SIZE allows"
                )
            if end > size:
                break
            if kind == DATA:
                self._uncredited_bytes += end - at - 9
                if flags & END_STREAM:
                    self._end(stream, Ending(2, "no trailers: the answer ended with a DATA frame"), ended)
            elif kind == HEADERS and flags == _LAST:
                self._end(stream, data[at + 9 : end], ended)
            elif kind != HEADERS or flags != END_HEADERS:
                self._rare(kind, flags, stream, data[at + 9 : end], ended)
            at = end
        self._input = data[at:]
        if self._uncredited_bytes >= _CREDIT_BYTES:
            self.outbox.append(frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._uncredited_bytes)))
            self._uncredited_bytes = 0
        return ended

    def lose(self, reason: str) -> list[tuple[int, int]]:
        """Give up the connection: return (call, number of its ending) of all calls that are open."""
        self.usable = False
        return self._lose_from(0, reason)

    def _end(self, stream: int, ending: bytes | Ending, ended: list[tuple[int, int]]) -> None:
        place = stream >> 1
        if not stream & 1 or place >= len(self._calls):
            raise ProtocolError(f"an answer on stream {stream}, which was never opened")
        call = self._calls[place]
        if call < 0:
            return
        self._calls[place] = -1
        self._open -= 1
        number = self._endings.numbers.get(ending)
        ended.append((call, self._endings.number(ending) if number is None else number))
        if self._unfinished.pop(stream, None) is not None and not isinstance(ending, Ending):
            # Answered before all was sent; the server needn't wait for the rest.
            self.outbox.append(frame(RST_STREAM, 0, stream, _WORD.pack(_CANCEL)))

    def _rare(self, kind: int, flags: int, stream: int, payload: bytes, ended: list[tuple[int, int]]) -> None:
        """Frames that don't come with every call."""
        if kind in (HEADERS, CONTINUATION):
            self._headers_in_pieces(kind, flags, stream, payload, ended)
        elif kind == SETTINGS and not flags & ACK:
            self._set(_SETTING.iter_unpack(payload[: len(payload) // 6 * 6]))
        elif kind == PING and not flags & ACK:
            self.outbox.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._widen(stream, _word(payload) & _LARGEST)
        elif kind == RST_STREAM:
            self._end(stream, Ending(Failure.RESET, f"RST_STREAM {_error(payload)}"), ended)
        elif kind == GOAWAY:
            self.usable = False
            said = payload[8:].decode("utf-8", "replace")
            reason = f"GOAWAY {_error(payload[4:])} {said}".rstrip()
            ended += self._lose_from((_word(payload) + 1) >> 1, reason)
        elif kind == PUSH_PROMISE:
            raise ProtocolError("PUSH_PROMISE, which SETTINGS_ENABLE_PUSH 0 forbids")

    def _headers_in_pieces(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[tuple[int, int]]
    ) -> None:
        if kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]] if payload else payload
            if flags & PRIORITY:
                payload = payload[5:]
            self._partial = (stream, flags & END_STREAM, b"")
        if self._partial is None or self._partial[0] != stream:
            raise ProtocolError(f"CONTINUATION on stream {stream} without HEADERS")
        block = self._partial[2] + payload
        self._partial = (stream, self._partial[1], block)
        if flags & END_HEADERS:
            last, self._partial = self._partial[1], None
            if last:
                self._end(stream, block, ended)

    def _set(self, settings: Iterable[Sequence[int]]) -> None:
        for name, value in settings:
            if name == INITIAL_WINDOW_SIZE:  # RFC 9113, 6.9.2: it moves the windows of open streams too
                for each in self._unfinished.values():
                    each.window_bytes += value - self._peer[INITIAL_WINDOW_SIZE]
            elif name == HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
                self._ready.clear()
            self._peer[name] = value
        self.outbox.append(frame(SETTINGS, ACK, 0))
        self.greeted = True
        self._send_unfinished()

    def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window_bytes += size
        elif stream in self._unfinished:
            self._unfinished[stream].window_bytes += size
        self._send_unfinished()

    def _lose_from(self, place: int, reason: str) -> list[tuple[int, int]]:
        ended: list[tuple[int, int]] = []
        ending = Ending(Failure.LOST, reason)
        for each in range(place, len(self._calls)):
            self._end(2 * each + 1, ending, ended)
        return ended


def _error(payload: bytes) -> str:
    code = _word(payload)
    return _ERRORS[code] if code < len(_ERRORS) else f"error {code}"


def _word(payload: bytes) -> int:
    if len(payload) < 4:
        raise ProtocolError("a frame that is shorter than its kind allows")
    return int(_WORD.unpack_from(payload)[0])
