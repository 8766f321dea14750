"""The client @grpc/grpc-js, in a Node process, on Node's own HTTP/2."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from tests.integration.conformance.calls import CODES, Call, Outcome, Running, ours
from tests.integration.support import PATIENCE_S

GRPC_JS = Path(__file__).with_name("grpc_js")
CACHE = Path(__file__).parents[3] / ".cache" / "grpc-js"
INSTALL_S = 90


@functools.cache
def install_grpc_js() -> str:
    """Put the driver and its packages into CACHE, where they aren't yet. Returns why it can't, or ""."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm aren't installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    installed = CACHE / "installed-lock.json"
    lock = GRPC_JS / "package-lock.json"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(GRPC_JS / name, CACHE / name)
        quietly = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=0")
        try:
            subprocess.run(
                ["npm", "ci", *quietly], cwd=CACHE, check=True, capture_output=True, timeout=INSTALL_S
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return f"npm ci failed: {error}"
        shutil.copy(lock, installed)
    shutil.copy(GRPC_JS / "driver.js", CACHE / "driver.js")
    return ""


class GrpcJsClient:
    """A Node process that makes the calls it is told of, a line of JSON each."""

    def __init__(self, address: str) -> None:
        obstacle = install_grpc_js()
        if obstacle:
            pytest.skip(f"client not tested: @grpc/grpc-js ({obstacle})")
        self._process = subprocess.Popen(
            ["node", "driver.js", address],
            cwd=CACHE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._numbers = itertools.count()
        self._answers: dict[int, SimpleQueue[dict[str, Any]]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers[answer["id"]].put(answer)

    def _tell(self, **what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def start(self, call: Call) -> Running:
        number = next(self._numbers)
        answer = self._answers[number] = SimpleQueue()
        self._tell(
            id=number,
            path=call.path,
            messages=[_text(message) for message in call.messages],
            requestStreaming=call.request_streaming,
            responseStreaming=call.response_streaming,
            metadata=[[key, _text(value)] for key, value in call.metadata],
            timeoutMs=None if call.timeout_s is None else call.timeout_s * 1000,
        )
        return _GrpcJsRunning(answer, lambda: self._tell(id=number, cancel=True))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._reader.join(PATIENCE_S)
            self._process.stdout.close()


@dataclass
class _GrpcJsRunning:
    answer: SimpleQueue[dict[str, Any]]
    cancel: Callable[[], None]

    def outcome(self) -> Outcome:
        try:
            answer = self.answer.get(timeout=PATIENCE_S)
        except Empty:
            raise AssertionError("grpc-js gave no outcome") from None
        return Outcome(
            CODES[answer["code"]],
            answer["details"],
            tuple(base64.b64decode(message) for message in answer["messages"]),
            ours(_decoded(answer["initial"])),
            ours(_decoded(answer["trailing"])),
        )


def _text(value: str | bytes) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _decoded(pairs: list[list[str]]) -> Iterator[tuple[str, str | bytes]]:
    for key, value in pairs:
        yield key, base64.b64decode(value) if key.endswith("-bin") else value
