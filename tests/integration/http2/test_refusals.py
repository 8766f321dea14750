"""Wrong calls: each gets its status, and the connection lives on."""

from __future__ import annotations

import gzip
import struct
from urllib.parse import unquote_to_bytes

import pytest
from hyperframe.frame import DataFrame
from tests.integration.http2.limits import pins
from tests.integration.http2.raw import message, request_headers

UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED, INTERNAL = 2, 4, 8, 10, 12, 13


def answered(peer, stream):
    """Return the outcome, having seen that the connection is none the worse for it."""
    reply = peer.outcome(stream)
    assert peer.outcome(peer.call("/t/Echo", b"next")).messages == [b"next"]
    return reply


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Count"])
def test_no_message_where_one_is_due(bench, path):
    peer = bench.connect()
    stream = peer.new_stream()
    peer.send(peer.headers_frame(stream, request_headers(path), "END_STREAM"))
    assert answered(peer, stream).status == UNIMPLEMENTED
    stream = peer.begin(path)
    peer.data(stream, b"", end=True)
    assert answered(peer, stream).status == UNIMPLEMENTED


def test_no_message_is_fine_for_a_stream_of_them(bench):
    peer = bench.connect()
    stream = peer.new_stream()
    peer.send(peer.headers_frame(stream, request_headers("/t/Collect"), "END_STREAM"))
    assert answered(peer, stream).messages == [b""]


@pytest.mark.parametrize("end", [True, False])
def test_two_messages_on_a_unary_call(bench, end):
    peer = bench.connect()
    stream = peer.begin("/t/Echo")
    peer.data(stream, message(b"one") + message(b"two"), end=end)
    reply = answered(peer, stream)
    assert (reply.status, reply.messages) == (UNIMPLEMENTED, [])


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Collect"])
@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_a_request_that_ends_within_a_message(bench, path, size):
    peer = bench.connect()
    stream = peer.begin(path)
    peer.data(stream, message(b"hello")[:size], end=True)
    assert answered(peer, stream).status == INTERNAL
    bench.settled()


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Collect"])
@pytest.mark.parametrize("flag", [1, 2, 255])
def test_a_compressed_flag_without_an_encoding(bench, path, flag):
    peer = bench.connect()
    stream = peer.begin(path)
    peer.data(stream, message(b"hello", flag), end=True)
    assert answered(peer, stream).status == INTERNAL


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Chat"])
@pytest.mark.parametrize(
    "packed",
    [b"", b"not gzip", gzip.compress(b"cut off")[:-4], b"\x1f\x8b"],
    ids=["none", "bad", "cut", "magic"],
)
def test_a_message_that_does_not_decompress(bench, path, packed):
    peer = bench.connect()
    stream = peer.begin(path, ("grpc-encoding", "gzip"))
    peer.data(stream, message(packed, flag=1) + message(b"after it"), end=True)
    reply = answered(peer, stream)
    assert (reply.status, reply.messages) == (INTERNAL, [])
    bench.settled()


def test_an_unknown_encoding_says_which_are_known(bench):
    peer = bench.connect()
    reply = answered(peer, peer.call("/t/Echo", b"x", ("grpc-encoding", "snappy")))
    assert reply.status == UNIMPLEMENTED
    assert "gzip" in reply.headers["grpc-accept-encoding"]


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Collect"])
@pins("max_message_bytes")
def test_a_bomb_is_not_unpacked_beyond_max_message_bytes(serve, path):
    bench = serve(max_message_bytes=10_000)
    peer = bench.connect()
    stream = peer.begin(path, ("grpc-encoding", "gzip"))
    peer.data(stream, message(gzip.compress(bytes(10_001)), flag=1), end=True)
    assert answered(peer, stream).status == RESOURCE_EXHAUSTED
    stream = peer.begin(path, ("grpc-encoding", "gzip"))
    peer.data(stream, message(gzip.compress(bytes(10_000)), flag=1), end=True)
    assert answered(peer, stream).messages == [bytes(10_000)]


