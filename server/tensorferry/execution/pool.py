"""The streams of one model version: the ``Executor`` that its batcher hands batches to.

``open_pool`` loads a copy of the model in each stream, at the same time, and measures at warm-up
whether the model is so fast that a thread would only add latency; if so, it runs inline. While it
serves, a model on one CPU stream is measured on, and moves as its run time drifts.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends import opener
from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.drift import INLINE_BELOW_S, MAX_INLINE_S, DriftWatch
from tensorferry.execution.launching import DeviceStatus, LaunchingModel
from tensorferry.execution.lines import Lines
from tensorferry.execution.memory import LOADS
from tensorferry.execution.out_of_memory import refusing_out_of_memory
from tensorferry.execution.outcomes import Done
from tensorferry.execution.placement import Placement
from tensorferry.execution.stream import Conduct, InlineStream, Stream, ThreadStream
from tensorferry.execution.warmup import WarmupReport
from tensorferry.model import Model, ModelSpec

__all__ = ["Pool", "open_pool"]

#: Platforms whose models start no threads or processes that outlive the thread that loaded them:
#: OpenMP's belong to the thread that used them. See ``Conduct.loads_aside``.
_THREADLESS: Final = frozenset({"pytorch_libtorch"})

_NO_COUNTS: Final[Mapping[str, DeviceCounts]] = MappingProxyType({})


class Pool:
    """Idle and busy streams of one model version. Used on the loop thread only.

    With a ``placement`` the pool has its one stream, which becomes another when the model moves. With
    ``lines`` its streams, or some of them, are on GPUs, and take several batches at once.
    """

    def __init__(
        self,
        streams: list[Stream],
        spec: ModelSpec,
        report: WarmupReport,
        placement: Placement | None = None,
        lines: Lines | None = None,
    ) -> None:
        self.spec = spec
        self.report = report
        self._streams = streams
        self._idle = list(streams)
        self._placement = placement
        self._lines = lines

    @property
    def idle(self) -> int:
        """Streams that have nothing to run."""
        return len(self._idle) if self._lines is None else self._lines.idle

    @property
    def spare(self) -> int:
        """Places behind a batch that runs; 0 on the CPU."""
        return 0 if self._lines is None else self._lines.spare

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return when a batch in a spare place is best started; see ``Executor``."""
        return math.inf if self._lines is None else self._lines.follow_at(expected)

    @property
    def count(self) -> int:
        """All streams, idle and busy."""
        return len(self._streams)

    @property
    def moves(self) -> int:
        """How often the model has moved between the loop thread and a thread of its own."""
        return self._placement.moves if self._placement is not None else 0

    @property
    def is_inline(self) -> bool:
        """Whether the model runs on the loop thread."""
        return isinstance(self._streams[0], InlineStream)

    @property
    def devices(self) -> tuple[DeviceStatus, ...]:
        """What each stream on a GPU has there, in their order; empty on the CPU."""
        return () if self._lines is None else self._lines.devices

    @property
    def device_counts(self) -> Mapping[str, DeviceCounts]:
        """What the batches did on each GPU, by its name; these are the counts that go on, no copies."""
        return _NO_COUNTS if self._lines is None else self._lines.counts

    @property
    def is_lost(self) -> bool:
        """Whether a GPU has failed for good: the batches that it is given fail at once."""
        return self._lines is not None and bool(self._lines.lost)

    def when_lost(self, told: Callable[[str], None]) -> None:
        """Have ``told`` called, once and with the reason, should a GPU fail for good."""
        if self._lines is not None:
            self._lines.on_lost = told

    def start(self, batch: Batch, done: Done) -> None:
        """Run a batch on the stream that became idle last: its caches are the warmest.

        With no stream idle, in the spare place where it begins first.
        """
        if self._lines is not None:
            self._lines.start(batch, done)
            return
        stream = self._idle.pop()
        number = self._streams.index(stream)

        def finished(outcome: BatchOutcome) -> None:
            outcome.stream = number  # run times are learned by stream: devices differ
            self._idle.append(stream if self._placement is None else self._place(outcome))
            done(outcome)

        stream.start(batch, finished)

    async def close(self) -> None:
        """End the streams and free the models. No batch may be running or started again."""
        self._idle.clear()
        if self._lines is not None:
            self._lines.close()
        for stream in self._streams:
            stream.close()
        for stream in self._streams:
            await stream.wait_closed()
        if self._placement is not None:
            await self._placement.wait_left()

    def _place(self, outcome: BatchOutcome) -> Stream:
        assert self._placement is not None
        stream = self._placement.after(outcome.result)
        if stream is not self._streams[0]:
            self._streams = [stream]
        return stream

    def __repr__(self) -> str:
        return f"<Pool {len(self._streams)} streams, {self.idle} idle>"


