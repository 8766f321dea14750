"""Calls that end early, at every point, by a reset or a dropped connection."""

from __future__ import annotations

import gc
import gzip
import random
import socket
import struct

import pytest
from hyperframe.frame import DataFrame, RstStreamFrame, SettingsFrame
from tests.integration.http2.raw import CANCEL, message, request_headers

from tensorferry.transport import _http2

PATHS = ["/t/Hold", "/t/Stuck"]


def name_of(path):
    return path.removeprefix("/t/")


def none_is_cancelled(bench):
    assert bench.methods.cancelled.empty()


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Hold", "/t/Chat", "/t/None"])
@pytest.mark.parametrize("sent", [0, 3, 5, 8, 10])
@pytest.mark.parametrize("in_one_read", [True, False])
def test_a_reset_before_the_request_is_complete(bench, path, sent, in_one_read):
    peer = bench.connect()
    stream = peer.new_stream()
    frames = [peer.headers_frame(stream, request_headers(path))]
    if sent:
        frames.append(DataFrame(stream, message(b"12345")[:sent]))
    frames.append(RstStreamFrame(stream, error_code=CANCEL))
    if in_one_read:
        peer.send(*frames)
    else:
        for frame in frames:
            peer.send(frame)
            peer.synchronise()
    assert peer.outcome(peer.call("/t/Echo", b"next")).messages == [b"next"]
    assert bench.methods.held.empty()
    bench.settled()


def test_a_reset_in_the_read_that_completes_the_request(bench):
    """The handler isn't called for a caller that is gone."""
    peer = bench.connect()
    stream = peer.new_stream()
    peer.send(
        peer.headers_frame(stream, request_headers("/t/Hold")),
        DataFrame(stream, message(b""), flags=["END_STREAM"]),
        RstStreamFrame(stream, error_code=CANCEL),
    )
    peer.synchronise()
    assert bench.methods.held.empty()
    none_is_cancelled(bench)
    bench.settled()


def test_a_reset_while_the_call_waits_cancels_it(bench):
    peer = bench.connect()
    stream = peer.call("/t/Hold")
    call = bench.held()
    peer.reset(stream)
    assert bench.methods.cancelled.get(timeout=10) == "Hold"
    bench.settled()
    bench.on_loop(call.reply, b"too late")
    bench.on_loop(call.fail, 13, "too late")
    peer.synchronise()
    assert peer.replies[stream].headers == {}
    none_is_cancelled(bench)


def test_a_reset_cancels_an_rpc_task(bench):
    peer = bench.connect()
    stream = peer.begin("/t/Stuck")
    peer.data(stream, message(b"x"))
    assert bench.methods.started.get(timeout=10) == "Stuck"
    peer.reset(stream)
    assert bench.methods.cancelled.get(timeout=10) == "Stuck"
    bench.settled()


@pytest.mark.parametrize(("path", "request_"), [("/t/Zeros", b"300000"), ("/t/Count", b"30 10000")])
def test_a_reset_in_the_middle_of_the_reply(bench, path, request_):
    peer = bench.connect(credits=False)
    stream = peer.call(path, request_)
    peer.until(lambda: sum(peer.replies[stream].data_sizes) == 65_535)
    assert bench.total("unsent_bytes") > 0
    peer.reset(stream)
    peer.credit(0, 1 << 20)
    assert peer.outcome(peer.call("/t/Echo", b"next")).messages == [b"next"]
    bench.settled()


def test_a_reset_after_the_reply_does_nothing(bench):
    peer = bench.connect()
    stream = peer.call("/t/Echo", b"x")
    peer.outcome(stream)
    peer.reset(stream)
    assert peer.outcome(peer.call("/t/Echo", b"next")).messages == [b"next"]


