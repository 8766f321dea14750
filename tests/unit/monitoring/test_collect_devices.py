"""Families of versions on GPUs and of GPUs, from what the engine and NVML tell of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tensorferry.device import DeviceMemory, DeviceRun
from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.launching import DeviceStatus
from tensorferry.monitoring.collect_devices import device_families, gpu_families, put_devices
from tensorferry.monitoring.families import Families, Family, merged
from tensorferry.monitoring.frames import frame_of
from tensorferry.monitoring.gpus import Gpu

KEY = ("m", "1")
ON_0 = (*KEY, "cuda:0")
MIB = 2**20


@dataclass
class State:
    """What ``ExecutionState`` tells of devices."""

    devices: tuple[DeviceStatus, ...] = ()
    device_counts: dict[str, DeviceCounts] = field(default_factory=dict)


def run(**changes) -> DeviceRun:
    """A batch that copied 2 ms, ran 5 ms and copied 1 ms."""
    known = {
        "copy_in_ns": 2_000_000,
        "run_ns": 5_000_000,
        "copy_out_ns": 1_000_000,
        "bytes_in": 600,
        "bytes_out": 40,
    }
    return DeviceRun(**{**known, **changes})


def counted(*runs: DeviceRun) -> DeviceCounts:
    counts = DeviceCounts()
    for each in runs:
        counts.ran(each)
    return counts


def status(device: str = "cuda:0", buckets=(1, 8), **memory) -> DeviceStatus:
    return DeviceStatus(device, f"GPU-{device[-1]}", DeviceMemory(**memory), buckets)


def put(state: State, *, is_lost: bool = False) -> Families:
    families = {each.name: each for each in device_families()}
    put_devices(families, KEY, state, is_lost)
    return families


def one(*runs: DeviceRun) -> Families:
    return put(State((status(),), {"cuda:0": counted(*runs)}))


def test_times_are_in_seconds_and_counted_by_device():
    families = one(run(), run())
    assert families["tensorferry_device_copy_in_seconds"].values == {ON_0: pytest.approx(0.004)}
    assert families["tensorferry_device_run_seconds"].values == {ON_0: pytest.approx(0.010)}
    assert families["tensorferry_device_copy_out_seconds"].values == {ON_0: pytest.approx(0.002)}


def test_batches_are_told_apart_by_whether_a_graph_ran_them():
    values = one(run(is_graph=True), run(is_graph=True), run())["tensorferry_device_batches"].values
    assert values == {(*ON_0, "true"): 2, (*ON_0, "false"): 1}


def test_bytes_are_told_apart_by_direction():
    values = one(run(), run())["tensorferry_device_bytes"].values
    assert values == {(*ON_0, "in"): 1200, (*ON_0, "out"): 80}


def test_padding_and_memory_that_ran_out_are_counted():
    families = one(run(padded_rows=3), run(out_of_memory=True, row_limit=16))
    assert families["tensorferry_device_padded_rows"].values == {ON_0: 3}
    assert families["tensorferry_device_out_of_memory"].values == {ON_0: 1}
    assert families["tensorferry_device_row_limit"].values == {ON_0: 16}


def test_a_device_that_ran_nothing_yet_has_all_its_series():
    families = put(State((status(),)))
    assert families["tensorferry_device_batches"].values == {(*ON_0, "true"): 0, (*ON_0, "false"): 0}
    assert families["tensorferry_device_row_limit"].values == {ON_0: 0}
    empty = [name for name, family in families.items() if not family.values]
    assert empty == []


def test_streams_of_one_device_are_added_up_and_devices_are_not():
    first = status(weights=100 * MIB, staging=2 * MIB, graphs=3 * MIB, workspace=4 * MIB, pinned=5 * MIB)
    shares = status(staging=2 * MIB, graphs=3 * MIB, workspace=4 * MIB, pinned=5 * MIB)
    other = status("cuda:1", buckets=(), weights=100 * MIB)
    families = put(State((first, shares, other)))
    held = families["tensorferry_device_memory_bytes"].values
    assert {kind: held[*ON_0, kind] / MIB for kind in ("weights", "staging", "graphs", "workspace")} == {
        "weights": 100,
        "staging": 4,
        "graphs": 6,
        "workspace": 8,
    }
    assert held[*ON_0, "pinned"] == 10 * MIB
    assert held[*KEY, "cuda:1", "weights"] == 100 * MIB
    assert families["tensorferry_device_graphs"].values == {ON_0: 4, (*KEY, "cuda:1"): 0}


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_lost_device_is_the_versions(is_lost: bool):
    families = put(State((status(),)), is_lost=is_lost)
    assert families["tensorferry_device_lost"].values == {KEY: is_lost}


def test_processes_add_up():
    both = merged([one(run()), one(run(row_limit=8))])
    assert both["tensorferry_device_bytes"].values[*ON_0, "in"] == 1200
    assert both["tensorferry_device_row_limit"].values == {ON_0: 8}


# -- GPUs -----------------------------------------------------------------------------------------------

H200 = Gpu(
    "GPU-0", "NVIDIA H200", 0.9, 0.4, 150, 100, 512.5, 700.0, 12.5, 64, {"thermal": True, "power_cap": False}
)


def test_a_gpu_has_tritons_families_by_uuid():
    families = gpu_families([H200], {"GPU-0": "cuda:0"})
    triton = {name: family.values for name, family in families.items() if name.startswith("nv_")}
    assert triton == {
        "nv_gpu_utilization": {("GPU-0",): 0.9},
        "nv_gpu_memory_total_bytes": {("GPU-0",): 150},
        "nv_gpu_memory_used_bytes": {("GPU-0",): 100},
        "nv_gpu_power_usage": {("GPU-0",): 512.5},
        "nv_gpu_power_limit": {("GPU-0",): 700.0},
        "nv_energy_consumption": {("GPU-0",): 12.5},
    }
    assert all(families[name].labels == ("gpu_uuid",) for name in triton)


def test_a_gpu_is_named_as_it_is_here():
    families = gpu_families([H200], {"GPU-0": "cuda:3"})
    assert families["tensorferry_gpu_info"].values == {("GPU-0", "cuda:3", "NVIDIA H200"): 1}
    throttled = families["tensorferry_gpu_throttled"].values
    assert throttled == {("GPU-0", "thermal"): True, ("GPU-0", "power_cap"): False}


def test_what_a_gpu_does_not_tell_has_no_series():
    families = gpu_families([Gpu("MIG-1", "part", memory_total_bytes=9, memory_used_bytes=0)], {})
    told = {name for name, family in families.items() if family.values}
    assert told == {"tensorferry_gpu_info", "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"}


def test_without_gpus_there_are_families_and_no_series():
    families = gpu_families([], {})
    assert "nv_gpu_utilization" in families
    assert not any(family.values for family in families.values())


# -- frames ---------------------------------------------------------------------------------------------


def framed(before: Families, after: Families, interval_s: float = 1.0):
    """The frame of two moments, between which 96 requests of a row each were answered."""
    for families, count in ((before, 0.0), (after, 96.0)):
        for name in ("nv_inference_count", "nv_inference_request_success"):
            families[name] = Family(name, "", "counter", ("model", "version"), values={KEY: count})
    return frame_of(before, after, interval_s, 1000.0)


def test_a_frame_has_the_shares_of_the_devices_time_that_copies_and_runs_took():
    before, after = one(run()), one(*[run(padded_rows=1, is_graph=True)] * 4, run(padded_rows=0))
    (model,) = framed(before, after, interval_s=0.1)["models"]
    assert model["device"] == {
        "names": ["cuda:0"],
        "run": 0.2,
        "copy_in": 0.08,
        "copy_out": 0.04,
        "graphs": 1.0,
        "padded_rows": 0.04,
        "row_limit": 0,
        "out_of_memory_per_s": 0.0,
        "memory_bytes": 0,
    }


def test_the_shares_of_two_devices_are_their_mean_and_never_above_one():
    def on_both(runs: int) -> Families:
        counts = {device: counted(*[run()] * runs) for device in ("cuda:0", "cuda:1")}
        return put(State((status(), status("cuda:1")), counts))

    device = framed(on_both(0), on_both(10), interval_s=0.1)["models"][0]["device"]
    assert device["names"] == ["cuda:0", "cuda:1"]
    assert (device["run"], device["copy_in"]) == (0.5, 0.2)
    assert framed(on_both(0), on_both(90), interval_s=0.1)["models"][0]["device"]["run"] == 1.0


def test_a_model_on_a_gpu_is_as_busy_as_the_gpu_is_with_it():
    (model,) = framed(one(), one(run(), run()), interval_s=0.1)["models"]
    assert model["busy"] == model["device"]["run"] == 0.1


def test_the_least_row_limit_is_told():
    counts = {f"cuda:{number}": counted(run(row_limit=limit)) for number, limit in enumerate((0, 32, 16))}
    state = State(tuple(status(device) for device in counts), counts)
    assert framed(put(state), put(state))["models"][0]["device"]["row_limit"] == 16


def test_a_model_on_the_cpu_has_no_device_and_the_server_no_gpus():
    made = framed(put(State()), put(State()))
    assert made["models"][0]["device"] is None
    assert made["gpus"] == []


def test_a_frame_tells_each_gpu_in_the_order_of_its_devices():
    part = Gpu("AAA", "part", memory_total_bytes=9, memory_used_bytes=3)
    families = gpu_families([H200, part], {"GPU-0": "cuda:0", "AAA": "cuda:1"})
    first, second = frame_of({}, families, 1.0, 1000.0)["gpus"]
    assert first == {
        "uuid": "GPU-0",
        "device": "cuda:0",
        "name": "NVIDIA H200",
        "utilization": 0.9,
        "memory_used_bytes": 100,
        "memory_total_bytes": 150,
        "power_w": 512.5,
        "power_limit_w": 700.0,
        "temperature_c": 64,
        "throttled": ["thermal"],
    }
    assert (second["device"], second["utilization"], second["throttled"]) == ("cuda:1", None, [])
