"""Peers that misuse the protocol are sent away; a well-behaved connection beside them goes on."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from tests.integration.http2.limits import pins
from tests.integration.http2.raw import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    PREFACE,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    message,
    request_headers,
)

FRAMES = 6_400


def sent_away(bench, peer, code=ENHANCE_YOUR_CALM):
    """Check that the connection got GOAWAY with ``code``, and is closed, and that others are served."""
    assert [each.error_code for each in peer.closed()][-1:] == [code]
    bench.serves()


FLOODS = {
    "settings": SettingsFrame(0, settings={1: 4096}),
    "empty settings": SettingsFrame(0),
    "ping": PingFrame(0, b"12345678"),
    "priority": PriorityFrame(1, depends_on=0, stream_weight=7),
    "empty data": DataFrame(1, b""),
}


@pytest.mark.parametrize("kind", FLOODS)
@pins("max_control_frames_burst")
def test_a_flood_of_control_frames(serve, kind):
    bench = serve(max_control_frames_burst=100, max_control_frames_per_s=1.0)
    beside = bench.connect()
    stream = beside.begin("/t/Echo")
    peer = bench.connect()
    peer.begin("/t/Echo")
    peer.flood(FLOODS[kind].serialize(), FRAMES)
    sent_away(bench, peer)
    beside.data(stream, message(b"as if nothing had been"), end=True)
    assert beside.outcome(stream).messages == [b"as if nothing had been"]


@pytest.mark.parametrize("kind", FLOODS)
@pins("max_control_frames_burst")
def test_a_burst_below_the_limit_is_no_flood(serve, kind):
    bench = serve(max_control_frames_burst=100, max_control_frames_per_s=1.0)
    peer = bench.connect()
    peer.begin("/t/Echo")
    peer.send_bytes(FLOODS[kind].serialize() * 95)
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


@pins("max_control_frames_per_s")
def test_control_frames_within_the_rate_are_no_flood(serve):
    bench = serve(max_control_frames_burst=10, max_control_frames_per_s=1e6)
    peer = bench.connect()
    for _ in range(100):
        peer.send_bytes(SettingsFrame(0).serialize() * 5)
        assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


@pytest.mark.parametrize("burst", [1, 5_000])
@pytest.mark.parametrize("kind", ["settings", "ping"])
def test_a_flood_that_nobody_reads_the_answers_of(serve, kind, burst):
    bench = serve(max_control_frames_burst=burst, max_control_frames_per_s=1.0)
    peer = bench.connect(receive_buffer_bytes=4096)
    peer.flood(FLOODS[kind].serialize(), 1_000_000)
    # Its socket may be too full for the GOAWAY.
    assert [each.error_code for each in peer.closed()] in ([], [ENHANCE_YOUR_CALM])
    bench.serves()


@pins("max_resets_burst")
def test_rapid_reset(serve):
    bench = serve(max_resets_burst=50, max_resets_per_s=1.0)
    peer = bench.connect()
    chunk = b""
    for _ in range(200):
        stream = peer.new_stream()
        chunk += peer.headers_frame(stream, request_headers("/t/Hold")).serialize()
        chunk += DataFrame(stream, message(b""), flags=["END_STREAM"]).serialize()
        chunk += RstStreamFrame(stream, error_code=CANCEL).serialize()
    peer.send_bytes(chunk)
    sent_away(bench, peer)
    assert bench.methods.held.empty()
    bench.settled()


@pins("max_resets_burst")
def test_making_the_server_reset_its_calls_is_rapid_reset_too(serve):
    bench = serve(max_resets_burst=50, max_resets_per_s=1.0)
    peer = bench.connect()
    for _ in range(200):
        try:
            peer.credit(peer.call("/t/Hold"), 2**31 - 1)
        except OSError:
            break
    sent_away(bench, peer)
    bench.settled()


@pins("max_resets_per_s")
def test_resets_within_the_rate_are_tolerated(serve):
    bench = serve(max_resets_burst=2, max_resets_per_s=1e6)
    peer = bench.connect()
    for _ in range(100):
        peer.reset(peer.begin("/t/Hold"))
        peer.synchronise()
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


@pytest.mark.parametrize("size", [0, 1, 16_000])
def test_a_continuation_flood(bench, size):
    peer = bench.connect()
    stream = peer.new_stream()
    peer.send(HeadersFrame(stream, peer.encoder.encode(request_headers("/t/Echo"))))
    # The last field repeated by its index: a byte of the frame is some 40 bytes of header list.
    peer.flood(ContinuationFrame(stream, b"\xbe" * size).serialize(), FRAMES)
    sent_away(bench, peer)


@pins("max_header_list_bytes")
def test_a_header_list_far_beyond_its_limit_ends_the_connection(serve):
    bench = serve(max_header_list_bytes=1_024)
    beside = bench.connect()
    peer = bench.connect()
    fields = request_headers("/t/Echo", *(("x-filler", "f" * 100) for _ in range(40)))
    peer.send(peer.headers_frame(peer.new_stream(), fields))
    sent_away(bench, peer)
    assert beside.outcome(beside.call("/t/Echo", b"x")).messages == [b"x"]


@pins("min_ping_interval_s")
def test_pings_oftener_than_allowed(serve):
    bench = serve(min_ping_interval_s=3600.0)
    peer = bench.connect()
    peer.send_bytes(PingFrame(0, b"12345678").serialize() * 4)
    sent_away(bench, peer)


@pins("min_ping_interval_s")
def test_keepalive_pings_with_the_interval_between_them(serve):
    bench = serve(min_ping_interval_s=1e-6)
    peer = bench.connect()
    for _ in range(20):
        peer.synchronise()
    bench.serves()


@pins("min_ping_interval_s")
@pytest.mark.parametrize("path", ["/t/Echo", "/t/Chat"])
def test_pings_between_answers_measure_bandwidth_and_are_tolerated(serve, path):
    """On one stream too, whose headers went out long ago."""
    bench = serve(min_ping_interval_s=3600.0)
    peer = bench.connect()
    stream = peer.begin("/t/Chat")
    for number in range(20):
        peer.synchronise()
        if path == "/t/Chat":
            peer.data(stream, message(b"x"))
            peer.until(lambda number=number: len(peer.replies[stream].messages) == number + 1)
        else:
            peer.outcome(peer.call(path, b"x"))
    bench.serves()


@pins("min_ping_interval_s")
def test_pings_during_an_upload_are_tolerated(serve):
    bench = serve(min_ping_interval_s=3600.0)
    peer = bench.connect()
    stream = peer.begin("/t/Collect")
    for _ in range(10):
        for _ in range(40):
            peer.data(stream, message(bytes(16_379)))
        peer.synchronise()
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).status == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x16\x03\x01" + bytes(60),
        bytes(300),
    ],
    ids=["http1", "bad magic", "tls", "zeros"],
)
def test_what_is_not_http2(bench, garbage):
    peer = bench.connect(handshake=False)
    peer.send_bytes(garbage)
    sent_away(bench, peer, PROTOCOL_ERROR)


BREACHES = {
    "no settings first": (PREFACE + PingFrame(0, b"12345678").serialize(), PROTOCOL_ERROR),
    "data on stream 0": (b"\0\0\1\0\0\0\0\0\0x", PROTOCOL_ERROR),
    "data on an idle stream": (DataFrame(99, b"x").serialize(), PROTOCOL_ERROR),
    "headers on an even stream": (
        HeadersFrame(2, Encoder().encode(request_headers("/t/Echo")), flags=["END_HEADERS"]).serialize(),
        PROTOCOL_ERROR,
    ),
    "reset of an idle stream": (RstStreamFrame(99).serialize(), PROTOCOL_ERROR),
    "continuation of nothing": (ContinuationFrame(1, b"").serialize(), PROTOCOL_ERROR),
    "window of the connection overflows": (
        WindowUpdateFrame(0, window_increment=2**31 - 1).serialize() * 2,
        3,
    ),
    "frame too large": ((1 << 20).to_bytes(3, "big") + b"\0\0\0\0\0\1", 6),
    "headers that don't decode": (HeadersFrame(1, b"\xff" * 9, flags=["END_HEADERS"]).serialize(), 9),
    "push of a client": (b"\0\0\4\5\4\0\0\0\1\0\0\0\2", PROTOCOL_ERROR),
    "settings with a stream": (b"\0\0\0\4\0\0\0\0\1", PROTOCOL_ERROR),
    "settings cut off": (b"\0\0\5\4\0\0\0\0\0hello", 6),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_protocol(bench, breach):
    data, code = BREACHES[breach]
    peer = bench.connect(handshake=not data.startswith(PREFACE))
    peer.send_bytes(data)
    sent_away(bench, peer, code)


def test_data_after_the_end_of_the_request(bench):
    peer = bench.connect()
    stream = peer.call("/t/Hold")
    bench.held()
    peer.data(stream, message(b"more"))
    sent_away(bench, peer, STREAM_CLOSED)
    assert bench.methods.cancelled.get(timeout=10) == "Hold"


def test_data_on_a_stream_that_is_over_is_ignored(bench):
    peer = bench.connect()
    stream = peer.begin("/t/None")
    peer.outcome(stream)
    peer.until(lambda: peer.replies[stream].reset is not None)
    peer.data(stream, message(b"late"), end=True)
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


def test_a_stream_id_that_goes_back_is_no_call(bench):
    peer = bench.connect()
    for stream in (9, 5):
        peer.send(peer.headers_frame(stream, request_headers("/t/Echo")))
        peer.data(stream, message(b"x"), end=True)
    assert peer.outcome(9).messages == [b"x"]
    peer.synchronise()
    assert not peer.replies[5].headers


def test_a_peer_that_says_goaway_gets_its_answers_first(bench):
    peer = bench.connect()
    stream = peer.call("/t/Hold")
    call = bench.held()
    peer.send(GoAwayFrame(0, last_stream_id=0))
    peer.synchronise()
    bench.on_loop(call.reply, b"still here")
    assert peer.outcome(stream).messages == [b"still here"]
    peer.closed()
