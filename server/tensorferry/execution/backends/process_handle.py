"""One child process as the server sees it: started, spoken to, listened to, and ended.

What the child prints goes to the server's log, by a thread that reads it to the end. It reads
whatever comes, so that the child is never blocked; of a flood it logs a part.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Final

import structlog

from tensorferry.execution.backends.process_wire import MAX_MESSAGE_BYTES, decode
from tensorferry.model import ModelSpec

__all__ = ["ChildProcess", "Gone"]

_log = structlog.get_logger("tensorferry.model_process")

_MODULE: Final = "tensorferry.execution.backends.process_child"
#: How long a child may take to free its model when it is told to.
_END_S: Final = 1.0
#: How long to wait for what a child that is dead has printed: its own children may hold the pipe.
_LAST_WORDS_S: Final = 0.5
#: Lines that are logged at once and in a second; a longer line is cut to so many bytes.
_BURST_LINES: Final = 200
_LINES_PER_S: Final = 100
_MAX_LINE_BYTES: Final = 4096
_KEPT_LINES: Final = 12

# The kernel ends a child (PR_SET_PDEATHSIG) when the thread that started it is over. A stream's
# thread may be over while its model lives on another's; this thread lives as long as the server.
_spawner: Final = ThreadPoolExecutor(1, thread_name_prefix="model-processes")


class Gone(Exception):
    """The child has died, or doesn't read any more."""


class ChildProcess:
    """A running child. Used by one thread at a time; ``kill`` may come from any.

    ``fds`` are the shared regions that it maps: its inputs' first, then its outputs'.

    Raises:
        OSError: the system doesn't start another process.
    """

    def __init__(self, spec: ModelSpec, fds: Sequence[int]) -> None:
        self.name = f"{spec.name}/{spec.version}"
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = own
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        with other:
            numbers = [str(fd) for fd in (other.fileno(), *fds)]
            # -P: the directory that the server was started in is no place for its modules.
            program = ["/usr/bin/env", *_environment(spec), sys.executable]
            command = [*program, "-P", "-m", _MODULE, self.name, str(os.getpid()), *numbers]
            starting = _spawner.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(other.fileno(), *fds),
                # Out of the terminal's reach, and a group of its own with all that the model starts.
                start_new_session=True,
            )
            try:
                self._process = starting.result()
            except BaseException:
                own.close()
                raise
        assert self._process.stdout is not None, "stdout is a pipe"
        self._pidfd = os.pidfd_open(self._process.pid)
        self._reaping = threading.Lock()
        self._printed = _Printed(spec, self._process.stdout)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            Gone: nobody reads it any more.
        """
        try:
            self._channel.send(message)
        except OSError as error:
            raise Gone from error

    def receive(self, timeout_s: float | None = None) -> tuple[str, list[Any]]:
        """Wait for a message, without the GIL; return its kind and fields.

        Raises:
            Gone: the child has died.
            Malformed: what came is no message.
            TimeoutError: nothing came for ``timeout_s``.
        """
        channel = self._channel
        if channel.gettimeout() != timeout_s:
            channel.settimeout(timeout_s)
        try:
            size = channel.recv_into(self._buffer)
        except TimeoutError:
            raise
        except OSError as error:
            raise Gone from error
        if not size:
            raise Gone
        return decode(bytes(memoryview(self._buffer)[:size]))

    def end(self) -> None:
        """Close the channel, which tells the child to free its model; kill it if it doesn't."""
        self._channel.close()
        if not self._is_over(_END_S):
            _log.warning("model process doesn't end; killing it", process=self.name, pid=self.pid)
        self.kill()
        self._printed.wait()

    def kill(self) -> None:
        """Kill the child and all that it has started, and wait until it is gone."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer hears of the end
        with self._reaping:
            if self._process.returncode is None:
                # Before it is waited for: until then its number, which is its group's, is its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
                os.close(self._pidfd)

    def death(self) -> str:
        """Wait until a child whose channel is closed is over; say how, as in "was killed by SIGSEGV"."""
        is_over = self._is_over(_END_S)
        self.kill()
        if not is_over:
            return "closed its channel and was killed"
        status = self._process.returncode
        if status >= 0:
            return f"ended with status {status}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
        return f"was killed by signal {-status}"

    def _is_over(self, within_s: float) -> bool:
        """Wait for the end without taking note of it: the number stays the child's."""
        with self._reaping:
            if self._process.returncode is not None:
                return True
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            return bool(poller.poll(within_s * 1e3))

    def last_lines(self) -> list[str]:
        """Return what a child that is over printed last, oldest line first."""
        return self._printed.last_lines()


class _Printed:
    """Reads what a child prints, on a thread of its own, until nobody can print any more."""

    def __init__(self, spec: ModelSpec, pipe: IO[bytes]) -> None:
        self._log = _log.bind(model=spec.name, version=spec.version)
        self._pipe = pipe
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._tokens = float(_BURST_LINES)
        self._at = time.monotonic()
        self._left_out = 0
        self._thread = threading.Thread(target=self._read, name=f"printed {spec.name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join(_LAST_WORDS_S)

    def last_lines(self) -> list[str]:
        self.wait()
        return list(self._lines)

    def _read(self) -> None:
        with self._pipe:
            while line := self._pipe.readline(_MAX_LINE_BYTES):
                text = line.decode("utf-8", "backslashreplace").rstrip()
                if text:
                    self._lines.append(text)
                    self._say(text)
        self._say_left_out()

    def _say(self, text: str) -> None:
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._at) * _LINES_PER_S, _BURST_LINES)
        self._at = now
        if self._tokens < 1.0:
            self._left_out += 1
            return
        self._tokens -= 1.0
        self._say_left_out()
        self._log.info("model printed", line=text)

    def _say_left_out(self) -> None:
        if self._left_out:
            self._log.warning("model prints too much", lines_left_out=self._left_out)
            self._left_out = 0


def _environment(spec: ModelSpec) -> list[str]:
    """What the child's environment has beside the server's: its module path, and how many threads
    the numeric libraries may start, which they ask as they are loaded."""
    threads = spec.intra_op_threads or max(1, len(os.sched_getaffinity(0)) // len(spec.devices))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    counted = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return [f"PYTHONPATH={path}", *[f"{name}={threads}" for name in counted]]
