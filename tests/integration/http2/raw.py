"""An HTTP/2 peer that does exactly what a test says, right or wrong: blocking socket, hand-made frames.

``RawConnection`` keeps no state machine of its own: it sends what it is given, and sorts what comes
by stream. It acknowledges SETTINGS and PINGs, and credits DATA, unless told otherwise.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_S = 10.0

NO_ERROR, PROTOCOL_ERROR, STREAM_CLOSED, REFUSED_STREAM, CANCEL = 0, 1, 5, 7, 8
ENHANCE_YOUR_CALM = 11

Fields = list[tuple[str, str]]


def message(payload: bytes, flag: int = 0) -> bytes:
    """Frame a gRPC message."""
    return struct.pack(">BI", flag, len(payload)) + payload


def request_headers(path: str, *more: tuple[str, str], **replaced: str) -> Fields:
    """A gRPC request's headers; ``method="GET"`` or ``content_type=...`` replaces one."""
    return [
        (":method", replaced.get("method", "POST")),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bench"),
        ("content-type", replaced.get("content_type", "application/grpc")),
        ("te", "trailers"),
        *more,
    ]


@dataclass
class Reply:
    """What has come on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    data_sizes: list[int] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        """The gRPC status; fails if there is none."""
        return int({**self.headers, **self.trailers}["grpc-status"])

    @property
    def details(self) -> str:
        """The gRPC message."""
        return {**self.headers, **self.trailers}.get("grpc-message", "")

    @property
    def messages(self) -> list[bytes]:
        """The complete messages that have come."""
        found = []
        start = 0
        while len(self.body) >= start + 5:
            end = start + 5 + struct.unpack_from(">I", self.body, start + 1)[0]
            if end > len(self.body):
                break
            found.append(bytes(self.body[start + 5 : end]))
            start = end
        return found


class RawConnection:
    """One connection to ``address``. Waiting is reading: every read has a bound in time."""

    def __init__(
        self,
        port: int,
        settings: dict[int, int] | None = None,
        *,
        handshake: bool = True,
        acknowledges: bool = True,
        credits: bool = True,
        receive_buffer_bytes: int = 0,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.acknowledges = acknowledges
        self.credits = credits
        self.encoder = Encoder()
        self._decoder = Decoder()
        self._input = b""
        self.replies: dict[int, Reply] = defaultdict(Reply)
        self.seen: list[Frame] = []
        self._next_stream = 1
        if handshake:
            self.send_bytes(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())
            self.until(lambda: any(isinstance(each, SettingsFrame) for each in self.seen))

    # -- sending ----------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """Send anything."""
        self.socket.sendall(data)

    def send(self, *frames: Frame) -> None:
        """Send frames, in one write."""
        self.send_bytes(b"".join(each.serialize() for each in frames))

    def flood(self, data: bytes, times: int) -> None:
        """Send ``data`` again and again, until the peer has had enough or ``times`` is reached."""
        chunk = data * 64
        try:
            for _ in range(times // 64):
                self.socket.sendall(chunk)
        except OSError:
            pass  # closed by the peer: what it said before is still to be read

    def new_stream(self) -> int:
        """Return the next odd stream id."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        return stream

    def headers_frame(self, stream: int, fields: Iterable[tuple[str, str]], *flags: str) -> HeadersFrame:
        """Encode a HEADERS frame with END_HEADERS. It must be sent, and in this order."""
        return HeadersFrame(stream, self.encoder.encode(fields), flags=["END_HEADERS", *flags])

    def begin(self, path: str, *more: tuple[str, str], **replaced: str) -> int:
        """Send a request's headers; return its stream."""
        stream = self.new_stream()
        self.send(self.headers_frame(stream, request_headers(path, *more, **replaced)))
        return stream

    def data(self, stream: int, payload: bytes, end: bool = False) -> None:
        """Send one DATA frame."""
        self.send(DataFrame(stream, payload, flags=["END_STREAM"] if end else []))

    def data_frames(self, stream: int, payload: bytes) -> None:
        """Send as many DATA frames as it takes, the last with END_STREAM."""
        for start in range(0, len(payload), 16_384):
            self.data(stream, payload[start : start + 16_384], end=start + 16_384 >= len(payload))

    def call(self, path: str, payload: bytes = b"", *more: tuple[str, str]) -> int:
        """Send a whole unary request in one write; return its stream."""
        stream = self.new_stream()
        self.send(
            self.headers_frame(stream, request_headers(path, *more)),
            DataFrame(stream, message(payload), flags=["END_STREAM"]),
        )
        return stream

    def reset(self, stream: int, code: int = CANCEL) -> None:
        """Send RST_STREAM."""
        self.send(RstStreamFrame(stream, error_code=code))

    def credit(self, stream: int, size: int) -> None:
        """Send WINDOW_UPDATE."""
        self.send(WindowUpdateFrame(stream, window_increment=size))

    # -- receiving --------------------------------------------------------------------------------

    def frames(self) -> Iterator[Frame]:
        """Yield frames as they come, each noted already, until the peer closes."""
        while True:
            while len(self._input) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(self._input)[:9])
                if len(self._input) < 9 + length:
                    break
                frame.parse_body(memoryview(self._input)[9 : 9 + length])
                self._input = self._input[9 + length :]
                self._note(frame)
                yield frame
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return
            if not more:
                return
            self._input += more

    def _note(self, frame: Any) -> None:
        self.seen.append(frame)
        reply = self.replies[frame.stream_id]
        if isinstance(frame, HeadersFrame):
            fields = dict(self._decoder.decode(frame.data))
            (reply.trailers if reply.headers else reply.headers).update(fields)
        elif isinstance(frame, DataFrame):
            reply.body += frame.data
            reply.data_sizes.append(len(frame.data))
            if self.credits and frame.data:
                self.credit(0, len(frame.data))
                self.credit(frame.stream_id, len(frame.data))
        elif isinstance(frame, RstStreamFrame):
            reply.reset = frame.error_code
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags and self.acknowledges:
            self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags and self.acknowledges:
            self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        reply.ended = reply.ended or reply.reset is not None or "END_STREAM" in frame.flags

    def until(self, condition: Callable[[], object]) -> None:
        """Read until ``condition`` holds; fail if the peer closes before."""
        if condition():
            return
        for _ in self.frames():
            if condition():
                return
        raise AssertionError(f"closed by the server; seen: {self.seen[-5:]}")

    def outcome(self, stream: int) -> Reply:
        """Read until the stream has ended; return what came on it."""
        self.until(lambda: self.replies[stream].ended)
        return self.replies[stream]

    def synchronise(self) -> None:
        """Return when the server has handled all that was sent: it answers a PING."""
        word = struct.pack(">Q", len(self.seen) + 1)
        self.send(PingFrame(0, word))
        self.until(
            lambda: any(
                isinstance(each, PingFrame) and "ACK" in each.flags and each.opaque_data == word
                for each in self.seen
            )
        )

    def closed(self) -> list[GoAwayFrame]:
        """Read until the server closes, and close too; return its GOAWAYs."""
        for _ in self.frames():
            pass
        self.close()
        return [each for each in self.seen if isinstance(each, GoAwayFrame)]

    def close(self) -> None:
        """Drop the connection."""
        self.socket.close()