async def open_pool(
    spec: ModelSpec,
    cores: int = 0,
    inline_below_s: float = INLINE_BELOW_S,
    memory_reserve_bytes: int = 0,
) -> Pool:
    """Load, warm up and check one model copy for each of ``spec.devices``.

    The streams share ``cores``; 0 means all that this process may run on.

    A model on one CPU stream whose slowest batch ran for less than ``inline_below_s`` begins
    inline, unless ``spec.execution`` says where it runs. A ``background`` one runs on a thread that
    everything else goes before. Loading must leave
    ``memory_reserve_bytes`` free on the host and on each device.

    Raises:
        ModelLoadError: it would not fit into memory, a copy didn't load or failed in warm-up, its
            outputs aren't those of its golden file, or it is to run inline and can't; none is left
            behind.
    """
    async with LOADS.admitted(spec, memory_reserve_bytes):
        return await _open(spec, cores, inline_below_s)


async def _open(spec: ModelSpec, cores: int, inline_below_s: float) -> Pool:
    load = opener(spec)
    loop = asyncio.get_running_loop()
    threads = spec.intra_op_threads or _threads_per_stream(cores, len(spec.devices))
    is_inline = spec.execution == "inline" and not spec.background
    if is_inline:
        _check_one_cpu(spec)
        threads = spec.intra_op_threads or 1  # measure it as it will run
    if spec.background:
        threads = 1

    streams = [
        ThreadStream(
            f"{spec.name}/{spec.version}#{number}",
            partial(_load, load, spec, device),
            threads,
            loop,
            conduct=_conduct(spec, device),
        )
        for number, device in enumerate(spec.devices)
    ]
    opened = await _opened(streams)
    model, report = opened[0]
    if any(isinstance(each, LaunchingModel) for each, _ in opened):
        lines = Lines(streams, [each for each, _ in opened])
        return Pool(list(streams), model.spec, report, lines=lines)
    # The opened model's word: one in a process of its own says thread, as its run waits for that.
    if spec.devices != ("cpu",) or model.spec.execution == "thread" or spec.background:
        # Several streams are the owner's wish for several threads.
        return Pool(list(streams), model.spec, report)
    if is_inline:
        await _check_bound(spec, streams[0], report)
    watch = _watch(spec, report, inline_below_s)
    placement = Placement(model, streams[0], report, watch, threads)
    await placement.wait_left()
    return Pool([placement.stream], model.spec, report, placement)


def _load(load: Callable[[ModelSpec, str], Model], spec: ModelSpec, device: str) -> Model:
    with refusing_out_of_memory(spec, device):
        return load(spec, device)


async def _opened(streams: list[ThreadStream]) -> list[tuple[Model, WarmupReport]]:
    """Wait until all are open; return their models and reports. On a failure, close all."""
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
        for stream in streams:
            await stream.wait_closed()  # who hears of the failure finds the memory free again
        raise failures[0]
    return [result for result in results if not isinstance(result, BaseException)]


def _conduct(spec: ModelSpec, device: str) -> Conduct:
    return Conduct(
        gives_way=device == "cpu",  # a GPU's run is long without keeping a core
        background=spec.background,
        # What warm-up and capturing set up on a GPU belongs in part to the thread that did it.
        loads_aside=device == "cpu" and not spec.background and spec.platform in _THREADLESS,
    )


def _watch(spec: ModelSpec, report: WarmupReport, inline_below_s: float) -> DriftWatch:
    slowest_s = report.slowest_s
    is_forced = spec.execution == "inline"
    return DriftWatch(
        is_inline=is_forced or (slowest_s is not None and slowest_s < inline_below_s),
        may_return=slowest_s is not None and slowest_s <= MAX_INLINE_S,
        stays=is_forced,
    )


def _check_one_cpu(spec: ModelSpec) -> None:
    if spec.devices != ("cpu",):
        raise ModelLoadError(
            f"model {spec.name!r} version {spec.version}: its execution is inline, which is on the loop"
            f" thread of the one process, and its instances are on {list(spec.devices)}; give it an"
            " instance_group of one CPU instance, or set its execution to auto or thread"
        )


async def _check_bound(spec: ModelSpec, stream: ThreadStream, report: WarmupReport) -> None:
    """Raise ModelLoadError, with the stream closed, unless every batch is known to be short enough."""
    slowest_s = report.slowest_s
    if slowest_s is not None and slowest_s <= MAX_INLINE_S:
        return
    stream.close()
    await stream.wait_closed()
    refusal = f"model {spec.name!r} version {spec.version}: its execution is inline, and "
    if slowest_s is None:
        raise ModelLoadError(
            f"{refusal}how long it would hold up every other call could not be measured: {report.skipped};"
            " or set its execution to auto or thread"
        )
    rows = max(report.run_s, key=report.run_s.__getitem__)
    raise ModelLoadError(
        f"{refusal}its batches of {rows} rows ran for {slowest_s * 1e3:.3g} ms at best, for which every other"
        f" call would be held up; at most {MAX_INLINE_S * 1e3:g} ms is allowed: set its execution to auto or"
        " thread, or lower its max_batch_size"
    )


def _threads_per_stream(cores: int, streams: int) -> int:
    return max(1, (cores or len(os.sched_getaffinity(0))) // streams)
