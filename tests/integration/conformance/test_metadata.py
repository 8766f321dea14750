"""Metadata from a caller to its handler and back, for each client on each transport."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode
from tests.integration.conformance.calls import Call, Client, Metadata, Outcome, bidi, server_stream, unary
from tests.integration.conformance.clients import GrpclibClient
from tests.integration.conformance.node import GrpcJsClient
from tests.integration.conformance.peer import Peer

from tensorferry.config import ServerConfig

Caller = Callable[[Call], Outcome]


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-text", "value"),),
        (("x-punctuation", "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ \\"),),
        (("x-some-bin", b"\0\1\2\xff"), ("x-none-bin", b"")),
        tuple((f"x-{length}-bin", bytes(range(length))) for length in range(1, 9)),
        (("x-with_every.char-0", "value"),),
    ],
    ids=["text", "punctuation", "binary", "padding", "key"],
)
def test_metadata_comes_back_in_headers_and_trailers(outcome_of: Caller, metadata: Metadata):
    outcome = outcome_of(unary("EchoTask", b"m", metadata=metadata))
    assert outcome == Outcome(StatusCode.OK, "", (b"m",), metadata, metadata[::-1])


def test_metadata_of_one_key_keeps_its_order(client: Client):
    metadata = (("x-many", "1"), ("x-many", "2"), ("x-many", "3"))
    outcome = client.start(unary("EchoTask", metadata=metadata)).outcome()
    if isinstance(client, GrpcJsClient):  # Node joins them
        assert (outcome.initial, outcome.trailing) == ((("x-many", "1, 2, 3"),), (("x-many", "3, 2, 1"),))
    else:
        assert (outcome.initial, outcome.trailing) == (metadata, metadata[::-1])


def test_an_empty_value_of_metadata_arrives(client: Client):
    if isinstance(client, GrpclibClient):
        pytest.skip("grpclib refuses to send an empty value")
    outcome = client.start(unary("EchoTask", metadata=(("x-empty", ""),))).outcome()
    assert outcome.initial == (("x-empty", ""),)


def test_metadata_of_every_kind_of_call_reaches_the_handler(outcome_of: Caller):
    metadata = (("x-text", "value"), ("x-some-bin", b"\0\xff"))
    for call in (bidi("EchoMetadata", metadata=metadata), server_stream("EchoMetadata", metadata=metadata)):
        assert outcome_of(call).trailing == metadata


@pytest.mark.parametrize("count", [50, 61, 62, 100])
def test_no_trailing_metadata_is_lost(outcome_of: Caller, count: int):
    outcome = outcome_of(unary("ManyTrailers", b"%d" % count))
    assert sorted(outcome.trailing) == sorted((f"x-{number}", "v") for number in range(count))


@pytest.mark.parametrize("value", ["ümlaut", "line\nbreak"], ids=["umlaut", "newline"])
def test_metadata_that_cannot_travel_ends_the_call_with_an_error(outcome_of: Caller, peer: Peer, value: str):
    if peer.transport == "grpcio":
        pytest.skip("grpcio leaves such a call without an outcome until its deadline")
    outcome = outcome_of(unary("BadTrailers", value.encode()))
    assert outcome.code is StatusCode.UNKNOWN
    assert "x-bad" in outcome.details


@pytest.mark.parametrize("method", ["Echo", "EchoTask"])
@pytest.mark.parametrize("size", [17_000, 60_000])
def test_headers_beyond_the_limit_are_refused_and_the_connection_serves_on(
    outcome_of: Caller, method: str, size: int
):
    limit = ServerConfig().max_header_list_bytes
    assert limit < size
    outcome = outcome_of(unary(method, metadata=(("y-large", "v" * size),)))
    assert (outcome.code, outcome.messages) == (StatusCode.RESOURCE_EXHAUSTED, ())
    just_below = (("y-large", "v" * (limit - 1000)),)
    assert outcome_of(unary(method, b"m", metadata=just_below)) == Outcome(StatusCode.OK, "", (b"m",))
