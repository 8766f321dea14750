"""A caller that doesn't read holds its handler up, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from tests.integration.conformance.peer import PREFIX, Peer
from tests.integration.support import PATIENCE_S

COUNT, SIZE = 400, 100_000


@pytest.fixture
def channel(peer: Peer) -> Iterator[grpc.Channel]:
    """A channel of grpcio, which reads a message when it is asked for one."""
    with grpc.insecure_channel(peer.address) as opened:
        yield opened


def flood(channel: grpc.Channel) -> grpc.CallIterator[bytes]:
    """Begin a flood and read its first message; return once the server has had time for the rest."""
    replies = channel.unary_stream(PREFIX + "Flood")(b"%d %d" % (COUNT, SIZE), timeout=PATIENCE_S)
    assert next(replies) == bytes(SIZE)
    # A handler that isn't held up never lets the loop go: all of it would come before this answer.
    assert channel.unary_unary(PREFIX + "EchoTask")(b"others are served", timeout=PATIENCE_S)
    return replies


def test_a_handler_waits_for_its_reader(channel: grpc.Channel, peer: Peer):
    replies = flood(channel)
    assert peer.methods.flooded < COUNT / 2
    assert [len(reply) for reply in replies] == [SIZE] * (COUNT - 1)
    assert peer.methods.flooded == COUNT
    assert peer.note() == "done"


def test_a_handler_that_waits_for_its_reader_can_be_cancelled(channel: grpc.Channel, peer: Peer):
    replies = flood(channel)
    replies.cancel()
    assert peer.note() == "done"
    assert peer.methods.flooded < COUNT / 2


def test_a_deadline_ends_a_handler_that_waits_for_its_reader(channel: grpc.Channel, peer: Peer):
    replies = channel.unary_stream(PREFIX + "Flood")(b"%d %d" % (COUNT, SIZE), timeout=0.2)
    assert next(replies) == bytes(SIZE)
    assert peer.note() == "done"
    assert peer.methods.flooded < COUNT / 2
    assert replies.code() is grpc.StatusCode.DEADLINE_EXCEEDED
