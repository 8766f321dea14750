"""Requests that aren't gRPC, and gRPC as seen from HTTP, with curl and nghttp.

Only the http2 transport: grpcio resets such streams, or answers with a status of its own.

What is refused for its headers is asked without a body: curl reports an error, and no answer, when
the answer overtakes the request.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conformance.http_tools import GRPC, curl, framed, need, run_curl
from tests.integration.conformance.peer import MAX_MESSAGE_BYTES, PREFIX, Peer
from tests.integration.support import PATIENCE_S


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def http2(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """The http2 transport by itself."""
    with Peer("http2", request.param) as peer:
        yield peer


def test_a_unary_call_by_hand(http2: Peer, tmp_path: Path):
    answer = curl(http2.address, PREFIX + "Echo", framed(b"by hand"), tmp_path)
    assert (answer.status, answer.body) == (200, framed(b"by hand"))
    assert answer.headers["content-type"].startswith("application/grpc")
    assert answer.headers["grpc-status"] == "0"


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"])
def test_other_names_of_the_content_type(http2: Peer, tmp_path: Path, content_type: str):
    answer = curl(http2.address, PREFIX + "Echo", framed(b"m"), tmp_path, **{"content-type": content_type})
    assert (answer.status, answer.body) == (200, framed(b"m"))


@pytest.mark.parametrize("content_type", ["application/json", "application/grpc-web", "application/grp", ""])
def test_another_content_type_is_415(http2: Peer, tmp_path: Path, content_type: str):
    answer = curl(http2.address, PREFIX + "Echo", None, tmp_path, **{"content-type": content_type})
    assert answer.status == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_another_http_method_is_405(http2: Peer, tmp_path: Path, method: str):
    answer = curl(http2.address, PREFIX + "Echo", None, tmp_path, method)
    assert answer.status == 405


@pytest.mark.parametrize("path", ["/", "/conformance.Peer", "/conformance.Peer/Absent", "/a?b=%20%ff"])
def test_an_unknown_path_is_unimplemented(http2: Peer, tmp_path: Path, path: str):
    answer = curl(http2.address, path, None, tmp_path)
    assert (answer.status, answer.headers["grpc-status"], answer.body) == (200, "12", b"")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "12"),  # no message
        (framed(b"a", b"b"), "12"),  # two
        (b"\0", "13"),
        (framed(b"whole")[:-1], "13"),
        (framed(b"m", flag=1), "13"),  # compressed, but not said how
        (framed(b"m", flag=2), "13"),
        (b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"), "8"),
        (b"\0\xff\xff\xff\xff", "8"),
    ],
    ids=["none", "two", "prefix", "cut", "flag-1", "flag-2", "large", "largest"],
)
@pytest.mark.parametrize("method", ["Echo", "EchoTask"])
def test_malformed_messages_are_refused(http2: Peer, tmp_path: Path, method: str, body: bytes, status: str):
    if method == "EchoTask" and body == framed(b"a", b"b"):
        pytest.skip("a task reads the first message and answers, as grpcio's do")
    answer = curl(http2.address, PREFIX + method, body, tmp_path)
    assert (answer.status, answer.headers["grpc-status"], answer.body) == (200, status, b"")
    assert answer.headers["grpc-message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_message_that_does_not_decompress_is_refused(http2: Peer, tmp_path: Path, encoding: str):
    body = framed(b"not compressed", flag=1)
    answer = curl(http2.address, PREFIX + "Echo", body, tmp_path, **{"grpc-encoding": encoding})
    assert answer.headers["grpc-status"] == "13"


def test_an_unknown_compression_is_unimplemented_and_says_what_is_known(http2: Peer, tmp_path: Path):
    answer = curl(http2.address, PREFIX + "Echo", None, tmp_path, **{"grpc-encoding": "br"})
    assert answer.headers["grpc-status"] == "12"
    assert answer.headers["grpc-accept-encoding"] == "identity,gzip,deflate"


@pytest.mark.parametrize("unit", "HMSmun")
def test_every_unit_of_a_timeout_is_read(http2: Peer, tmp_path: Path, unit: str):
    unit_s = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    timeout = f"{99_999_999}{unit}"
    answer = curl(http2.address, PREFIX + "Remaining", framed(b""), tmp_path, **{"grpc-timeout": timeout})
    if unit == "n":  # a tenth of a second, which may be over by now
        assert answer.headers["grpc-status"] in ("0", "4")
    else:
        assert 99_999_999 * unit_s - PATIENCE_S < float(answer.body[5:]) <= 99_999_999 * unit_s


@pytest.mark.parametrize("timeout", ["1", "S", "-1S", "1s", "123456789S", "1.5S", "1 S"])
def test_a_malformed_timeout_is_refused(http2: Peer, tmp_path: Path, timeout: str):
    answer = curl(http2.address, PREFIX + "Echo", None, tmp_path, **{"grpc-timeout": timeout})
    assert answer.headers["grpc-status"] == "13"


def test_a_request_over_http_1_is_closed(http2: Peer):
    done = run_curl("--http1.1", f"http://{http2.address}/")
    assert done.returncode != 0
    assert b"timed out" not in done.stderr


def test_a_connection_that_says_something_else_is_closed(http2: Peer):
    host, port = http2.address.split(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
        while connection.recv(4096):
            pass  # until it is closed


def test_nghttp_makes_calls_side_by_side(http2: Peer, tmp_path: Path):
    sent = tmp_path / "body"
    sent.write_bytes(framed(b"z" * 100_000))
    headers = [f"--header={name}: {value}" for name, value in GRPC.items()]
    url = f"http://{http2.address}{PREFIX}Echo"
    command = [need("nghttp"), *headers, f"--data={sent}", "--multiply=20", "--window-bits=10", url]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr.decode()
    # It prints what comes as it comes: all of it, but not in order.
    assert (len(done.stdout), done.stdout.count(b"z")) == (20 * sent.stat().st_size, 20 * 100_000)


def test_nghttp_sees_the_trailers(http2: Peer, tmp_path: Path):
    sent = tmp_path / "body"
    sent.write_bytes(framed(b"100 % text"))
    headers = [f"--header={name}: {value}" for name, value in GRPC.items()]
    command = [need("nghttp"), "--verbose", *headers, f"--data={sent}"]
    done = subprocess.run(
        [*command, f"http://{http2.address}{PREFIX}Fail"], capture_output=True, timeout=PATIENCE_S
    )
    said = done.stdout.decode()
    assert "grpc-status: 9" in said
    assert "grpc-message: 100 %25 text" in said
    assert "END_STREAM | END_HEADERS" in said
