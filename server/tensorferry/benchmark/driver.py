"""The generator in a process of its own, so that a progress bar or an interrupt never makes a call late.

The parent gives it jobs through a pipe and reads how far it is from shared memory. The first Ctrl-C
tells it to stop, and it hands over what was measured; the second ends at once.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.sharedctypes import RawArray
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tensorferry.benchmark.arrivals import Schedule
from tensorferry.benchmark.closed import Closed, run_closed
from tensorferry.benchmark.generator import run
from tensorferry.benchmark.loop import CannotConnect, Options
from tensorferry.benchmark.traffic import Result, Stream
from tensorferry.errors import TensorferryError

if TYPE_CHECKING:
    Shared = Any

__all__ = ["Driver", "GeneratorFailed", "Job", "Progress"]

_STOP, _NOW, _SENT, _ENDED = range(4)
_LOOK_S: Final = 0.1
_NO_SCHEDULE: Final = np.empty(0)

Progress = Callable[[float, int, int], None]


class GeneratorFailed(TensorferryError):
    """The generator couldn't run: no server there, or its process has died."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run against ``target``: a schedule in ``plan`` is an open loop, a ``Closed`` a closed one."""

    target: str
    model: str
    messages: Sequence[bytes]
    plan: Schedule | Closed
    options: Options


class _SharedWatch:
    """Numbers that both processes see."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    @property
    def stop(self) -> bool:
        return bool(self._shared[_STOP])

    def tell(self, now_s: float, sent: int, ended: int) -> None:
        self._shared[_NOW], self._shared[_SENT], self._shared[_ENDED] = now_s, sent, ended


class Driver:
    """A generator's process, for the length of a ``with`` block; Ctrl-C is its to handle meanwhile."""

    def __init__(self) -> None:
        #: Whether Ctrl-C was pressed: there should be no more runs.
        self.interrupted = False
        context = multiprocessing.get_context("spawn")
        self._shared: Shared = RawArray("d", 4)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._shared), daemon=True)
        self._theirs = theirs
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Driver:
        # Ignored signals stay ignored in a new process: only this one hears of Ctrl-C.
        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._process.start()
        self._theirs.close()
        signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def run(self, job: Job, progress: Progress) -> Result:
        """Run a job; ``progress`` is called ten times a second with (seconds, sent, ended).

        Raises:
            GeneratorFailed: no server there, or the process has died.
            ValueError: the job makes no sense.
        """
        self._shared[_NOW] = self._shared[_SENT] = self._shared[_ENDED] = 0
        try:
            self._pipe.send(job)
            while not self._pipe.poll(_LOOK_S):
                progress(self._shared[_NOW], int(self._shared[_SENT]), int(self._shared[_ENDED]))
            done: Result | Exception = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise GeneratorFailed(
                f"the generator's process has died (exit code {self._process.exitcode}): was it killed for "
                "its memory? Give fewer --seconds or a lower rate"
            ) from None
        if isinstance(done, CannotConnect):
            raise GeneratorFailed(f"{done}. bench speaks plain text only (no TLS)")
        if isinstance(done, Exception):
            raise done
        return done

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self._shared[_STOP] = 1


def _serve(pipe: Pipe, shared: Shared) -> None:
    """Do jobs until the pipe is closed."""
    watch = _SharedWatch(shared)
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_do(job, watch))
        except (CannotConnect, ValueError, OSError) as error:
            pipe.send(error)


def _do(job: Job, watch: _SharedWatch) -> Result:
    if isinstance(job.plan, Closed):
        stream = Stream(job.model, _NO_SCHEDULE, job.messages)
        return run_closed(job.target, stream, job.plan, job.options, watch)
    return run(job.target, [Stream(job.model, job.plan, job.messages)], job.options, watch)
