"""The part of a frame that is about GPUs: how each is, and how a version's batches fill its devices."""

from __future__ import annotations

from typing import Any, Final

from tensorferry.monitoring.change import Change, Key, rounded

__all__ = ["device_of", "gpus_of"]

#: Name in the frame, and the gauge that it is.
_GAUGES: Final = (
    ("utilization", "nv_gpu_utilization"),
    ("memory_used_bytes", "nv_gpu_memory_used_bytes"),
    ("memory_total_bytes", "nv_gpu_memory_total_bytes"),
    ("power_w", "nv_gpu_power_usage"),
    ("power_limit_w", "nv_gpu_power_limit"),
    ("temperature_c", "tensorferry_gpu_temperature_celsius"),
)


def gpus_of(change: Change) -> list[dict[str, Any]]:
    """Return how each GPU is that a model is on; empty where there is none.

    ``throttled`` are the reasons that lower its clocks now. Other values are None where the GPU doesn't
    tell them.
    """
    throttled: dict[str, list[str]] = {}
    for uuid, reason in change.labels_of("tensorferry_gpu_throttled"):
        if change.gauge("tensorferry_gpu_throttled", (uuid, reason)):
            throttled.setdefault(uuid, []).append(reason)
    return [
        {
            "uuid": uuid,
            "device": device,
            "name": name,
            **{field: change.gauge(gauge, (uuid,)) for field, gauge in _GAUGES},
            "throttled": sorted(throttled.get(uuid, ())),
        }
        for uuid, device, name in sorted(change.labels_of("tensorferry_gpu_info"), key=lambda each: each[1])
    ]


def device_of(change: Change, key: Key) -> dict[str, Any] | None:
    """Return how a version fills its devices, all of them together; None where it is on none.

    ``run``, ``copy_in`` and ``copy_out`` are the shares of the devices' time that its runs and its copies
    took: they overlap, and the greatest is what bounds it.
    ``graphs`` is the share of batches that ran as a CUDA graph, ``padded_rows`` the share of rows that
    only filled one up; None while nothing ran. ``row_limit`` is the least that a device has learned by
    running out of memory, in rows; 0: none has.
    """
    devices = change.last_labels("tensorferry_device_row_limit", key)
    if not devices:
        return None
    limits = [change.gauge("tensorferry_device_row_limit", (*key, device)) or 0.0 for device in devices]
    padded = _sum(change, "tensorferry_device_padded_rows", key)
    rows = padded + (change.rate("nv_inference_count", key) or 0.0)
    return {
        "names": devices,
        "run": _share(_sum(change, "tensorferry_device_run_seconds", key), len(devices)),
        "copy_in": _share(_sum(change, "tensorferry_device_copy_in_seconds", key), len(devices)),
        "copy_out": _share(_sum(change, "tensorferry_device_copy_out_seconds", key), len(devices)),
        "graphs": _graphs(change, key, devices),
        "padded_rows": rounded(padded / rows) if rows else None,
        "row_limit": min((limit for limit in limits if limit), default=0.0),
        "out_of_memory_per_s": rounded(_sum(change, "tensorferry_device_out_of_memory", key)),
        "memory_bytes": _memory_bytes(change, key, devices),
    }


def _sum(change: Change, name: str, key: Key) -> float:
    return sum(change.reasons(name, key).values())


def _share(part: float, whole: float) -> float | None:
    """Streams of one device overlap, and what began before the interval may end in it."""
    return rounded(min(1.0, part / whole))


def _graphs(change: Change, key: Key, devices: list[str]) -> float | None:
    batches = [change.reasons("tensorferry_device_batches", (*key, device)) for device in devices]
    total = sum(sum(each.values()) for each in batches)
    return rounded(sum(each.get("true", 0.0) for each in batches) / total) if total else None


def _memory_bytes(change: Change, key: Key, devices: list[str]) -> float:
    kinds = ("weights", "staging", "graphs", "workspace")
    name = "tensorferry_device_memory_bytes"
    return sum(change.gauge(name, (*key, device, kind)) or 0.0 for device in devices for kind in kinds)
