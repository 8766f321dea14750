"""Right calls in every shape that HTTP/2 allows them."""

from __future__ import annotations

import gzip
import zlib

import h2.config
import h2.connection
import h2.events
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PriorityFrame,
    SettingsFrame,
)
from tests.integration.http2.raw import PREFACE, message, request_headers


def test_interleaved_streams_get_their_own_answers(bench):
    peer = bench.connect()
    streams = [peer.begin("/t/Echo") for _ in range(20)]
    bodies = [message(b"%03d" % number * 50) for number in range(20)]
    for start in range(0, 155, 31):
        for stream, body in zip(streams, bodies, strict=True):
            peer.data(stream, body[start : start + 31])
    for stream in reversed(streams):
        peer.data(stream, b"", end=True)
    for number, stream in enumerate(streams):
        reply = peer.outcome(stream)
        assert (reply.status, reply.messages) == (0, [b"%03d" % number * 50])


def test_every_byte_may_come_alone(bench):
    peer = bench.connect(handshake=False)
    stream = peer.new_stream()
    data = message(b"slowly")
    everything = PREFACE + SettingsFrame(0).serialize()
    everything += peer.headers_frame(stream, request_headers("/t/Echo")).serialize()
    everything += DataFrame(stream, data[:3]).serialize() + DataFrame(stream, data[3:]).serialize()
    everything += DataFrame(stream, b"", flags=["END_STREAM"]).serialize()
    for index in range(len(everything)):
        peer.send_bytes(everything[index : index + 1])
    assert peer.outcome(stream).messages == [b"slowly"]


@pytest.mark.parametrize("size", range(1, 12))
def test_a_message_may_be_cut_anywhere(bench, size):
    peer = bench.connect()
    stream = peer.begin("/t/Chat")
    body = message(b"") + message(b"a") + message(b"bcdefgh")
    peer.send(*(DataFrame(stream, body[start : start + size]) for start in range(0, len(body), size)))
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).messages == [b"", b"a", b"bcdefgh"]


def test_one_frame_may_hold_many_messages(bench):
    peer = bench.connect()
    stream = peer.begin("/t/Collect")
    peer.data(stream, b"".join(message(b"%d" % number) for number in range(100)), end=True)
    assert peer.outcome(stream).messages == [b"|".join(b"%d" % number for number in range(100))]


def test_a_large_message_comes_in_many_frames(bench):
    peer = bench.connect()
    payload = bytes(range(256)) * 4096
    body = message(payload)
    stream = peer.begin("/t/Echo")
    # A little more than the window of 1 MiB: so it must be opened again on the way.
    for start in range(0, len(body), 16384):
        peer.data(stream, body[start : start + 16384])
        if start == 512 << 10:
            peer.until(lambda: any(each.stream_id == stream for each in peer.seen))
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).messages == [payload]


def test_answers_come_while_the_request_goes_on(bench):
    peer = bench.connect()
    stream = peer.begin("/t/Chat")
    for number in range(5):
        peer.data(stream, message(b"%d" % number))
        peer.until(lambda number=number: len(peer.replies[stream].messages) == number + 1)
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).status == 0


def test_padding_and_priority_are_legal(bench):
    peer = bench.connect()
    stream = peer.new_stream()
    fields = peer.encoder.encode(request_headers("/t/Echo"))
    peer.send(
        PriorityFrame(stream, depends_on=0, stream_weight=200, exclusive=True),
        HeadersFrame(
            stream,
            fields,
            pad_length=17,
            depends_on=0,
            stream_weight=9,
            flags=["END_HEADERS", "PADDED", "PRIORITY"],
        ),
        DataFrame(stream, message(b"padded")[:7], pad_length=255, flags=["PADDED"]),
        DataFrame(stream, b"", pad_length=3, flags=["PADDED"]),
        DataFrame(stream, message(b"padded")[7:], pad_length=0, flags=["PADDED", "END_STREAM"]),
        PriorityFrame(stream, depends_on=0, stream_weight=1),
    )
    assert peer.outcome(stream).messages == [b"padded"]


def test_padding_is_credited(bench):
    peer = bench.connect()
    stream = peer.begin("/t/Echo")
    body = message(bytes(8000))
    padded = DataFrame(stream, b"", pad_length=255, flags=["PADDED"]).serialize()
    for start in range(0, len(body), 1):
        peer.send_bytes(padded + DataFrame(stream, body[start : start + 1]).serialize())
        if start % 500 == 0:
            peer.synchronise()  # 2 MiB of padding in all, through a window of 1 MiB
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).messages == [bytes(8000)]


def test_headers_may_come_in_continuations(bench):
    peer = bench.connect()
    stream = peer.new_stream()
    block = peer.encoder.encode(request_headers("/t/Echo", ("x-padding", "p" * 200)))
    parts = [block[start : start + 40] for start in range(0, len(block), 40)]
    peer.send(
        HeadersFrame(stream, parts[0]),
        *(ContinuationFrame(stream, part) for part in parts[1:-1]),
        ContinuationFrame(stream, parts[-1], flags=["END_HEADERS"]),
        DataFrame(stream, message(b"x"), flags=["END_STREAM"]),
    )
    assert peer.outcome(stream).messages == [b"x"]


def test_trailers_of_the_request_end_it(bench):
    peer = bench.connect()
    for path in ("/t/Echo", "/t/Collect"):
        stream = peer.begin(path)
        peer.data(stream, message(b"then trailers"))
        peer.send(peer.headers_frame(stream, [("x-checksum", "1")], "END_STREAM"))
        assert peer.outcome(stream).messages == [b"then trailers"]


@pytest.mark.parametrize(
    ("name", "packed"), [("gzip", gzip.compress(b"small" * 9)), ("deflate", zlib.compress(b"small" * 9))]
)
@pytest.mark.parametrize("path", ["/t/Echo", "/t/Collect"])
def test_compressed_messages_are_read(bench, name, packed, path):
    peer = bench.connect()
    stream = peer.begin(path, ("grpc-encoding", name))
    peer.data(stream, message(packed, flag=1), end=True)
    assert peer.outcome(stream).messages == [b"small" * 9]


def test_an_uncompressed_message_is_fine_under_an_encoding(bench):
    peer = bench.connect()
    stream = peer.begin("/t/Echo", ("grpc-encoding", "gzip"))
    peer.data(stream, message(b"plain"), end=True)
    assert peer.outcome(stream).messages == [b"plain"]


def test_a_strict_peer_has_nothing_to_object_to(bench):
    """python-h2 checks flow control and stream states of what it is sent."""
    peer = bench.connect(handshake=False)
    strict = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    strict.initiate_connection()
    for number in range(50):
        stream = strict.get_next_available_stream_id()
        path = ("/t/Echo", "/t/Count", "/t/Fail", "/t/None", "/t/Chat")[number % 5]
        strict.send_headers(stream, request_headers(path))
        strict.send_data(
            stream, message(b"20 9000" if path == "/t/Count" else b"text"), end_stream=number % 2 == 0
        )
        if number % 2:
            strict.end_stream(stream)
    ended = 0
    while ended < 50:
        peer.send_bytes(strict.data_to_send())
        for event in strict.receive_data(peer.socket.recv(1 << 16)):
            if isinstance(event, h2.events.DataReceived):
                strict.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            ended += isinstance(event, h2.events.StreamEnded)
    bench.settled()
