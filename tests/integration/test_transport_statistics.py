"""What a transport holds is on ``/metrics``, and is 0 again when the calls are over."""

from __future__ import annotations

from tests.integration.support import PATIENCE_S, occupy, samples_of, wait_until


def held(address: str, name: str) -> float:
    return samples_of(address)[name, frozenset()]


def test_calls_in_progress_are_counted_while_they_last(transport, server, stub, gate):
    call = occupy(gate, stub, "gated")
    known = transport == "http2"  # grpcio doesn't tell
    assert (held(server.http, "tensorferry_streams") >= 1) is known
    assert (held(server.http, "tensorferry_connections") >= 1) is known
    gate.open()
    call.result(PATIENCE_S)
    wait_until(lambda: held(server.http, "tensorferry_streams") == 0, "no stream is left")
    assert held(server.http, "tensorferry_unsent_bytes") == 0
    assert held(server.http, "tensorferry_receiving_bytes") == 0
