"""One version of an ensemble in the server: a live model without a model of its own.

It is ready while the models of its steps are. So its state goes both ways between READY and
UNAVAILABLE, at ``refresh``, which the engine calls whenever a model comes or goes.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from tensorferry.batching.statistics import BatcherStatistics, Counters
from tensorferry.engine.ensemble import EnsembleIntake
from tensorferry.engine.live import LiveModel, Means, ModelState
from tensorferry.errors import ConfigurationError, ModelNotReady
from tensorferry.model import ModelSpec
from tensorferry.repository import manifest

__all__ = ["LiveEnsemble", "live_model"]

_log = structlog.get_logger("tensorferry.engine")


def live_model(spec: ModelSpec) -> LiveModel:
    """Return what a version lives in: by its specification a model's, or an ensemble's."""
    return LiveEnsemble(spec) if spec.steps else LiveModel(spec)


class LiveEnsemble(LiveModel):
    """A version of an ensemble. Owned by the engine, used on the loop thread."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._ensemble: EnsembleIntake | None = None

    async def load(self, means: Means) -> None:
        """Look whether the steps' models are there. Never raises: a failure is a state with a reason."""
        try:
            await asyncio.to_thread(manifest.verify, self.asked.path)
        except ConfigurationError as error:
            self.fail(str(error))
            return
        assert means.resolve is not None, "an engine gives its ensembles the way to its models"
        self._ensemble = EnsembleIntake(self.spec, means.resolve, means.clock, means.has_histograms)
        self._intake = self._ensemble
        self.state = ModelState.UNAVAILABLE
        self.refresh()
        if self.state is not ModelState.READY:
            _log.error(
                "ensemble not ready", model=self.spec.name, version=self.spec.version, reason=self.reason
            )

    def refresh(self) -> bool:
        """Look again whether the steps' models are there; return whether the state has changed."""
        if self._ensemble is None or self.state is ModelState.UNLOADING:
            return False
        reasons = self._ensemble.missing()
        self.reason = "; ".join(reasons)
        state = ModelState.UNAVAILABLE if reasons else ModelState.READY
        if state is self.state:
            return False
        self.state = state
        self.intake = None if reasons else self._intake
        return True

    async def unload(self, grace_s: float = 0.0) -> None:
        """Refuse new requests, let those that are here finish for ``grace_s``, end the rest."""
        ensemble = self._ensemble
        if ensemble is None:
            return
        self.state = ModelState.UNLOADING
        self.intake = None
        if grace_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await ensemble.wait_idle()
        ensemble.fail_waiting(ModelNotReady(self._not_ready()))
        await ensemble.wait_idle()
        self._ensemble = None
        self.state = ModelState.UNAVAILABLE
        self.reason = "unloaded"

    async def wait_idle(self) -> None:
        """Wait until no request is under way."""
        if self._ensemble is not None:
            await self._ensemble.wait_idle()

    @property
    def waiting(self) -> int:
        """Nothing waits here: the steps' models have queues."""
        return 0

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._ensemble.in_flight if self._ensemble is not None else 0

    def statistics(self) -> BatcherStatistics:
        """Return a snapshot of the ensemble's counts, of whole requests."""
        return self._ensemble.statistics() if self._ensemble is not None else Counters().snapshot(0, 0)
