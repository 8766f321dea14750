"""How connections begin and end: limits, timeouts, keepalive, age, draining."""

from __future__ import annotations

import socket

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame
from tests.integration.http2.limits import pins
from tests.integration.http2.raw import (
    NO_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    message,
    request_headers,
)
from tests.integration.support import wait_until

from tensorferry.transport import http2

FOREVER = 2**31 - 1


def goaways(peer):
    return [each for each in peer.seen if isinstance(each, GoAwayFrame)]


@pins("max_connections")
def test_a_connection_too_many_is_closed_and_a_free_place_taken_again(serve):
    bench = serve(max_connections=2)
    first, second = bench.connect(), bench.connect()
    third = bench.connect(handshake=False)
    assert third.closed() == []
    assert second.outcome(second.call("/t/Echo", b"x")).messages == [b"x"]
    first.close()
    wait_until(lambda: bench.on_loop(lambda: len(bench.transport.connections)) == 1, "the place is free")
    bench.serves()


@pins("max_concurrent_streams")
def test_the_streams_that_are_allowed_are_announced_and_a_call_too_many_is_refused(serve):
    bench = serve(max_concurrent_streams=2)
    peer = bench.connect(acknowledges=False)
    assert peer.seen[0].settings[3] == 2
    held = [peer.call("/t/Hold") for _ in range(2)]
    calls = [bench.held() for _ in held]
    assert peer.outcome(peer.call("/t/Echo", b"x")).reset == REFUSED_STREAM
    for call, stream in zip(calls, held, strict=True):
        bench.on_loop(call.reply, b"")
        assert peer.outcome(stream).status == 0
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


@pins("max_concurrent_streams")
def test_a_peer_that_has_acknowledged_the_limit_may_not_break_it(serve):
    bench = serve(max_concurrent_streams=2)
    peer = bench.connect()
    for _ in range(3):
        peer.call("/t/Hold")
    assert [each.error_code for each in peer.closed()] == [PROTOCOL_ERROR]
    bench.serves()


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + b"\0\0\6\4\0"])
@pins("handshake_timeout_s")
def test_a_peer_that_does_not_introduce_itself(serve, sent):
    bench = serve(handshake_timeout_s=0.1)
    peer = bench.connect(handshake=False)
    peer.send_bytes(sent)
    peer.closed()
    bench.serves()


@pins("idle_timeout_s")
def test_an_idle_connection_is_sent_away_and_a_busy_one_is_not(serve):
    bench = serve(idle_timeout_s=0.1)
    busy, idle = bench.connect(), bench.connect()
    stream = busy.call("/t/Hold")
    call = bench.held()
    idle.outcome(idle.call("/t/Echo", b"x"))
    assert [each.last_stream_id for each in idle.closed()] == [FOREVER, 1]
    assert goaways(busy) == []
    bench.on_loop(call.reply, b"x")
    assert busy.outcome(stream).messages == [b"x"]
    assert {each.error_code for each in busy.closed()} == {NO_ERROR}


@pins("keepalive_time_s", "keepalive_timeout_s")
def test_a_silent_peer_is_pinged_and_dropped_if_it_does_not_answer(serve):
    bench = serve(keepalive_time_s=0.1, keepalive_timeout_s=0.1)
    dead, alive = bench.connect(acknowledges=False), bench.connect()
    dead.call("/t/Hold")
    bench.held()
    alive.until(lambda: any(isinstance(each, PingFrame) for each in alive.seen))
    dead.closed()
    assert any(isinstance(each, PingFrame) for each in dead.seen)
    assert bench.methods.cancelled.get(timeout=10) == "Hold"


@pins("keepalive_time_s", "keepalive_timeout_s")
def test_a_silent_peer_that_answers_pings_is_kept(serve):
    bench = serve(keepalive_time_s=0.1, keepalive_timeout_s=0.1)
    peer = bench.connect()
    peer.until(lambda: sum(isinstance(each, PingFrame) for each in peer.seen) == 3)
    assert peer.outcome(peer.call("/t/Echo", b"x")).messages == [b"x"]