@pytest.mark.parametrize("size", [1025, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("path", ["/t/Echo", "/t/Chat"])
@pins("max_message_bytes")
def test_a_message_beyond_max_message_bytes_is_refused_by_its_prefix(serve, path, size):
    bench = serve(max_message_bytes=1024)
    peer = bench.connect()
    stream = peer.begin(path)
    peer.data(stream, struct.pack(">BI", 0, size) + b"its beginning")
    reply = answered(peer, stream)
    assert (reply.status, reply.reset) == (RESOURCE_EXHAUSTED, 0)
    assert str(size) in reply.details
    bench.settled()


@pytest.mark.parametrize(("path", "request_"), [("/t/Zeros", b"1025"), ("/t/Count", b"1 1025")])
@pins("max_message_bytes")
def test_a_reply_beyond_max_message_bytes_is_refused(serve, path, request_):
    bench = serve(max_message_bytes=1024)
    peer = bench.connect()
    assert answered(peer, peer.call(path, request_)).status == RESOURCE_EXHAUSTED
    assert len(answered(peer, peer.call(path, request_.replace(b"1025", b"1024"))).messages[0]) == 1024


@pins("max_connection_receive_bytes")
def test_partial_messages_are_bounded_by_connection(serve):
    bench = serve(max_connection_receive_bytes=10_000)
    peer = bench.connect()
    first = peer.begin("/t/Echo")
    peer.data(first, struct.pack(">BI", 0, 6_000) + bytes(10))
    second = peer.begin("/t/Echo")
    peer.data(second, struct.pack(">BI", 0, 6_000) + bytes(10))
    assert peer.outcome(second).status == RESOURCE_EXHAUSTED
    peer.data(first, bytes(5_990), end=True)
    assert answered(peer, first).messages == [bytes(6_000)]
    bench.settled()


@pins("max_connection_receive_bytes")
def test_messages_that_wait_for_their_handler_are_bounded_too(serve):
    """Decompressed, a window's worth of messages may be a thousand times as large."""
    bench = serve(max_connection_receive_bytes=1_000_000)
    peer = bench.connect()
    stream = peer.begin("/t/Stuck", ("grpc-encoding", "gzip"))
    peer.data(stream, message(gzip.compress(bytes(300_000)), flag=1) * 3)
    peer.synchronise()
    assert bench.total("receiving_bytes") == 900_000 + 3 * 64
    peer.data(stream, message(gzip.compress(bytes(300_000)), flag=1))
    assert answered(peer, stream).status == RESOURCE_EXHAUSTED
    assert bench.methods.cancelled.get(timeout=10) == "Stuck"
    bench.settled()


def test_empty_messages_that_wait_for_their_handler_are_bounded_too(serve):
    bench = serve(max_connection_receive_bytes=10_000)
    peer = bench.connect()
    stream = peer.begin("/t/Stuck")
    peer.data(stream, message(b"") * 150)
    peer.synchronise()
    assert bench.total("receiving_bytes") == 150 * 64
    peer.data(stream, message(b"") * 10)
    assert answered(peer, stream).status == RESOURCE_EXHAUSTED
    assert bench.methods.cancelled.get(timeout=10) == "Stuck"
    bench.settled()


@pins("max_header_list_bytes")
def test_a_call_with_too_many_headers_is_refused_alone(serve):
    bench = serve(max_header_list_bytes=2_000)
    peer = bench.connect()
    others = peer.begin("/t/Echo")
    stream = peer.call("/t/Echo", b"x", ("x-large", "v" * 2_000))
    assert answered(peer, stream).status == RESOURCE_EXHAUSTED
    assert answered(peer, peer.call("/t/Echo", b"x", ("x-large", "v" * 1_500))).status == 0
    peer.data(others, message(b"other"), end=True)
    assert peer.outcome(others).messages == [b"other"]


@pytest.mark.parametrize("unit", ["H", "M", "S", "m", "u", "n"])
def test_every_unit_of_grpc_timeout_is_read(bench, unit):
    seconds = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    peer = bench.connect()
    before = bench.on_loop(_now)
    peer.call("/t/Hold", b"", ("grpc-timeout", f"90000000{unit}"))
    call = bench.held()
    assert before <= call.deadline - 90_000_000 * seconds <= bench.on_loop(_now)
    bench.on_loop(call.reply, b"")


def _now():
    import time

    return time.monotonic()


@pytest.mark.parametrize("value", ["", "5", "S", "123456789S", "1s", "1 S", "-1S", "1.5S", "1SS", "\u0661S"])
@pytest.mark.parametrize("path", ["/t/Echo", "/t/Chat"])
def test_a_malformed_grpc_timeout_is_refused(bench, path, value):
    peer = bench.connect()
    assert answered(peer, peer.call(path, b"x", ("grpc-timeout", value))).status == INTERNAL


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Stuck"])
@pytest.mark.parametrize("value", ["0S", "1n"])
def test_a_deadline_that_has_passed(bench, path, value):
    peer = bench.connect()
    assert answered(peer, peer.call(path, b"x", ("grpc-timeout", value))).status == DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("replaced", "status"),
    [
        ({"method": "GET"}, "405"),
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpcx"}, "415"),
        ({"content_type": ""}, "415"),
    ],
)
def test_what_is_not_grpc_gets_an_http_status(bench, replaced, status):
    peer = bench.connect()
    stream = peer.begin("/t/Echo", **replaced)
    assert answered(peer, stream).headers[":status"] == status


@pytest.mark.parametrize("path", ["/t/None", "/", "/t/Ec%68o"])
def test_an_unknown_method(bench, path):
    peer = bench.connect()
    stream = peer.begin(path)
    assert answered(peer, stream).status == UNIMPLEMENTED


def test_after_an_early_outcome_the_peer_is_told_to_stop_sending(bench):
    peer = bench.connect()
    stream = peer.begin("/t/None")
    peer.until(lambda: peer.replies[stream].reset is not None)
    assert (peer.replies[stream].status, peer.replies[stream].reset) == (UNIMPLEMENTED, 0)
    peer.send(*(DataFrame(stream, bytes(16_000)) for _ in range(2_000)))  # twice the connection's window
    assert answered(peer, peer.call("/t/Echo", b"x")).messages == [b"x"]
    bench.settled()


def test_a_handler_that_raises(bench):
    peer = bench.connect()
    assert answered(peer, peer.call("/t/Raise", b"x")).status == UNKNOWN


def test_a_handler_that_raises_after_its_answer_changes_nothing(bench):
    peer = bench.connect()
    reply = answered(peer, peer.call("/t/RaiseAfterReply", b"x"))
    assert (reply.status, reply.messages) == (0, [b"x"])


@pytest.mark.parametrize("letter", ["a", "ü"])
def test_a_huge_error_text_is_cut_and_not_lost(bench, letter):
    peer = bench.connect()
    text = letter * 50_000
    stream = peer.begin("/t/Fail")
    peer.data_frames(stream, message(text.encode()))
    reply = answered(peer, stream)
    assert reply.status == ABORTED
    assert 3_000 < len(reply.details) <= 4_096
    assert text.encode().startswith(unquote_to_bytes(reply.details))


def test_many_trailing_fields_all_arrive(bench):
    peer = bench.connect()
    reply = answered(peer, peer.call("/t/Trailing", b"200 3"))
    assert reply.status == 0
    assert [f"key-{index}" for index in range(200)] == [
        key for key in reply.trailers if key.startswith("key-")
    ]


def test_trailers_that_no_frame_can_hold_reset_the_call(bench):
    peer = bench.connect()
    assert answered(peer, peer.call("/t/Trailing", b"1 100000")).reset == 2
    bench.settled()
