"""One version of a model in the server, from the wish to serve it to the last byte freed.

States only move forward, and each is set before anybody is told of it::

    LOADING -> READY -> UNLOADING -> UNAVAILABLE
       └──────────┴───────────────────^   (failed to load, or lost its GPU; ``reason`` says why)

A version that has lost its GPU still has its streams, until it is unloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import structlog

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import Intake, Pending
from tensorferry.batching.splitting import Splitter
from tensorferry.batching.statistics import BatcherStatistics, Counters
from tensorferry.clock import Clock
from tensorferry.engine.cached_intake import CachedIntake
from tensorferry.engine.ensemble_members import Resolve
from tensorferry.engine.on_devices import check_one_process, described
from tensorferry.engine.response_cache import CacheStatistics, ResponseCache
from tensorferry.errors import ConfigurationError, ModelLoadError, ModelNotReady
from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.launching import DeviceStatus
from tensorferry.execution.pool import Pool, open_pool
from tensorferry.model import ModelSpec
from tensorferry.repository import manifest

__all__ = ["ExecutionState", "Intake", "LiveModel", "Means", "ModelState"]

_log = structlog.get_logger("tensorferry.engine")


class ModelState(Enum):
    """Where a version is in its life. The values are those of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Means:
    """What all versions of a server share; see ``Engine``. ``resolve`` finds the models of ensembles.

    ``on_lost`` is called, with the reason, when a version has lost its GPU, after its state has changed.
    """

    clock: Clock
    admission: Admission
    max_queue_size: int
    cores: int = 0
    cache: ResponseCache | None = None
    memory_reserve_bytes: int = 0
    has_histograms: bool = True
    resolve: Resolve | None = None
    processes: int = 1
    on_lost: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class ExecutionState:
    """A version's worker streams at one moment, and how often it has moved on or off the loop thread.

    ``devices`` tells what each stream on a GPU has there, ``device_counts`` what the version's batches did on
    each GPU, by its name (``cuda:0``); both are empty on the CPU.
    """

    streams: int = 0
    busy: int = 0
    is_inline: bool = False
    moves: int = 0
    devices: tuple[DeviceStatus, ...] = ()
    device_counts: Mapping[str, DeviceCounts] = field(default_factory=dict)