def test_one_reset_leaves_its_neighbours_alone(bench):
    peer = bench.connect()
    streams = [peer.call("/t/Hold") for _ in range(3)]
    calls = [bench.held() for _ in streams]
    peer.reset(streams[1])
    assert bench.methods.cancelled.get(timeout=10) == "Hold"
    for call in calls:
        bench.on_loop(call.reply, b"yes")
    assert peer.outcome(streams[0]).messages == peer.outcome(streams[2]).messages == [b"yes"]
    none_is_cancelled(bench)


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_dropped_connection_cancels_its_calls(bench, how):
    peer = bench.connect()
    peer.call("/t/Hold")
    bench.held()
    stream = peer.begin("/t/Stuck")
    peer.data(stream, message(bytes(100)) + message(bytes(1_000))[:500])
    unfinished = peer.begin("/t/Echo")
    peer.data(unfinished, message(bytes(5_000))[:500])
    assert bench.methods.started.get(timeout=10) == "Stuck"
    peer.synchronise()
    assert bench.total("stream_count") == 3
    if how == "half-close":
        peer.socket.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    assert {bench.methods.cancelled.get(timeout=10) for _ in range(2)} == {"Hold", "Stuck"}
    bench.settled()
    bench.serves()


def test_a_connection_dropped_while_replies_wait(bench):
    peer = bench.connect({4: 0})
    for _ in range(5):
        peer.call("/t/Zeros", b"100000")
        peer.call("/t/Count", b"10 10000")
    peer.until(lambda: len([each for each in peer.replies.values() if each.headers]) == 10)
    assert bench.total("unsent_bytes") > 500_000
    peer.close()
    bench.settled()


def test_answers_to_a_dropped_connection_go_nowhere(bench):
    peer = bench.connect()
    peer.call("/t/Hold")
    call = bench.held()
    peer.close()
    assert bench.methods.cancelled.get(timeout=10) == "Hold"
    bench.on_loop(call.reply, b"x")
    bench.serves()


def test_a_refused_stream_is_forgotten_with_what_follows_it(bench):
    """Messages after one that ended the call don't reach its handler, nor count."""
    peer = bench.connect()
    stream = peer.begin("/t/Chat", ("grpc-encoding", "gzip"))
    peer.data(
        stream, message(b"bad", flag=1) + message(gzip.compress(b"good"), flag=1) + message(bytes(900))[:9]
    )
    assert peer.outcome(stream).status == 13
    assert peer.replies[stream].messages == []
    bench.settled()


@pytest.mark.parametrize("seed", range(8))
def test_a_storm_of_calls_in_any_order_leaves_nothing_behind(bench, seed):
    choose = random.Random(seed)
    peer = bench.connect({4: choose.choice([0, 1, 1000, 65_535])})
    open_streams: list[int] = []
    for _ in range(300):
        action = choose.choice(["begin", "begin", "data", "data", "end", "reset", "credit", "look"])
        if action == "begin" or not open_streams:
            path = choose.choice(["/t/Echo", "/t/Chat", "/t/Collect", "/t/Stuck", "/t/Hold", "/t/None"])
            open_streams.append(peer.begin(path))
            continue
        stream = choose.choice(open_streams)
        if action == "data":
            body = message(bytes(choose.choice([0, 1, 50, 5_000])))
            peer.data(stream, body[: choose.choice([3, 5, 60, len(body)])])
        elif action == "credit":
            peer.credit(stream, choose.choice([1, 4, 70_000]))
        elif action == "look":
            peer.synchronise()
        else:
            open_streams.remove(stream)
            if action == "end":
                peer.data(stream, b"", end=True)
            else:
                peer.reset(stream)
    for stream in range(1, peer.new_stream(), 2):
        peer.reset(stream)  # those that are over don't mind
    peer.send(SettingsFrame(0, settings={4: 1 << 20}))
    assert peer.outcome(peer.call("/t/Echo", b"calm")).messages == [b"calm"]
    bench.settled()


def test_nothing_keeps_a_unary_call_that_is_over(bench):
    """Without the garbage collector: calls that wait for it cost its every run."""
    peer = bench.connect()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            peer.outcome(peer.call("/t/Echo", b"x"))
            answered = peer.call("/t/Hold")
            bench.on_loop(bench.held().reply, b"x")
            peer.outcome(answered)
            cancelled = peer.call("/t/Hold")
            bench.held()
            peer.reset(cancelled)
            bench.methods.cancelled.get(timeout=10)
        peer.synchronise()
        kept = sum(type(each) is _http2.Stream for each in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 1  # the last one may still be on its way out of the loop
