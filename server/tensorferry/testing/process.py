"""A server as a child process: started, waited for, and stopped whatever happens.

Rules for this file: the standard library only, so that whatever needs a server in a process of its
own can use it without importing one.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Final

__all__ = ["SERVE", "Limits", "ListeningProcess", "ServerProcess", "ServerProcessError", "parse_listening"]

SERVE: Final = (sys.executable, "-m", "tensorferry", "serve")

_SHOWN_LOG_LINES: Final = 30
# The gRPC line ends with the transport's name in brackets.
_LISTENING: Final = re.compile(r"(grpc|http) listening on (\S+:\d+|unix:\S+)(?: \((\w+).*\))?")


class ServerProcessError(Exception):
    """The server didn't start, died, or didn't stop as it should. Holds the end of its log."""


def parse_listening(line: str) -> tuple[str, str] | None:
    """Return ("grpc" or "http", "host:port") from a line of the server's output, or None."""
    match = _LISTENING.fullmatch(line.strip())
    return (match[1], match[2]) if match else None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a server may take to start and to stop, in seconds."""

    start_s: float = 120.0
    stop_s: float = 30.0


class ListeningProcess:
    """A command that prints where it listens and then ``ready``, for the length of a ``with`` block.

    Entering returns once it has printed where it listens for all of ``listens_for`` ("grpc",
    "http") and ``ready``; leaving stops it with SIGTERM and requires exit code 0. What it writes
    to stderr goes to ``log_path``.

    Without a ``with`` block, its steps can be taken one by one: ``start``, ``wait_listening``,
    ``wait_ready``, ``send_signal``, ``wait``; then ``kill`` in the end, whatever happens.

    Raises:
        ServerProcessError: on entering, if it dies, isn't ready in ``limits.start_s``, or is ready
            with exceptions; on leaving, if it has died, takes longer than ``limits.stop_s`` (then
            it is killed), or ends with another code. An error raised inside the block comes first.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        listens_for: Sequence[str] = ("grpc",),
        limits: Limits | None = None,
    ) -> None:
        self._command = list(command)
        self._log_path = log_path
        self._listens_for = frozenset(listens_for)
        self._limits = limits or Limits()
        self._process: subprocess.Popen[str] | None = None
        self._addresses: dict[str, str] = {}
        self._transport = ""
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the gRPC service."""
        return self._addresses["grpc"]

    @property
    def transport(self) -> str:
        """The gRPC transport that it said it serves with, such as "grpcio"; "" if it didn't say."""
        return self._transport

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._started().pid

    def __enter__(self) -> ListeningProcess:
        self.start()
        try:
            line = self.wait_ready()
            if line != "ready":
                raise self._failure(f"says {line!r}")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        except ServerProcessError:
            if error is None:
                raise
        finally:
            self.kill()

    # -- step by step ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, and wait for nothing."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("w", encoding="utf-8") as log:
            # A session of its own: Ctrl-C in the terminal reaches this process alone, which then
            # stops the server in order. Sent to both, the server would see two signals.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        # The thread reads on after "ready", so that the server never blocks on a full pipe.
        Thread(target=_pass_on, args=(self._process.stdout, self._lines), daemon=True).start()

    def wait_listening(self) -> None:
        """Wait until it has said where it listens, for all that it should listen for.

        Raises:
            ServerProcessError: it ended, or took longer than ``limits.start_s``.
        """
        give_up_at = time.monotonic() + self._limits.start_s
        while self._listens_for - self._addresses.keys():
            if self._next_line(give_up_at).startswith("ready"):
                missing = sorted(self._listens_for - self._addresses.keys())
                raise self._failure(f"is ready without having said where it listens for {missing}")

    def wait_ready(self) -> str:
        """Wait until it says that it is ready; return the line: "ready", or "ready, except ...".

        Raises:
            ServerProcessError: as ``wait_listening``.
        """
        self.wait_listening()
        give_up_at = time.monotonic() + self._limits.start_s
        while not (line := self._next_line(give_up_at)).startswith("ready"):
            pass
        return line

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._started().send_signal(number)

    def wait(self) -> int:
        """Wait until it ends; return its exit code.

        Raises:
            ServerProcessError: it took longer than ``limits.stop_s``.
        """
        try:
            return self._started().wait(self._limits.stop_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"didn't end within {self._limits.stop_s:g} s") from None

    def kill(self) -> None:
        """Make sure that nothing stays behind. Does nothing to a process that has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return what it has written to stderr so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    # -- inside ---------------------------------------------------------------------------------

    def _started(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the process hasn't been started: use a with block, or start()"
        return self._process

    def _next_line(self, give_up_at: float) -> str:
        """Return the next line of stdout, and note the address if it states one."""
        try:
            line = self._lines.get(timeout=max(0.0, give_up_at - time.monotonic()))
        except Empty:
            raise self._failure(f"wasn't ready within {self._limits.start_s:g} s") from None
        if line is None:
            raise self._failure(f"ended with code {self._started().wait()} before it was ready")
        line = line.strip()
        if listening := _LISTENING.fullmatch(line):
            self._addresses[listening[1]] = listening[2]
            self._transport = listening[3] or self._transport
        return line

    def require_alive(self) -> None:
        """Make sure that it hasn't ended by itself.

        Raises:
            ServerProcessError: it has; with the end of its log.
        """
        process = self._started()
        if process.poll() is not None:
            raise self._failure(f"died with code {process.returncode}")

    def _stop(self) -> None:
        self.require_alive()
        self.send_signal(signal.SIGTERM)
        code = self.wait()
        if code:
            raise self._failure(f"ended with code {code} after SIGTERM, and 0 is expected")

    def _failure(self, what: str) -> ServerProcessError:
        log = self.log().splitlines()
        shown = "\n".join(f"  {line}" for line in log[-_SHOWN_LOG_LINES:]) or "  (nothing)"
        return ServerProcessError(f"the server {what}. The end of {self._log_path}:\n{shown}")


class ServerProcess(ListeningProcess):
    """``tensorferry serve`` on free ports, for the length of a ``with`` block.

    ``program`` is what the flags are given to, for a server that runs under another program.

    Raises:
        ServerProcessError: as ``ListeningProcess``.
    """

    def __init__(
        self,
        model_repository: Path,
        log_path: Path,
        *,
        flags: Sequence[str] = (),
        program: Sequence[str] = SERVE,
        limits: Limits | None = None,
    ) -> None:
        ports = ("--grpc-port", "0", "--http-port", "0")
        command = [*program, "--model-repository", str(model_repository), *ports, *flags]
        super().__init__(command, log_path, listens_for=("grpc", "http"), limits=limits)

    def __enter__(self) -> ServerProcess:
        super().__enter__()
        return self

    @property
    def http_address(self) -> str:
        """``host:port`` of health and metrics."""
        return self._addresses["http"]


def _pass_on(stream: IO[str], lines: SimpleQueue[str | None]) -> None:
    """Put each line into the queue, then None; at most a few lines come, so it needs no bound."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