class LiveModel:
    """A version, its streams and its batcher. Owned by the engine, used on the loop thread.

    ``asked`` is the specification that it was made from, ``spec`` the same with what loading taught.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.asked = spec
        self.spec = spec
        self.state = ModelState.LOADING
        self.reason = ""
        #: Whether other versions serve while this one failed: readiness doesn't ask for it then.
        self.is_newcomer = False
        #: Where requests go in while the state is READY, else None: one look for each request.
        self.intake: Intake | None = None
        self._pool: Pool | None = None
        self._batcher: Batcher | None = None
        self._intake: Intake | None = None
        self._splitter: Splitter | None = None
        self._cached: CachedIntake | None = None

    def check_ready(self) -> Intake:
        """Return where requests go in.

        Raises:
            ModelNotReady: in any other state; says which.
        """
        if self.intake is not None:
            return self.intake
        raise ModelNotReady(self._not_ready())

    async def load(self, means: Means) -> None:
        """Load, warm up and check off the loop. Never raises: a failure is a state with a reason."""
        try:
            check_one_process(self.asked, means.processes)
            await asyncio.to_thread(manifest.verify, self.asked.path.parent)
            pool = await open_pool(self.asked, means.cores, memory_reserve_bytes=means.memory_reserve_bytes)
            await _check_objective(pool)
        except ConfigurationError as error:
            self.fail(str(error))
            return
        self.spec = pool.spec
        self._pool = pool
        self._batcher = Batcher(
            pool.spec,
            pool,
            means.clock,
            means.admission,
            means.max_queue_size,
            pool.report.run_s,
            means.has_histograms,
        )
        intake: Intake = self._batcher
        if pool.spec.batching.split_oversized and pool.spec.has_batch_dimension:
            intake = self._splitter = Splitter(intake, pool.spec)
        if means.cache is not None and _is_cached(pool.spec, means.cache):
            intake = self._cached = CachedIntake(
                pool.spec, means.cache, intake, means.clock, means.admission, means.has_histograms
            )
        self.state = ModelState.READY
        self.intake = self._intake = intake
        pool.when_lost(lambda reason: self._lost(reason, means.on_lost))
        self._log_ready(pool)

    def fail(self, reason: str) -> None:
        """Note that the version can't be served."""
        self.reason = reason
        self.state = ModelState.UNAVAILABLE
        _log.error("model not loaded", model=self.spec.name, version=self.spec.version, reason=reason)

    @property
    def is_lost(self) -> bool:
        """Whether the version was ready, and has lost its GPU."""
        return self._pool is not None and self._pool.is_lost

    def put_before(self, outer: Callable[[Intake], Intake] | None) -> None:
        """Let requests go in through ``outer`` from now on; None: directly. Those that are in stay in."""
        if self.intake is not None and self._intake is not None:
            self.intake = outer(self._intake) if outer is not None else self._intake

    async def unload(self, grace_s: float = 0.0) -> None:
        """Refuse new requests, serve those that are here for ``grace_s``, end the rest, free the streams.

        May be called again with less grace when the first call was cancelled.
        """
        if self._pool is None or self._batcher is None:
            return
        self.state = ModelState.UNLOADING
        self.intake = None
        if grace_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.wait_idle()
        refusal = ModelNotReady(self._not_ready())
        if self._cached is not None:
            self._cached.close(refusal)
        self._batcher.fail_waiting(refusal)
        await self._batcher.wait_idle()
        self._batcher.close()
        pool, self._pool = self._pool, None
        await pool.close()
        self.state = ModelState.UNAVAILABLE
        self.reason = "unloaded"

    def cancel(self, request: Pending) -> None:
        """Give up a request that was submitted here, whatever state the version is in by now."""
        if self._intake is not None:
            self._intake.cancel(request)

    async def wait_idle(self) -> None:
        """Wait until no request waits or runs."""
        if self._batcher is not None:
            await self._batcher.wait_idle()

    @property
    def waiting(self) -> int:
        """Requests that wait for a stream."""
        return self._batcher.waiting if self._batcher is not None else 0

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        running = self._batcher.in_flight if self._batcher else 0
        # What the batcher has was submitted by the cached intake, which may have more waiting for it.
        return max(running, self._cached.in_flight) if self._cached else running

    def statistics(self) -> BatcherStatistics:
        """Return a snapshot of the version's counts; all zero before it is ready."""
        if self._batcher is None:
            return Counters().snapshot(0, 0)
        counts = self._batcher.statistics()
        if self._splitter is not None:
            counts = self._splitter.statistics(counts)
        return counts if self._cached is None else self._cached.statistics(counts)

    def execution(self) -> ExecutionState:
        """Return where and on how many streams the version runs now; zeros while it has none."""
        pool = self._pool
        if pool is None:
            return ExecutionState()
        busy = pool.count - pool.idle
        return ExecutionState(pool.count, busy, pool.is_inline, pool.moves, pool.devices, pool.device_counts)

    def cache_statistics(self) -> CacheStatistics:
        """Return a snapshot of what the response cache did for the version; zero without one."""
        return CacheStatistics() if self._cached is None else self._cached.cache_statistics()

    def _lost(self, reason: str, told: Callable[[str], None] | None) -> None:
        """Take no more requests: what comes fails, and another server may answer it."""
        _log.error(
            "model lost its GPU; the server isn't ready any more and has to be started anew",
            model=self.spec.name,
            version=self.spec.version,
            reason=reason,
        )
        if self.state is ModelState.READY:  # else it is on its way out already
            self.reason = reason
            self.state = ModelState.UNAVAILABLE
            self.intake = None
        if told is not None:
            told(reason)

    def _not_ready(self) -> str:
        what = f"model {self.spec.name!r} version {self.spec.version} is {self.state.value}"
        return f"{what}: {self.reason}" if self.reason else what

    def _log_ready(self, pool: Pool) -> None:
        times = {rows: f"{seconds * 1e3:.3f}" for rows, seconds in pool.report.run_s.items()}
        _log.info(
            "model ready",
            model=self.spec.name,
            version=self.spec.version,
            streams=len(self.spec.devices),
            execution="inline" if pool.is_inline else "thread",
            run_ms_by_rows=times,
            **({"devices": [described(each) for each in pool.devices]} if pool.devices else {}),
        )
        if pool.report.skipped:
            _log.warning(
                "model not warmed up",
                model=self.spec.name,
                version=self.spec.version,
                reason=pool.report.skipped,
            )


async def _check_objective(pool: Pool) -> None:
    """Refuse a latency objective that not even one row alone can meet; the pool is closed then.

    Raises:
        ModelLoadError: gives the objective and the measured time.
    """
    objective_ms = pool.spec.batching.latency_objective_ms
    quickest_ms = min(pool.report.run_s.values(), default=0.0) * 1e3
    if objective_ms and quickest_ms >= objective_ms:
        await pool.close()
        raise ModelLoadError(
            f"model {pool.spec.name!r} version {pool.spec.version}: latency_objective_ms is"
            f" {objective_ms:g}, and the quickest run at warm-up took {quickest_ms:.3g} ms; state an"
            " objective above the model's own run time, better twice that, or make the model faster"
        )


def _is_cached(spec: ModelSpec, cache: ResponseCache) -> bool:
    """Whether answers are kept: the model asks for it, and the server has a cache."""
    if not spec.response_cache:
        return False
    refusal = ""
    if not cache.is_enabled:
        refusal = "the server's response_cache_bytes is 0"
    elif spec.batching.preserve_ordering:
        refusal = "preserve_ordering is on, and an answer from the cache would overtake others"
    if refusal:
        _log.warning("responses not cached", model=spec.name, version=spec.version, reason=refusal)
    return not refusal
