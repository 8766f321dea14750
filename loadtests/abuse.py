"""A peer that behaves badly, on raw sockets: the soak's share of calls that don't end as they should."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH = b"/inference.GRPCInferenceService/ModelInfer"
STREAM_PATH = b"/inference.GRPCInferenceService/ModelStreamInfer"

_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4
_CANCEL = struct.pack(">I", 8)
#: Stays within the server's default of resets that one connection may make in a burst.
CALLS_PER_CONNECTION = 400
_CALLS_PER_BATCH = 20
_TIMEOUT_S = 20.0


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _headers(stream: int, path: bytes = PATH, timeout: bytes = b"") -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"soak")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    if timeout:
        fields.append((b"grpc-timeout", timeout))
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )
    return _frame(_HEADERS, _END_HEADERS, stream, block)


class Abuser:
    """Makes calls in the ways of ``kinds``; ``counts`` says how many of each."""

    def __init__(self, port: int, framed: bytes, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._port = port
        self._framed = framed
        self._chance = chance
        self.kinds: dict[str, Callable[[int], bytes]] = {
            "reset after the request": self._reset_after,
            "reset within the request": self._reset_within,
            "deadline of 1 ns to 2 ms": self._expired,
            "malformed message": self._malformed,
            "stream, reset": self._streaming,
            "unknown method": self._unknown,
        }

    def connection(self, calls: int = CALLS_PER_CONNECTION) -> int:
        """Open a connection, make ``calls`` on it, and end it in some way; return ``calls``."""
        reads = self._chance.random() < 0.8
        with socket.create_connection(("127.0.0.1", self._port), _TIMEOUT_S) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                peer.sendall(PREFACE + _frame(_SETTINGS, 0, 0))
                for first in range(0, calls, _CALLS_PER_BATCH):
                    self._batch(peer, 1 + 2 * first, reads)
                self._end(peer, 1 + 2 * calls)
            except OSError:
                self.counts["connection ended by the server"] += 1
        self.counts["connection read from" if reads else "connection never read from"] += 1
        return calls

    def _batch(self, peer: socket.socket, stream: int, reads: bool) -> None:
        """Make some calls, cut into pieces anywhere, so that resets also come after a call has begun."""
        batch = bytearray()
        for number in range(_CALLS_PER_BATCH):
            name = self._chance.choice(list(self.kinds))
            batch += self.kinds[name](stream + 2 * number)
            self.counts[name] += 1
        cuts = sorted(self._chance.randrange(len(batch)) for _ in range(_CALLS_PER_BATCH))
        for start, end in pairwise((0, *cuts, len(batch))):
            peer.sendall(batch[start:end])
        if reads:
            peer.recv(1 << 16)

    def _end(self, peer: socket.socket, stream: int) -> None:
        how = self._chance.choice(("closed", "reset", "within a message", "within a frame", "not HTTP/2"))
        self.counts[f"connection {how}"] += 1
        if how == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "within a message":
            peer.sendall(_headers(stream) + _frame(_DATA, 0, stream, self._framed[:20]))
        elif how == "within a frame":
            peer.sendall(_headers(stream)[:25])
        elif how == "not HTTP/2":
            peer.sendall(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n" * 4)
        else:
            peer.sendall(_headers(stream) + _frame(_DATA, _END_STREAM, stream, self._framed))

    # -- the kinds of calls ---------------------------------------------------------------------

    def _reset_after(self, stream: int) -> bytes:
        request = _headers(stream) + _frame(_DATA, _END_STREAM, stream, self._framed)
        return request + _frame(_RST_STREAM, 0, stream, _CANCEL)

    def _reset_within(self, stream: int) -> bytes:
        part = self._framed[: self._chance.randrange(len(self._framed))]
        return _headers(stream) + _frame(_DATA, 0, stream, part) + _frame(_RST_STREAM, 0, stream, _CANCEL)

    def _expired(self, stream: int) -> bytes:
        timeout = self._chance.choice((b"1n", b"100u", b"2m"))
        return _headers(stream, timeout=timeout) + _frame(_DATA, _END_STREAM, stream, self._framed)

    def _malformed(self, stream: int) -> bytes:
        body = bytearray(self._framed)
        body[self._chance.randrange(5, min(60, len(body)))] ^= 1 << self._chance.randrange(8)
        return _headers(stream) + _frame(_DATA, _END_STREAM, stream, bytes(body))

    def _streaming(self, stream: int) -> bytes:
        request = _headers(stream, STREAM_PATH, b"99999999S") + _frame(_DATA, 0, stream, self._framed)
        return request + _frame(_RST_STREAM, 0, stream, _CANCEL)

    def _unknown(self, stream: int) -> bytes:
        return _headers(stream, b"/nobody/Knows") + _frame(_DATA, _END_STREAM, stream, self._framed)
