"""Families of GPUs: what the batches of each version did on its devices, and how the devices are.

Times are the devices' own, measured there by events. Copies and runs of successive batches overlap, so
their sums may together be more than the time that passed. A version on the CPU has no series here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.launching import DeviceStatus
from tensorferry.monitoring.families import Families, Family
from tensorferry.monitoring.gpus import Gpu

__all__ = ["OnDevices", "device_families", "gpu_families", "put_devices"]

_DEVICE: Final = ("model", "version", "device")

#: Name, help, attribute of ``DeviceCounts``, and what a unit of that is here.
_COUNTS: Final = (
    ("tensorferry_device_copy_in_seconds", "Copying inputs to the device", "copy_in_ns", 1e9),
    ("tensorferry_device_run_seconds", "Running the model on the device", "run_ns", 1e9),
    ("tensorferry_device_copy_out_seconds", "Copying outputs from the device", "copy_out_ns", 1e9),
    ("tensorferry_device_padded_rows", "Rows run to fill up a CUDA graph's batch", "padded_rows", 1),
    ("tensorferry_device_out_of_memory", "Batches that the device had no room for", "out_of_memory", 1),
)

#: Name, help, kind, labels, and how processes combine.
_OTHERS: Final = (
    ("tensorferry_device_batches", "Batches run on the device", "counter", (*_DEVICE, "graph"), "sum"),
    ("tensorferry_device_bytes", "Bytes copied, by direction", "counter", (*_DEVICE, "direction"), "sum"),
    (
        "tensorferry_device_row_limit",
        "Largest batch in rows since the device ran out of memory; 0 while it never has",
        "gauge",
        _DEVICE,
        "max",
    ),
    ("tensorferry_device_graphs", "Batch sizes with a CUDA graph, over all streams", "gauge", _DEVICE, "sum"),
    (
        "tensorferry_device_memory_bytes",
        "What the version's copies hold: weights, staging, graphs and workspace on the device, pinned on"
        " the host",
        "gauge",
        (*_DEVICE, "kind"),
        "sum",
    ),
    (
        "tensorferry_device_lost",
        "1 where a device of the version failed for good",
        "gauge",
        _DEVICE[:2],
        "max",
    ),
)

_MEMORY: Final = ("weights", "staging", "graphs", "workspace", "pinned")

_GPU: Final = ("gpu_uuid",)

#: Name, help, attribute of ``Gpu``.
_GAUGES: Final = (
    ("nv_gpu_utilization", "Share of the time in which the GPU ran anything, 0 to 1", "utilization"),
    ("nv_gpu_memory_total_bytes", "Memory of the GPU", "memory_total_bytes"),
    ("nv_gpu_memory_used_bytes", "Memory in use of that, by all processes", "memory_used_bytes"),
    ("nv_gpu_power_usage", "Power that the GPU draws, in W", "power_w"),
    ("nv_gpu_power_limit", "Power that it may draw, in W", "power_limit_w"),
    (
        "tensorferry_gpu_memory_utilization",
        "Share of the time in which the GPU's memory was read or written, 0 to 1",
        "memory_utilization",
    ),
    ("tensorferry_gpu_temperature_celsius", "Temperature of the GPU's die", "temperature_c"),
)


class OnDevices(Protocol):
    """What is known of a version on its devices: ``engine.live.ExecutionState``."""

    @property
    def devices(self) -> tuple[DeviceStatus, ...]:
        """One for each stream on a GPU."""
        ...

    @property
    def device_counts(self) -> Mapping[str, DeviceCounts]:
        """By device, as ``DeviceStatus.device`` names it."""
        ...


def device_families() -> list[Family]:
    """Return the families of versions on devices, without series."""
    counters = [Family(name, help, "counter", _DEVICE) for name, help, _, _ in _COUNTS]
    return counters + [Family(*each) for each in _OTHERS]


def put_devices(families: Families, key: tuple[str, ...], state: OnDevices, is_lost: bool) -> None:
    """Add the series of a version that is on devices, by ``key``, its model and version.

    ``is_lost``: one of its devices failed for good, and the version with it.
    """
    families["tensorferry_device_lost"].values[key] = is_lost
    for device in dict.fromkeys(each.device for each in state.devices):
        of_device = (*key, device)
        _put_counts(families, of_device, state.device_counts.get(device) or DeviceCounts())
        streams = [each for each in state.devices if each.device == device]
        families["tensorferry_device_graphs"].values[of_device] = sum(len(each.graphs) for each in streams)
        held = families["tensorferry_device_memory_bytes"].values
        for kind in _MEMORY:
            held[*of_device, kind] = sum(getattr(each.memory, kind) for each in streams)


def _put_counts(families: Families, key: tuple[str, ...], counts: DeviceCounts) -> None:
    for name, _, attribute, unit in _COUNTS:
        families[name].values[key] = getattr(counts, attribute) / unit
    batches = families["tensorferry_device_batches"].values
    batches[*key, "true"] = counts.graph_batches
    batches[*key, "false"] = counts.batches - counts.graph_batches
    moved = families["tensorferry_device_bytes"].values
    moved[*key, "in"] = counts.bytes_in
    moved[*key, "out"] = counts.bytes_out
    families["tensorferry_device_row_limit"].values[key] = counts.row_limit


def gpu_families(gpus: Collection[Gpu], devices: Mapping[str, str]) -> Families:
    """Return the families of GPUs; ``devices`` are their names here (cuda:0) by UUID.

    What a GPU doesn't tell has no series. Processes see the same GPUs: the most that any has seen.
    """
    info = Family(
        "tensorferry_gpu_info",
        "1, with the GPU's name, and the device that it is here",
        "gauge",
        ("gpu_uuid", "device", "name"),
        "max",
    )
    throttled = Family(
        "tensorferry_gpu_throttled",
        "1 where the GPU runs at lower clocks for this reason",
        "gauge",
        (*_GPU, "reason"),
        "max",
    )
    families = [Family(name, help, "gauge", _GPU, "max") for name, help, _ in _GAUGES]
    energy = Family("nv_energy_consumption", "Energy used since the start, in J", "counter", _GPU)
    for gpu in gpus:
        info.values[gpu.uuid, devices.get(gpu.uuid, ""), gpu.name] = 1
        for family, (_, _, attribute) in zip(families, _GAUGES, strict=True):
            _put(family, gpu.uuid, getattr(gpu, attribute))
        _put(energy, gpu.uuid, gpu.energy_j)
        for reason, is_at_work in gpu.throttled.items():
            throttled.values[gpu.uuid, reason] = is_at_work
    return {each.name: each for each in (info, *families, energy, throttled)}


def _put(family: Family, uuid: str, value: float | None) -> None:
    if value is not None:
        family.values[(uuid,)] = value
