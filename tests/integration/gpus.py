"""Families of a server whose model is on a GPU that is too hot, made up: no GPU is needed."""

from __future__ import annotations

from tensorferry.device import DeviceMemory, DeviceRun
from tensorferry.engine.live import ExecutionState
from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.launching import DeviceStatus
from tensorferry.monitoring.collect_devices import device_families, gpu_families, put_devices
from tensorferry.monitoring.families import Families
from tensorferry.monitoring.gpus import Gpu

__all__ = ["families_of"]

HOT = Gpu("GPU-1", "NVIDIA H200", 0.91, 0.4, 150 << 30, 60 << 30, 512.0, 700.0, 9.5, 92, {"thermal": True})


def families_of(model: str, version: str, batches: int) -> Families:
    """Return families after so many batches on ``cuda:0``, of 2 ms each; the last ran out of memory."""
    counts = DeviceCounts()
    for _ in range(batches):
        counts.ran(DeviceRun(500_000, 2_000_000, 100_000, 4096, 64, is_graph=True, padded_rows=1))
    counts.ran(DeviceRun(500_000, 2_000_000, 100_000, 4096, 64, row_limit=48, out_of_memory=True))
    status = DeviceStatus("cuda:0", HOT.uuid, DeviceMemory(weights=3 << 30, pinned=1 << 20), (1, 8, 32))
    state = ExecutionState(streams=1, devices=(status,), device_counts={"cuda:0": counts})
    families = {each.name: each for each in device_families()}
    put_devices(families, (model, version), state, is_lost=False)
    return families | gpu_families([HOT], {HOT.uuid: "cuda:0"})
