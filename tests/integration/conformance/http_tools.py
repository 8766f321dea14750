"""curl and nghttp: HTTP/2 clients that know nothing of gRPC."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.support import PATIENCE_S

GRPC = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: its headers and trailers together, all names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def framed(*messages: bytes, flag: int = 0) -> bytes:
    """Return messages as gRPC frames them."""
    return b"".join(bytes([flag]) + len(message).to_bytes(4, "big") + message for message in messages)


def need(program: str) -> str:
    """Return where a program is, or skip."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"client not tested: {program} (not installed)")
    return path


def run_curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run curl, whatever comes of it."""
    command = [need("curl"), "--silent", "--show-error", "--max-time", f"{PATIENCE_S:g}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=2 * PATIENCE_S)


def curl(
    address: str, path: str, body: bytes | None, directory: Path, method: str = "POST", **headers: str
) -> Answer:
    """Make a request over HTTP/2; ``headers`` go with GRPC's, or replace them."""
    heads, sent = directory / "headers", directory / "body"
    arguments = ["--http2-prior-knowledge", "--request", method, "--dump-header", str(heads)]
    if body is not None:
        sent.write_bytes(body)
        arguments += ["--data-binary", f"@{sent}"]
    for name, value in (GRPC | headers).items():
        arguments += ["--header", f"{name}: {value}"]
    done = run_curl(*arguments, f"http://{address}{path}")
    assert done.returncode == 0, done.stderr.decode()
    first, *rest = heads.read_text("latin-1").splitlines()
    fields = (line.partition(":") for line in rest if ":" in line)
    return Answer(
        int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, done.stdout
    )
