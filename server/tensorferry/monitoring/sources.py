"""Where families come from: one process, or (``fleet.py``) all of several."""

from __future__ import annotations

from typing import Protocol

from tensorferry.monitoring.collect_devices import gpu_families
from tensorferry.monitoring.collect_engine import EngineCollector
from tensorferry.monitoring.collect_server import ServerCollector
from tensorferry.monitoring.families import Families
from tensorferry.monitoring.gpus import GpuSampler

__all__ = ["ProcessSource", "Source"]


class Source(Protocol):
    """Tells how the server is: all of it, however many processes it has."""

    async def families(self) -> Families:
        """Return the families of now. They belong to the caller, and must not be changed all the same."""
        ...


class ProcessSource:
    """The one process that asks. Used on the loop thread."""

    def __init__(
        self, engine: EngineCollector, server: ServerCollector, gpus: GpuSampler | None = None
    ) -> None:
        self._engine = engine
        self._server = server
        self._gpus = gpus or GpuSampler()

    async def families(self) -> Families:
        """Return the families of now."""
        families = await self._engine.collect() | self._server.collect()
        devices = self._engine.devices
        return families | gpu_families(self._gpus.gpus(devices), devices)
