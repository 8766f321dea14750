"""HTTP/2 frames as bytes, right or wrong: nothing here checks what it is told to write."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _string(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest = len(value) - 127
    length = bytearray([127])
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes(length) + bytes([rest]) + value


def hpack(fields: Sequence[tuple[bytes, bytes]], indexed: bool = False) -> bytes:
    """Encode header fields as literals; ``indexed`` has the peer put them into its dynamic table."""
    first = b"\x40" if indexed else b"\x00"
    return b"".join(first + _string(name) + _string(value) for name, value in fields)


def message(body: bytes, flag: int = 0) -> bytes:
    """One gRPC message."""
    return bytes([flag]) + struct.pack(">I", len(body)) + body


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Take a run of whole frames apart: (kind, flags, stream, payload).

    Raises:
        ValueError: it ends within a frame.
    """
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        if at + 9 + size > len(data):
            raise ValueError(f"a frame of {size} bytes, and {len(data) - at - 9} are there")
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        yield data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + size]
        at += 9 + size
