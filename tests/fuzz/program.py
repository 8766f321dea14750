"""The fuzzer's inputs: any bytes are a program that says what peer and handlers do, in which order.

Each operation takes a byte, and its operands the bytes that follow; a program that has ended reads as
zeros. So mutated and spliced programs are programs again, made of frames that are mostly right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from tests.fuzz import wire
from tests.fuzz.bench import Bench

PATHS = (
    b"/later",
    b"/echo",
    b"/rpc",
    b"/fails",
    b"/raises",
    b"/never",
    b"/replies-and-raises",
    b"/rpc-raises",
    b"/none",
)
SIZES = (0, 1, 5, 100, 4096, 9000, 20_000, 70_000)
TIMEOUTS = (b"", b"1H", b"0n", b"99999999S", b"1x", b"", b"123456789S", b"S")
ENCODINGS = (b"", b"gzip", b"identity", b"deflate", b"br", b"")
INCREMENTS = (1, 100, 65_535, 2**20, 2**31 - 1, 0)
STREAMS = 12
MOST_OPERATIONS = 400


class Reader:
    """Reads operands off a program."""

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._program)

    def byte(self) -> int:
        value = 0 if self.at_end else self._program[self._at]
        self._at += 1
        return value

    def pick(self, choices: tuple) -> object:
        return choices[self.byte() % len(choices)]

    def some(self) -> bytes:
        size = self.byte() % 64
        taken = self._program[self._at : self._at + size]
        self._at += size
        return taken


class Machine:
    """Runs one program on one bench."""

    def __init__(self, program: bytes) -> None:
        self.reader = Reader(program)
        mode = self.reader.byte()
        self.bench = Bench(compression=mode & 3, slow=mode & 4 > 0, tls=mode & 8 > 0)
        self._compress = mode & 3 > 1
        self._next_stream = 1
        self._wire = bytearray()
        self._pieces: list[bytes] = []
        if mode & 0x80 == 0:
            self.put(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0))

    def put(self, data: bytes) -> None:
        """Queue bytes for the next delivery."""
        self._pieces.append(data)

    def run(self) -> Bench:
        """Run the program to its end, then lose the connection."""
        for _ in range(MOST_OPERATIONS):
            if self.reader.at_end:
                break
            OPERATIONS[self.reader.byte() % len(OPERATIONS)](self)
        self.deliver_all()
        self.bench.end()
        return self.bench

    # -- the peer -------------------------------------------------------------------------------

    def _stream(self) -> int:
        """One of the streams so far, or by chance one that isn't there."""
        return max(0, self._next_stream - 2 - 2 * (self.reader.byte() % STREAMS))

    def call(self) -> None:
        """A call's headers, all as they should be, and its message."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        path = self.reader.pick(PATHS)
        size = self.reader.pick(SIZES)
        ends = self.reader.byte() % 4 > 0
        fields = _request(path) + ([(b"grpc-accept-encoding", b"gzip, deflate")] if self._compress else [])
        self.put(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.hpack(fields, indexed=bool(size))))
        self._data(stream, wire.message(bytes(size)), ends)

    def headers(self) -> None:
        """A call's headers with oddities."""
        reader = self.reader
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        fields = _request(reader.pick(PATHS))
        odd = reader.byte()
        if odd & 1:
            fields.append((b"grpc-timeout", reader.pick(TIMEOUTS)))
        if odd & 2:
            fields.append((b"grpc-encoding", reader.pick(ENCODINGS)))
        if odd & 4:
            fields[0] = (b":method", b"GET")
        if odd & 8:
            fields[4] = (b"content-type", reader.some())
        if odd & 16:
            fields.append((b"x-more", b"v" * (reader.byte() * 8)))
        if odd & 32:
            fields.append((reader.some(), reader.some()))
        flags = wire.END_STREAM if odd & 64 else 0
        block = wire.hpack(fields, indexed=odd & 128 > 0)
        self._header_frames(stream, flags, block)

    def _header_frames(self, stream: int, flags: int, block: bytes) -> None:
        how = self.reader.byte() % 8
        if how == 1:
            padding = self.reader.byte()
            block = bytes([padding]) + block + bytes(padding)
            self.put(wire.frame(wire.HEADERS, flags | wire.END_HEADERS | wire.PADDED, stream, block))
        elif how == 2:
            block = struct.pack(">IB", self._stream(), 7) + block
            self.put(wire.frame(wire.HEADERS, flags | wire.END_HEADERS | wire.PRIORITIZED, stream, block))
        elif how == 3:
            self.put(wire.frame(wire.HEADERS, flags, stream, block[:20]))
            self.put(wire.frame(wire.CONTINUATION, 0, stream, block[20:40]))
            self.put(wire.frame(wire.CONTINUATION, wire.END_HEADERS, stream, block[40:]))
        else:
            self.put(wire.frame(wire.HEADERS, flags | wire.END_HEADERS, stream, block))

    def _data(self, stream: int, payload: bytes, ends: bool) -> None:
        while len(payload) > 16_384:
            self.put(wire.frame(wire.DATA, 0, stream, payload[:16_384]))
            payload = payload[16_384:]
        self.put(wire.frame(wire.DATA, wire.END_STREAM if ends else 0, stream, payload))

    def data(self) -> None:
        """Some of a message, one, or several, on an open stream."""
        stream, size, how = self._stream(), self.reader.pick(SIZES), self.reader.byte()
        body = bytes(range(256)) * (size // 256 + 1)
        payload = wire.message(body[:size])
        kind = how >> 3
        if kind % 8 == 1:
            payload *= 3
        elif kind % 8 == 2:
            payload = payload[: self.reader.byte()]
        elif kind % 8 == 3:
            payload = bytes([self.reader.byte() & 1]) + struct.pack(">I", 1 << (self.reader.byte() % 32))
        elif kind % 8 == 4:
            payload = wire.message(zlib.compress(body[:size]), 1)
        elif kind % 8 == 5:
            compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
            payload = wire.message(compressor.compress(bytes(size * 40)) + compressor.flush(), 1)
        elif kind % 8 == 6:
            payload = self.reader.some()
        if how & 2:
            payload = bytes([3]) + payload[:16_000] + bytes(3)
            self.put(wire.frame(wire.DATA, wire.PADDED | (how & 1), stream, payload))
        else:
            self._data(stream, payload, how & 1 > 0)

    def trailers(self) -> None:
        """The request's trailers."""
        flags = wire.END_HEADERS | (self.reader.byte() & wire.END_STREAM)
        self.put(wire.frame(wire.HEADERS, flags, self._stream(), wire.hpack([(b"x-trailer", b"1")])))

    def reset(self) -> None:
        """RST_STREAM."""
        self.put(wire.frame(wire.RST_STREAM, 0, self._stream(), struct.pack(">I", self.reader.byte() % 16)))

    def window(self) -> None:
        """WINDOW_UPDATE for a stream or the connection."""
        stream = self._stream() if self.reader.byte() & 1 else 0
        self.put(wire.frame(wire.WINDOW_UPDATE, 0, stream, struct.pack(">I", self.reader.pick(INCREMENTS))))

    def settings(self) -> None:
        """SETTINGS: window sizes, frame sizes and table sizes that change under way."""
        value = self.reader.pick((0, 1, 100, 4096, 16_384, 65_535, 2**20, 2**24 - 1, 2**31 - 1, 2**32 - 1))
        entry = struct.pack(">HI", self.reader.byte() % 10, value)
        self.put(wire.frame(wire.SETTINGS, 0, 0, entry * (1 + self.reader.byte() % 3)))

    def control(self) -> None:
        """Frames that are beside the calls: acknowledgements, pings, priorities, GOAWAY, unknown ones."""
        choice = self.reader.byte() % 8
        ready = (
            wire.frame(wire.SETTINGS, wire.ACK, 0),
            wire.frame(wire.PING, 0, 0, b"12345678"),
            wire.frame(wire.PING, wire.ACK, 0, bytes(8)),
            wire.frame(wire.PRIORITY, 0, self._stream(), struct.pack(">IB", self._stream(), 1)),
            wire.frame(wire.GOAWAY, 0, 0, struct.pack(">II", self._stream(), 0)),
            wire.frame(99, 255, self._stream(), self.reader.some()),
            wire.frame(wire.DATA, 0, self._stream()),
            wire.frame(wire.PING, 0, 0, b"12345678") * 50,
        )
        self.put(ready[choice])

    def anything(self) -> None:
        """A frame of any kind with any payload, or no frame at all."""
        reader = self.reader
        if reader.byte() & 1:
            self.put(reader.some())
        else:
            self.put(wire.frame(reader.byte() % 11, reader.byte(), self._stream(), reader.some()))

    def spoil(self) -> None:
        """Change what was put last: a bit, its length, its end; or send it twice."""
        if not self._pieces:
            return
        last = bytearray(self._pieces.pop())
        how, where = self.reader.byte() % 4, self.reader.byte()
        if how == 0 and last:
            last[where % len(last)] ^= 1 << (self.reader.byte() % 8)
        elif how == 1:
            last = last[: where % (len(last) + 1)]
        elif how == 2:
            last = last + last
        elif len(last) > 9:
            last[where % 9] = self.reader.byte()
        self._pieces.append(bytes(last))

    def deliver(self) -> None:
        """Let the session read what was put, in pieces of some size."""
        size = self.reader.pick((100_000, 100_000, 1000, 17, 1))
        pending = b"".join(self._pieces)
        self._pieces.clear()
        if size < 100:  # byte by byte, but not for hours
            for at in range(0, min(len(pending), 600), size):
                self.bench.receive(pending[at : min(at + size, 600)])
            pending = pending[600:]
            size = 100_000
        for at in range(0, len(pending), size):
            self.bench.receive(pending[at : at + size])

    def deliver_all(self) -> None:
        """Deliver at once, and run what follows from it."""
        self.deliver()
        self.bench.tick()

    # -- handlers and transport -----------------------------------------------------------------

    def tick(self) -> None:
        """One turn of the loop."""
        self.bench.tick()

    def answer(self) -> None:
        """Answer one of the calls that wait, or one that doesn't any more."""
        calls, size, how = self.bench.calls, self.reader.pick(SIZES), self.reader.byte()
        if calls:
            call = calls[self.reader.byte() % len(calls)]
            if how % 4:
                self.bench.act(lambda: call.reply(bytes(size)))
            else:
                self.bench.act(lambda: call.fail(how >> 2))

    def answer_rpc(self) -> None:
        """Let an RPC's handler do something."""
        rpcs, size, how = self.bench.rpcs, self.reader.pick(SIZES), self.reader.byte()
        if not rpcs:
            return
        rpc = rpcs[self.reader.byte() % len(rpcs)]
        stream = rpc.stream
        actions = (
            lambda: stream.send_message(bytes(size)),
            lambda: stream.taken(rpc.inbox.pop(0)) if rpc.inbox else None,
            lambda: stream.finish(how % 17, "ended: ü", [(b"x-end", b"1")] if how & 16 else []),
            lambda: stream.send_headers([(b"x-first", b"1")]),
        )
        self.bench.act(actions[how % 4])

    def network(self) -> None:
        """The socket fills up or empties, the transport drains, or the connection breaks."""
        bench, session = self.bench, self.bench.session
        actions: tuple[Callable[[], object], ...] = (
            bench.transport.fill,
            bench.transport.drain,
            bench.transport.drain,
            session.shutdown_notice,
            session.goaway,
            session.ping,
            session.abort,
            bench.lose,
        )
        action = actions[self.reader.byte() % len(actions)]
        if not bench.lost:
            bench.act(action)


def _request(path: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


#: The number of times an operation stands here is its share among random bytes.
OPERATIONS: tuple[Callable[[Machine], None], ...] = (
    *[Machine.call] * 4,
    *[Machine.headers] * 3,
    *[Machine.data] * 4,
    *[Machine.deliver_all] * 4,
    *[Machine.answer] * 3,
    *[Machine.answer_rpc] * 3,
    *[Machine.reset] * 2,
    Machine.deliver,
    Machine.tick,
    Machine.trailers,
    Machine.window,
    Machine.settings,
    Machine.control,
    Machine.anything,
    Machine.spoil,
    Machine.network,
)


def run_program(program: bytes) -> Bench:
    """Run a program; raise if something that must hold doesn't."""
    return Machine(program).run()
