"""Windows of every size, and peers that read slowly or not at all."""

from __future__ import annotations

import pytest
from hyperframe.frame import SettingsFrame
from tests.integration.http2.limits import pins
from tests.integration.http2.raw import message
from tests.integration.support import wait_until

INITIAL_WINDOW_SIZE = 4


@pytest.mark.parametrize(
    ("path", "request_", "answers"),
    [("/t/Echo", b"abc", [b"abc"]), ("/t/Echo", b"", [b""]), ("/t/Count", b"3 2", [b"\0\0"] * 3)],
)
def test_a_window_of_one_byte(bench, path, request_, answers):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 1})
    reply = peer.outcome(peer.call(path, request_))
    assert (reply.status, reply.messages) == (0, answers)
    assert set(reply.data_sizes) - {0} == {1}


@pytest.mark.parametrize(("path", "request_"), [("/t/Echo", b"\0" * 20), ("/t/Count", b"1 20")])
def test_a_window_of_nothing_opened_later(bench, path, request_):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 0})
    stream = peer.call(path, request_)
    peer.until(lambda: peer.replies[stream].headers)
    peer.synchronise()
    assert peer.replies[stream].body == b""
    peer.credit(stream, 7)
    peer.until(lambda: sum(peer.replies[stream].data_sizes) >= 7)
    peer.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 100}))
    assert peer.outcome(stream).messages == [bytes(20)]


def test_a_status_needs_no_window(bench):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 0})
    assert peer.outcome(peer.call("/t/Fail", b"no")).details == "no"


def test_trailers_need_no_window_once_the_messages_are_out(bench):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 6}, credits=False)
    stream = peer.begin("/t/Chat")
    peer.data(stream, message(b"x"))
    peer.until(lambda: peer.replies[stream].messages == [b"x"])
    peer.data(stream, b"", end=True)
    assert peer.outcome(stream).status == 0


def test_one_stream_without_window_does_not_stop_the_others(bench):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 10})
    peer.credits = False
    stuck = peer.call("/t/Zeros", b"1000")
    assert peer.outcome(peer.call("/t/Echo", b"small")).messages == [b"small"]
    peer.credit(stuck, 1000)
    assert peer.outcome(stuck).messages == [bytes(1000)]


def test_the_connection_window_is_shared(bench):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 1 << 20}, credits=False)
    streams = [peer.call("/t/Zeros", b"40000") for _ in range(3)]
    total = 3 * 40_005
    peer.until(lambda: sum(len(each.body) for each in peer.replies.values()) == 65_535)
    peer.synchronise()
    peer.credit(0, total)
    assert all(peer.outcome(stream).messages == [bytes(40_000)] for stream in streams)
    bench.settled()


def test_a_window_that_overflows_resets_the_call(bench):
    peer = bench.connect()
    stream = peer.call("/t/Hold")
    bench.held()
    peer.credit(stream, 2**31 - 1)
    assert peer.outcome(stream).reset == 3
    assert bench.methods.cancelled.get(timeout=10) == "Hold"


def test_a_handler_that_takes_nothing_stops_its_sender_alone(bench):
    """What waits for a handler is bounded by its stream's window; other calls have their own."""
    peer = bench.connect()
    stream = peer.begin("/t/Stuck")
    body = message(bytes(16_379))
    for number in range(128):
        peer.data(stream, body)
        if number % 16 == 15:
            peer.synchronise()
    credit = sum(getattr(each, "window_increment", 0) for each in peer.seen if each.stream_id == stream)
    assert credit <= 1 << 20  # no more than 2 MiB in all, and that much was sent
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]
    peer.reset(stream)
    bench.settled()


def buffered(bench):
    return sum(each.transport.get_write_buffer_size() for each in bench.transport.connections)


def test_a_large_reply_is_not_handed_to_the_socket_at_once(bench):
    peer = bench.connect({INITIAL_WINDOW_SIZE: 0x7FFFFFFF}, receive_buffer_bytes=4096)
    peer.credit(0, 0x7FFFFFFF - 65_535)
    stream = peer.call("/t/Zeros", b"30000000")
    wait_until(lambda: bench.total("unsent_bytes"), "the socket is full")
    assert bench.on_loop(buffered, bench) < 4 << 20
    assert bench.total("unsent_bytes") > 15 << 20
    assert peer.outcome(stream).messages == [bytes(30_000_000)]


@pins("max_connection_send_bytes")
def test_a_peer_that_does_not_read_is_not_read_from(serve):
    bench = serve(max_connection_send_bytes=1 << 20)
    peer = bench.connect({INITIAL_WINDOW_SIZE: 0x7FFFFFFF}, receive_buffer_bytes=4096)
    peer.credit(0, 0x7FFFFFFF - 65_535)
    first = [peer.call("/t/Zeros", b"1000000") for _ in range(16)]
    wait_until(lambda: bench.total("unsent_bytes") > 1 << 20, "replies wait")
    # From here on nothing of the peer's is read: these calls never reach their handler.
    unread = [peer.call("/t/Hold") for _ in range(5)]
    bench.serves()
    assert bench.methods.held.empty()
    assert bench.on_loop(buffered, bench) < 4 << 20  # the rest is counted
    for stream in first:
        assert peer.outcome(stream).messages == [bytes(1_000_000)]
    for _ in unread:
        bench.on_loop(bench.held().reply, b"read after all")
    assert all(peer.outcome(stream).messages == [b"read after all"] for stream in unread)
    bench.settled()


@pins("max_connection_send_bytes", "max_connection_receive_bytes")
def test_calls_wait_while_replies_wait_for_credit(serve):
    """Such a peer is read from all the same: its WINDOW_UPDATEs come that way."""
    bench = serve(max_connection_send_bytes=10_000, max_connection_receive_bytes=2_000)
    peer = bench.connect({INITIAL_WINDOW_SIZE: 0})
    stream = peer.call("/t/Zeros", b"10001")
    peer.until(lambda: peer.replies[stream].headers)
    waiting = [peer.call("/t/Hold", bytes(600)) for _ in range(3)]
    gone = waiting.pop(0)
    peer.synchronise()
    assert bench.methods.held.empty()
    assert bench.total("receiving_bytes") == 1_800
    assert peer.outcome(peer.call("/t/Hold", bytes(600))).status == 8
    peer.reset(gone)
    peer.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 20_000}))
    assert peer.outcome(stream).messages == [bytes(10_001)]
    for each in waiting:
        bench.on_loop(bench.held().reply, b"at last")
        assert peer.outcome(each).messages == [b"at last"]
    bench.settled()
    assert bench.methods.held.empty()


def test_many_large_replies_through_small_windows(serve):
    bench = serve(max_connection_send_bytes=100_000)
    peer = bench.connect({INITIAL_WINDOW_SIZE: 1_000})
    streams = [peer.call("/t/Zeros", b"30000") for _ in range(20)]
    assert all(peer.outcome(stream).messages == [bytes(30_000)] for stream in streams)
    bench.settled()
