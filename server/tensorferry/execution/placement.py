"""Moves a model on one CPU stream between the loop thread and a thread of its own.

A move happens on the loop thread as a batch ends, when nobody runs the model: the next batch
starts at the new place, and none waits for the move. The model object itself moves; it is neither
loaded nor warmed up again (see ``ThreadStream``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from tensorferry.clock import LoopClock
from tensorferry.execution.drift import DriftWatch
from tensorferry.execution.stream import Conduct, InlineStream, Stream, ThreadStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import Model, RunResult

__all__ = ["Clocks", "Placement"]

_log = structlog.get_logger("tensorferry.execution")

_NS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds that pass, and seconds of CPU time of the calling thread, for one run in ``cpu_every``."""

    now: Callable[[], float] = LoopClock.now
    cpu: Callable[[], float] = time.thread_time
    cpu_every: int = 1


_REAL: Final = Clocks(cpu_every=8)


class Placement:
    """One model copy, the stream that it is in, and the watch that says when to move it.

    ``threads`` are the intra-op threads that it has on a thread of its own. Used on the loop
    thread.
    """

    def __init__(
        self,
        model: Model,
        stream: ThreadStream,
        report: WarmupReport,
        watch: DriftWatch,
        threads: int,
        clocks: Clocks = _REAL,
    ) -> None:
        #: Where the next batch runs.
        self.stream: Stream = stream
        #: How often the model has moved while it served.
        self.moves = 0
        self._model = model
        self._report = report
        self._watch = watch
        self._threads = threads
        self._now = clocks.now
        self._conduct = Conduct(cpu_clock=clocks.cpu, cpu_every=clocks.cpu_every)
        #: The thread that the model left last. It has nothing to do but to end.
        self._left: ThreadStream | None = None
        if watch.is_inline:
            self.stream = self._inline(stream)

    def after(self, result: RunResult | None) -> Stream:
        """Take in what a batch's run took, None if it failed; return where the next one runs."""
        if result is None:
            return self.stream
        run_s = (result.input_ns + result.infer_ns + result.output_ns) * _NS
        if self._watch.saw(run_s, self.stream.last_cpu_s, self._now()):
            self._move(run_s)
        return self.stream

    async def wait_left(self) -> None:
        """Wait until the thread that the model left last is over."""
        if self._left is not None:
            await self._left.wait_closed()
            self._left = None

    def _move(self, run_s: float) -> None:
        stream = self.stream
        try:
            self.stream = self._inline(stream) if isinstance(stream, ThreadStream) else self._thread()
        except RuntimeError as error:  # "can't start new thread": the system's limit is reached
            _log.warning("model can't move", model=self._model.spec.name, reason=str(error))
            return
        _log.info(
            "model moved",
            model=self._model.spec.name,
            version=self._model.spec.version,
            execution="thread" if self._watch.is_inline else "inline",
            mean_cpu_ms=round(self._watch.mean_s * 1e3, 3),
            last_run_ms=round(run_s * 1e3, 3),
        )
        self._watch.moved()
        self.moves += 1

    def _inline(self, stream: ThreadStream) -> InlineStream:
        stream.release()
        self._left = stream
        self._model.attach(self._model.spec.intra_op_threads or 1)
        return InlineStream(self._model, self._conduct)

    def _thread(self) -> ThreadStream:
        spec, model = self._model.spec, self._model
        name = f"{spec.name}/{spec.version}#0"
        loop = asyncio.get_running_loop()
        return ThreadStream(name, lambda: model, self._threads, loop, self._report, self._conduct)
