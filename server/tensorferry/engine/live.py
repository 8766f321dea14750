"""One version of a model in the server, from the wish to serve it to the last byte freed.

States only move forward, and each is set before anybody is told of it::

    LOADING -> READY -> UNLOADING -> UNAVAILABLE
       └──────────────────────────────^   (failed to load; ``reason`` says why)
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import structlog

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import Pending
from tensorferry.batching.statistics import BatcherStatistics, Counters
from tensorferry.clock import Clock
from tensorferry.errors import ConfigurationError, ModelNotReady
from tensorferry.execution.pool import Pool, open_pool
from tensorferry.model import ModelSpec

__all__ = ["Intake", "LiveModel", "ModelState"]

_log = structlog.get_logger("tensorferry.engine")


class ModelState(Enum):
    """Where a version is in its life. The values are those of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Intake(Protocol):
    """Takes requests: the batcher, or what stands before it. Both methods are as ``Batcher``'s."""

    def submit(self, request: Pending) -> None:
        """Take a request, or raise."""
        ...

    def cancel(self, request: Pending) -> None:
        """Give a request up that was submitted here."""
        ...


class LiveModel:
    """A version, its streams and its batcher. Owned by the engine, used on the loop thread."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.state = ModelState.LOADING
        self.reason = ""
        #: Where requests go in while the state is READY, else None: one look for each request.
        self.intake: Intake | None = None
        self._pool: Pool | None = None
        self._batcher: Batcher | None = None
        self._intake: Intake | None = None

    def check_ready(self) -> Intake:
        """Return where requests go in.

        Raises:
            ModelNotReady: in any other state; says which.
        """
        if self.intake is not None:
            return self.intake
        raise ModelNotReady(self._not_ready())

    async def load(self, clock: Clock, admission: Admission, max_queue_size: int, cores: int = 0) -> None:
        """Load and warm up off the loop. Never raises: a failure is a state with a reason."""
        try:
            pool = await open_pool(self.spec, cores)
        except ConfigurationError as error:
            self.reason = str(error)
            self.state = ModelState.UNAVAILABLE
            _log.error(
                "model not loaded", model=self.spec.name, version=self.spec.version, reason=self.reason
            )
            return
        self.spec = pool.spec
        self._pool = pool
        self._batcher = Batcher(
            pool.spec, pool, clock, admission, max_queue_size
        )
        self.state = ModelState.READY
        self.intake = self._intake = self._batcher
        self._log_ready(pool)

    async def unload(self) -> None:
        """Refuse new requests, end those that wait, let what runs finish, free the streams."""
        if self.state is not ModelState.READY or self._pool is None or self._batcher is None:
            return
        self.state = ModelState.UNLOADING
        self.intake = None
        self._batcher.fail_waiting(ModelNotReady(self._not_ready()))
        await self._batcher.wait_idle()
        await self._pool.close()
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
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._batcher.in_flight if self._batcher else 0

    def statistics(self) -> BatcherStatistics:
        """Return a snapshot of the version's counts; all zero before it is ready."""
        return self._batcher.statistics() if self._batcher else Counters().snapshot(0, 0)

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
        )
        if pool.report.skipped:
            _log.warning(
                "model not warmed up",
                model=self.spec.name,
                version=self.spec.version,
                reason=pool.report.skipped,
            )
