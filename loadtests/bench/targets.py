"""The servers that are compared: how each is started, pinned to one core, and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test. ``{port}`` in the command is replaced by a free port.

    ``serves`` names the bodies that it answers. ``speaks`` is "grpc"; "http1" for a raw body by POST
    to ``path``; or "file" for nghttpd, the limit, which serves only a file. ``environment`` is added
    to ours.
    """

    name: str
    command: tuple[str, ...]
    serves: tuple[str, ...] = ("fraud",)
    speaks: str = "grpc"
    path: str = "/inference.GRPCInferenceService/ModelInfer"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_grpc(self) -> bool:
        """Whether gRPC callers can call it."""
        return self.speaks == "grpc"


@dataclass(frozen=True, slots=True)
class Running:
    """A started server."""

    target: Target
    port: int
    process: subprocess.Popen[bytes]
    scratch: Path

    def cpu_s(self) -> float:
        """Return the CPU seconds that the server and its children have used so far."""
        return sum(_cpu_s(pid) for pid in (self.process.pid, *_children(self.process.pid)))


def targets(repository: Path, static: Path) -> dict[str, Target]:
    """Return the servers that need nothing beyond ``make setup`` and Debian's nghttp2."""
    ours = (sys.executable, "-m", "tensorferry", "serve", "--model-repository", str(repository))
    ours += ("--grpc-port", "{port}", "--http-port", "0", "--log-level", "error", "--transport")
    minimal = (
        sys.executable,
        "-m",
        "loadtests.bench.minimal_grpc",
        str(repository / "fraud/1/model.pt"),
        "{port}",
    )
    return {
        "http2": Target("http2", (*ours, "http2"), ("fraud", "image")),
        "grpcio": Target("grpcio", (*ours, "grpcio"), ("fraud", "image")),
        "minimal": Target("minimal", minimal),
        "nghttpd": Target(
            "nghttpd", ("nghttpd", "--no-tls", "-d", str(static), "{port}"), speaks="file", path="/static"
        ),
    }


@contextlib.contextmanager
def started(target: Target, cores: str) -> Iterator[Running]:
    """Start ``target`` on ``cores`` (as taskset takes them), wait until it listens, stop it at the end."""
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in target.command]
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | target.environment,
        )
        try:
            _wait_until_listening(process, port, log, target)
            yield Running(target, port, process, Path(scratch))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: object, target: Target) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = _said(log)
        if process.poll() is not None:
            raise SystemExit(f"{target.name} ended with status {process.returncode}:\n{text}")
        if (not target.is_grpc or re.search("ready", text, re.IGNORECASE)) and _connects(port):
            return
        time.sleep(0.1)
    raise SystemExit(f"{target.name} didn't start within {_START_TIMEOUT_S:g} s:\n{_said(log)}")


def _said(log: object) -> str:
    log.seek(0)  # type: ignore[attr-defined]
    return log.read().decode(errors="replace")  # type: ignore[attr-defined,no-any-return]


def _connects(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_children(int(child))]
    return found