@pins("max_connection_age_s")
def test_an_aged_connection_is_sent_away_in_two_steps(serve):
    bench = serve(max_connection_age_s=0.1)
    peer = bench.connect()
    early = peer.call("/t/Hold")
    peer.until(lambda: goaways(peer))
    late = peer.call("/t/Hold")  # between the notice and the last word
    calls = [bench.held(), bench.held()]
    peer.until(lambda: len(goaways(peer)) == 2)
    assert [each.last_stream_id for each in goaways(peer)] == [FOREVER, late]
    for call in calls:
        bench.on_loop(call.reply, b"answered")
    assert peer.outcome(early).messages == peer.outcome(late).messages == [b"answered"]
    peer.closed()


@pins("max_connection_age_grace_s")
def test_an_aged_connection_is_cut_off_after_its_grace(serve):
    bench = serve(max_connection_age_s=0.1, max_connection_age_grace_s=0.3)
    peer = bench.connect()
    peer.call("/t/Hold")
    bench.held()
    assert len(peer.closed()) == 2
    assert bench.methods.cancelled.get(timeout=10) == "Hold"


@pins("max_connection_age_grace_s")
def test_an_aged_connection_that_is_not_read_is_cut_off_too(serve):
    bench = serve(max_connection_age_s=0.1, max_connection_age_grace_s=0.3)
    peer = bench.connect({4: FOREVER}, receive_buffer_bytes=4096)
    peer.credit(0, FOREVER - 65_535)
    stream = peer.call("/t/Zeros", b"20000000")
    wait_until(lambda: bench.total("unsent_bytes"), "the socket is full")
    wait_until(lambda: not bench.on_loop(lambda: bench.transport.connections), "the connection is cut off")
    peer.credits = False
    peer.closed()
    assert not peer.replies[stream].ended


def test_a_peer_that_is_sent_away_and_stays_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(http2, "_LINGER_S", 0.1)
    bench = serve(idle_timeout_s=0.1)
    peer = bench.connect()
    for _ in peer.frames():
        pass  # until its end of the connection is closed; ours stays open
    assert len(goaways(peer)) == 2
    wait_until(lambda: not bench.on_loop(lambda: bench.transport.connections), "the connection is cut off")


@pins("drain_timeout_s")
def test_draining_loses_no_call(serve):
    bench = serve()
    idle, peer = bench.connect(), bench.connect()
    early = peer.call("/t/Hold")
    stream = peer.begin("/t/Chat")
    stopping = bench.background(bench.transport.stop(30.0))
    peer.until(lambda: goaways(peer))
    late = peer.call("/t/Hold")
    peer.until(lambda: len(goaways(peer)) == 2)
    assert [each.last_stream_id for each in goaways(peer)] == [FOREVER, late]
    assert [each.last_stream_id for each in idle.closed()] == [FOREVER, 0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", bench.port)).close()
    for _ in range(2):
        bench.on_loop(bench.held().reply, b"answered")
    peer.data(stream, message(b"streams too"), end=True)
    assert peer.outcome(early).messages == peer.outcome(late).messages == [b"answered"]
    assert peer.outcome(stream).messages == [b"streams too"]
    peer.closed()
    stopping.result(10)


@pins("drain_timeout_s")
def test_a_call_after_the_last_goaway_is_not_taken(serve):
    bench = serve()
    peer = bench.connect()
    stream = peer.call("/t/Hold")
    stopping = bench.background(bench.transport.stop(30.0))
    peer.until(lambda: len(goaways(peer)) == 2)
    late = peer.call("/t/Hold")
    call = bench.held()
    peer.synchronise()
    assert bench.methods.held.empty()
    bench.on_loop(call.reply, b"x")
    assert peer.outcome(stream).messages == [b"x"]
    peer.closed()
    assert not peer.replies[late].ended
    stopping.result(10)


@pins("drain_timeout_s")
def test_draining_ends_with_its_timeout(serve):
    bench = serve()
    peer = bench.connect()
    peer.call("/t/Hold")
    bench.held()
    bench.run(bench.transport.stop(0.1))
    peer.closed()
    assert bench.methods.cancelled.get(timeout=10) == "Hold"


def test_a_half_sent_request_is_waited_for(serve):
    bench = serve()
    peer = bench.connect()
    stream = peer.new_stream()
    peer.send(peer.headers_frame(stream, request_headers("/t/Echo")))
    peer.data(stream, message(b"in two parts")[:7])
    stopping = bench.background(bench.transport.stop(30.0))
    peer.until(lambda: len(goaways(peer)) == 2)
    peer.data(stream, message(b"in two parts")[7:], end=True)
    assert peer.outcome(stream).messages == [b"in two parts"]
    peer.closed()
    stopping.result(10)
