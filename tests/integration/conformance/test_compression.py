"""Message compression both ways. What travels is looked at with curl, which knows nothing of gRPC."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.conformance.calls import Call, Outcome
from tests.integration.conformance.clients import CLIENTS, GrpcioClient
from tests.integration.conformance.http_tools import curl, framed
from tests.integration.conformance.peer import MAX_MESSAGE_BYTES, PREFIX, Peer

ALGORITHMS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
UNDO: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
#: Empty, too small to gain, and large enough for several frames even when compressed.
BODIES = (b"", b"x", b"compress me " * 20_000, bytes(number * number % 251 for number in range(200_000)))
ECHOES = (
    Call(PREFIX + "Echo"),
    Call(PREFIX + "EchoTask"),
    Call(PREFIX + "EchoEach", request_streaming=True, response_streaming=True),
)


@pytest.fixture(
    scope="module", params=[(t, a) for t in ("grpcio", "http2") for a in ALGORITHMS], ids="-".join
)
def compressing(request: pytest.FixtureRequest) -> Iterator[tuple[Peer, str]]:
    """A peer whose replies are compressed, and the algorithm."""
    transport, algorithm = request.param
    with Peer(transport, "uvloop", response_compression=algorithm) as peer:
        yield peer, algorithm


def echoed(client: GrpcioClient, call: Call, body: bytes) -> Outcome:
    return client.start(Call(call.path, (body,), call.request_streaming, call.response_streaming)).outcome()


@pytest.mark.parametrize("call", ECHOES, ids=lambda call: call.path.rpartition("/")[2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compressed_requests_are_read(peer_session: Peer, algorithm: str, call: Call):
    client = GrpcioClient(peer_session.address, compression=ALGORITHMS[algorithm])
    try:
        for body in BODIES:
            assert echoed(client, call, body) == Outcome(grpc.StatusCode.OK, "", (body,))
    finally:
        client.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_request_that_is_too_large_only_when_decompressed_is_refused(peer_session: Peer, algorithm: str):
    client = GrpcioClient(peer_session.address, compression=ALGORITHMS[algorithm])
    try:
        for call in ECHOES:
            assert echoed(client, call, bytes(MAX_MESSAGE_BYTES)).code is grpc.StatusCode.OK
            outcome = echoed(client, call, bytes(MAX_MESSAGE_BYTES + 1))
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        client.close()


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_reads_the_replies_of_a_server_that_compresses(compressing: tuple[Peer, str], name: str):
    client = CLIENTS[name](compressing[0].address)
    try:
        for call in ECHOES:
            for body in BODIES:
                assert echoed(client, call, body) == Outcome(grpc.StatusCode.OK, "", (body,))
    finally:
        client.close()


@pytest.mark.parametrize("call", ECHOES, ids=lambda call: call.path.rpartition("/")[2])
def test_replies_are_compressed_where_the_caller_takes_it(
    compressing: tuple[Peer, str], call: Call, tmp_path: Path
):
    peer, algorithm = compressing
    body = b"compress me " * 1000
    answer = curl(peer.address, call.path, framed(body), tmp_path, **{"grpc-accept-encoding": algorithm})
    assert answer.headers["grpc-encoding"] == algorithm
    assert answer.body[0] == 1
    assert int.from_bytes(answer.body[1:5], "big") == len(answer.body) - 5 < len(body)
    assert UNDO[algorithm](answer.body[5:]) == body


@pytest.mark.parametrize("accepted", [None, "identity", "br,identity"])
def test_replies_are_not_compressed_where_the_caller_does_not_take_it(
    compressing: tuple[Peer, str], accepted: str | None, tmp_path: Path
):
    headers = {} if accepted is None else {"grpc-accept-encoding": accepted}
    body = b"compress me " * 1000
    for call in ECHOES:
        answer = curl(compressing[0].address, call.path, framed(body), tmp_path, **headers)
        assert answer.body == framed(body)
        assert answer.headers.get("grpc-encoding", "identity") == "identity"
