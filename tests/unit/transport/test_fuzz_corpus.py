"""The inputs that the fuzzer has kept: what must always hold, holds for each of them."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("tensorferry.transport._http2", reason="the http2 transport isn't built")
pytest.importorskip("tensorferry.service._scan", reason="the _scan extension isn't built")

from tests.fuzz import corpus, scan_target, wire
from tests.fuzz.bench import Bench, Broken, Call
from tests.fuzz.program import run_program


def test_every_kept_program_of_a_connection_holds():
    programs = corpus.load("http2")
    assert len(programs) > 100
    for program in programs:
        run_program(program)


def test_every_kept_request_scans_as_protobuf_parses_it():
    bodies = corpus.load("scan") + scan_target.seeds()
    assert len(bodies) > 20
    for body in bodies:
        scan_target.run_scan(body)


def test_nothing_of_a_connection_outlives_it():
    def alive() -> int:
        gc.collect()
        return sum(type(each).__name__ in ("Stream", "Session", "Hub") for each in gc.get_objects())

    before = alive()
    for program in corpus.load("http2"):
        run_program(program)
    assert alive() == before


def one_call(path: bytes) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    fields.append((b"content-type", b"application/grpc"))
    headers = wire.frame(wire.HEADERS, wire.END_HEADERS, 1, wire.hpack(fields))
    data = wire.frame(wire.DATA, wire.END_STREAM, 1, wire.message(b"body"))
    return wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0) + headers + data


def test_the_bench_answers_a_call():
    bench = Bench()
    bench.receive(one_call(b"/echo"))
    bench.tick()
    assert wire.message(b"body") in bench.transport.written
    bench.end()


def test_the_bench_notices_a_second_cancellation():
    bench = Bench()
    bench.receive(one_call(b"/later"))
    (call,) = bench.calls
    bench.receive(wire.frame(wire.RST_STREAM, 0, 1, bytes(4)))
    assert isinstance(call, Call)
    assert call.cancels == 1
    with pytest.raises(Broken):
        call.cancel()


def test_the_bench_notices_what_is_left_behind():
    bench = Bench()
    bench.receive(one_call(b"/later"))
    bench.session = _Leaking(bench.session)
    with pytest.raises(Broken, match="after the end"):
        bench.lose()


class _Leaking:
    """A session that forgets to forget."""

    def __init__(self, session) -> None:
        self._session = session
        self.stream_count = session.stream_count

    def __getattr__(self, name: str):
        return getattr(self._session, name)


@pytest.mark.parametrize("arguments", [(2, 1, 2), (-1, 1, 2), (0, -1, 2), (0, 3, 2), (0, 1, 0)])
def test_rows_that_a_batch_does_not_have_are_refused(arguments):
    with pytest.raises(ValueError, match="rows"):
        scan_target._scan.join_response(b"", b"", b"", [], *arguments)
