"""The streams of one model version: the ``Executor`` that its batcher hands batches to.

``open_pool`` loads a copy of the model in each stream, at the same time, and measures at warm-up
whether the model is so fast that a thread would only add latency; if so, it runs inline.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Final

import structlog

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import ConfigurationError
from tensorferry.execution.backends import opener
from tensorferry.execution.stream import Done, InlineStream, Stream, ThreadStream
from tensorferry.execution.warmup import WarmupReport, warm_up
from tensorferry.model import ModelSpec

__all__ = ["INLINE_BELOW_S", "Pool", "open_pool"]

_log = structlog.get_logger("tensorferry.execution")

#: A batch that runs for less than this runs on the loop thread: two GIL hand-overs between busy
#: threads cost 0.1-0.2 ms, and a worker thread gave 0.8 of the inline throughput on one core.
INLINE_BELOW_S: Final = 150e-6


class Pool:
    """Idle and busy streams of one model version. Used on the loop thread only."""

    def __init__(self, streams: list[Stream], spec: ModelSpec, report: WarmupReport) -> None:
        self.spec = spec
        self.report = report
        self._streams = streams
        self._idle = list(streams)

    @property
    def idle(self) -> int:
        """Streams that would start a batch at once."""
        return len(self._idle)

    @property
    def is_inline(self) -> bool:
        """Whether the model runs on the loop thread."""
        return isinstance(self._streams[0], InlineStream)

    def start(self, batch: Batch, done: Done) -> None:
        """Run a batch on the stream that became idle last: its caches are the warmest."""
        stream = self._idle.pop()

        def finished(outcome: BatchOutcome) -> None:
            self._idle.append(stream)
            done(outcome)

        stream.start(batch, finished)

    async def close(self) -> None:
        """End the streams and free the models. No batch may be running or started again."""
        self._idle.clear()
        for stream in self._streams:
            stream.close()
        for stream in self._streams:
            await stream.wait_closed()

    def __repr__(self) -> str:
        return f"<Pool {len(self._streams)} streams, {len(self._idle)} idle>"


async def open_pool(spec: ModelSpec, cores: int = 0, inline_below_s: float = INLINE_BELOW_S) -> Pool:
    """Load and warm up one model copy for each of ``spec.devices``.

    The streams share ``cores``; 0 means all that this process may run on.

    A model on one CPU stream whose slowest batch ran for less than ``inline_below_s`` runs inline.

    Raises:
        ModelLoadError: a copy didn't load or failed in warm-up; none is left behind.
    """
    load = opener(spec)
    loop = asyncio.get_running_loop()
    threads = spec.intra_op_threads or _threads_per_stream(cores, len(spec.devices))

    streams = [
        ThreadStream(f"{spec.name}/{spec.version}#{number}", partial(load, spec, device), threads, loop)
        for number, device in enumerate(spec.devices)
    ]
    try:
        results = await asyncio.gather(*(stream.opened for stream in streams), return_exceptions=True)
    except asyncio.CancelledError:
        for stream in streams:
            stream.close()
        raise
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        for stream, result in zip(streams, results, strict=True):
            if not isinstance(result, BaseException):
                stream.close()
        raise failures[0]
    model, report = next(result for result in results if not isinstance(result, BaseException))
    if _runs_inline(spec, report, inline_below_s):
        return await _inline(streams[0], spec.intra_op_threads or 1)
    return Pool(list(streams), model.spec, report)


def _runs_inline(spec: ModelSpec, report: WarmupReport, below_s: float) -> bool:
    # Several streams are the owner's wish for several threads; a GPU's run is never so short.
    slowest = report.slowest_s
    return spec.devices == ("cpu",) and slowest is not None and slowest < below_s


async def _inline(stream: ThreadStream, intra_op_threads: int) -> Pool:
    model = await stream.surrender()
    # Some of what warm-up builds is the thread's own; at this model's pace, doing it again here
    # takes a few milliseconds.
    model.attach(intra_op_threads)
    try:
        report = warm_up(model)
    except ConfigurationError:
        model.close()
        raise
    return Pool([InlineStream(model)], model.spec, report)


def _threads_per_stream(cores: int, streams: int) -> int:
    return max(1, (cores or len(os.sched_getaffinity(0))) // streams)
