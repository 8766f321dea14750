"""The transports by themselves, and each client connected to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.integration.conformance.calls import Call, Client, Outcome
from tests.integration.conformance.clients import CLIENTS
from tests.integration.conformance.peer import Peer

#: Transport and event loop.
PEERS = (("grpcio", "uvloop"), ("http2", "uvloop"), ("http2", "asyncio"))


@pytest.fixture(scope="session", params=PEERS, ids="-".join)
def peer_session(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A transport that serves the methods of ``peer.py``."""
    with Peer(*request.param) as serving:
        yield serving


@pytest.fixture
def peer(peer_session: Peer) -> Iterator[Peer]:
    """The same, with nothing noted before or left unread by the test."""
    yield peer_session
    while not peer_session.methods.notes.empty():
        peer_session.methods.notes.get_nowait()


@pytest.fixture(scope="session", params=CLIENTS)
def client(request: pytest.FixtureRequest, peer_session: Peer) -> Iterator[Client]:
    """A client, connected to ``peer``."""
    connected = CLIENTS[request.param](peer_session.address)
    yield connected
    connected.close()


@pytest.fixture
def outcome_of(client: Client) -> Callable[[Call], Outcome]:
    """Make a call and return what became of it."""
    return lambda call: client.start(call).outcome()
