"""``tensorferry top`` at a running server: one picture, one frame, and live on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

import pytest
from tests.integration.support import PATIENCE_S

from tensorferry.testing.models import write_mlp
from tensorferry.testing.process import ServerProcess

TOP = (sys.executable, "-m", "tensorferry", "top", "--http")

ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"

#: What each picture begins with.
HOME = b"\x1b[H"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("top")
    write_mlp(root / "models")
    with ServerProcess(root / "models", root / "server.log") as process:
        yield process


class Terminal:
    """A program on a terminal: what it writes, and keys and signals for it."""

    def __init__(self, program: subprocess.Popen[bytes], end: int) -> None:
        self.program = program
        self._end = end
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        """Read until ``text`` has been written since the last call."""
        while text not in self.seen:
            ready, _, _ = select.select([self._end], [], [], PATIENCE_S)
            assert ready, f"{text!r} didn't come; there was {self.seen[-2000:]!r}"
            try:
                read = os.read(self._end, 65536)
            except OSError:  # the program has closed its end
                read = b""
            assert read, f"{text!r} didn't come before the end; there was {self.seen[-2000:]!r}"
            self.seen += read

    def picture(self) -> bytes:
        """Return the next picture that is drawn from its beginning to its end."""
        self.seen = b""
        self.wait_for(HOME)
        self.seen = self.seen.partition(HOME)[2]
        self.wait_for(HOME)
        return self.seen.partition(HOME)[0]

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def terminal(*program: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        program,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_one_picture_is_plain_text(served):
    done = subprocess.run(
        [*TOP, served.http_address, "--once"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "ready" in done.stdout
    assert "\nmlp " in done.stdout


def test_one_frame_is_json(served):
    done = subprocess.run(
        [*TOP, served.http_address, "--json"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    frame = json.loads(done.stdout)
    assert frame["server"]["ready"] is True
    assert [model["model"] for model in frame["models"]] == ["mlp"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_leaves_the_terminal_as_it_was(served, number):
    with terminal(*TOP, served.http_address) as screen:
        screen.wait_for(b"mlp")
        assert ENTER_SCREEN in screen.seen
        screen.program.send_signal(number)
        screen.wait_for(LEAVE_SCREEN)
        assert screen.program.wait(PATIENCE_S) == 0
        assert SHOW_CURSOR in screen.seen
        assert b"Traceback" not in screen.seen


def test_it_follows_the_terminals_size(served):
    with terminal(*TOP, served.http_address) as screen:
        screen.wait_for(b"mlp")
        assert b"cpu " not in screen.seen or b"unsent" not in screen.seen
        screen.resize(200, 50)
        screen.wait_for(b"unsent")


def test_it_waits_for_a_server_and_notices_when_it_goes_and_comes_back(tmp_path):
    write_mlp(tmp_path / "models")
    with ServerProcess(tmp_path / "models", tmp_path / "first.log") as first:
        address = first.http_address
    port = address.rpartition(":")[2]
    with terminal(*TOP, address) as screen:
        screen.wait_for(b"is the server running")
        with ServerProcess(tmp_path / "models", tmp_path / "second.log", flags=("--http-port", port)):
            screen.wait_for(b"requests/s")
        screen.wait_for(b"stale")
        screen.seen = b""
        with ServerProcess(tmp_path / "models", tmp_path / "third.log", flags=("--http-port", port)):
            while b"requests/s" not in (shown := screen.picture()) or b"stale" in shown:
                assert screen.program.poll() is None


def test_with_monitoring_off_it_says_so(tmp_path):
    write_mlp(tmp_path / "models")
    with ServerProcess(
        tmp_path / "models", tmp_path / "server.log", flags=("--monitoring", "off")
    ) as process:
        done = subprocess.run(
            [*TOP, process.http_address, "--once"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 1
    assert "--monitoring" in done.stderr
