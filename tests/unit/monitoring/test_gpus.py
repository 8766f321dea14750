"""What is read of GPUs by an NVML of the test's own, which is asked on a thread that the test moves on."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from tests.unit.monitoring.nvml import FakeNvml, whole

from tensorferry.monitoring.gpus import GpuReader, GpuSampler, NvmlMissing, open_nvml

ONE, TWO = "GPU-1", "GPU-2"


class Bench:
    """A sampler, the clock that it reads, and the thread that it starts: ``turns`` readings at a time."""

    def __init__(self, nvml: FakeNvml | None = None, missing: str = "") -> None:
        self.nvml = nvml or FakeNvml({ONE: whole(), TWO: whole()})
        self.missing = missing
        self.at = 100.0
        self.opened = 0
        self.threads = []
        self.sampler = GpuSampler(self.open, lambda: self.at, self.threads.append, self.pause)
        self.turns = 1

    def open(self) -> FakeNvml:
        self.opened += 1
        if self.missing:
            raise NvmlMissing(self.missing)
        return self.nvml

    def pause(self, seconds: float) -> None:
        """Let the thread go on for as many turns as it was given; then leave it where it is."""
        self.turns -= 1
        self.at += seconds
        if not self.turns:
            raise Paused

    def let_read(self, turns: int = 1) -> None:
        """Run the thread that was started; it stays, as one that pauses."""
        self.turns = turns
        run = self.threads.pop()
        read_on = self.sampler._is_reading
        try:
            run()
        except Paused:
            self.sampler._is_reading = read_on
            self.threads.append(run)

    def gpus(self, *uuids):
        return self.sampler.gpus(uuids or (ONE,))


class Paused(BaseException):
    """The thread is where it waits for its next turn."""


def read(**device):
    (gpu,) = GpuReader(FakeNvml({ONE: device})).read([ONE])
    return gpu


# -- one reading --------------------------------------------------------------------------------------


def test_what_a_gpu_tells_is_in_shares_bytes_watts_joules_and_degrees():
    gpu = read(**whole())
    assert (gpu.uuid, gpu.name) == (ONE, "NVIDIA H200")
    assert (gpu.utilization, gpu.memory_utilization) == (0.91, 0.4)
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes) == (150_000, 100_000)
    assert (gpu.power_w, gpu.power_limit_w, gpu.temperature_c) == (512.4, 700.0, 64)


def test_what_a_part_of_a_gpu_does_not_tell_is_not_known():
    gpu = read(Name="MIG 1g.18gb", MemoryInfo=SimpleNamespace(total=10, used=4))
    assert (gpu.name, gpu.memory_used_bytes) == ("MIG 1g.18gb", 4)
    assert (gpu.utilization, gpu.memory_utilization, gpu.power_w, gpu.power_limit_w) == (None,) * 4
    assert (gpu.energy_j, gpu.temperature_c, gpu.throttled) == (None, None, {})


def test_a_part_of_a_gpu_is_found_though_cuda_calls_it_a_gpu():
    nvml = FakeNvml({"MIG-7": whole()})
    (gpu,) = GpuReader(nvml).read(["GPU-7"])
    assert gpu.uuid == "GPU-7"
    assert nvml.calls == ["GPU-7", "MIG-7"]


def test_a_gpu_that_nvml_does_not_know_is_left_out():
    reader = GpuReader(FakeNvml({TWO: whole()}))
    assert [gpu.uuid for gpu in reader.read([ONE, TWO])] == [TWO]
    assert reader.missing == {ONE: "Not Found"}
    assert reader.read([TWO])
    assert reader.missing == {}


@pytest.mark.parametrize(
    ("bits", "at_work"),
    [
        (0x00, set()),
        (0x01, set()),  # idle
        (0x02, set()),  # as an administrator set them
        (0x04, {"power_cap"}),
        (0x08, {"hardware"}),
        (0x20, {"thermal"}),
        (0x40, {"thermal"}),
        (0x48, {"thermal", "hardware"}),
        (0x80, {"hardware"}),
    ],
)
def test_reasons_for_lower_clocks_have_names(bits: int, at_work: set[str]):
    throttled = read(**whole(CurrentClocksThrottleReasons=bits)).throttled
    assert {reason for reason, is_at_work in throttled.items() if is_at_work} == at_work
    assert set(throttled) == {"power_cap", "thermal", "hardware"}


def test_energy_is_counted_from_the_first_reading_and_never_falls():
    device = whole(TotalEnergyConsumption=5_000_000)
    reader = GpuReader(FakeNvml({ONE: device}))

    def energy_j(counter_mj: int):
        device["TotalEnergyConsumption"] = counter_mj
        return reader.read([ONE])[0].energy_j

    # The driver was loaded anew before the last.
    assert [energy_j(each) for each in (5_000_000, 5_000_500, 6_000_000, 2000)] == [0, 0.5, 1000, 1002]


def test_the_bits_are_those_of_the_package():
    pynvml = pytest.importorskip("pynvml", reason="the extra gpu isn't installed")
    for bits in (0x04, 0x20 | 0x40, 0x08 | 0x80):
        assert bits & pynvml.nvmlClocksThrottleReasonAll == bits
    assert pynvml.nvmlClocksThrottleReasonSwPowerCap == 0x04
    assert pynvml.nvmlClocksThrottleReasonSwThermalSlowdown == 0x20
    assert pynvml.nvmlClocksThrottleReasonHwThermalSlowdown == 0x40
    assert pynvml.nvmlClocksThrottleReasonHwSlowdown == 0x08
    assert pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown == 0x80
    assert pynvml.NVML_TEMPERATURE_GPU == 0


def test_the_package_has_every_function_that_is_called():
    pynvml = pytest.importorskip("pynvml", reason="the extra gpu isn't installed")
    nvml = FakeNvml({ONE: whole()})
    names = [f"nvmlDeviceGet{name}" for name in (*nvml.devices[ONE], "HandleByUUID")]
    assert [name for name in names if not callable(getattr(pynvml, name, None))] == []
    assert issubclass(pynvml.NVMLError, Exception)


# -- reading on -----------------------------------------------------------------------------------------


def test_who_asks_never_waits_and_gets_what_was_read_last():
    bench = Bench()
    assert bench.gpus() == ()
    assert bench.nvml.calls == []
    bench.let_read()
    assert [gpu.uuid for gpu in bench.gpus()] == [ONE]


def test_nothing_is_read_while_no_model_is_on_a_gpu():
    bench = Bench()
    assert bench.sampler.gpus(()) == ()
    assert bench.sampler.gpus([""]) == ()
    assert (bench.threads, bench.opened) == ([], 0)


def test_one_thread_reads_every_two_seconds_however_many_ask():
    bench = Bench()
    for _ in range(5):
        bench.gpus()
    assert len(bench.threads) == 1
    began = bench.at
    bench.let_read(turns=3)
    assert (bench.nvml.calls, bench.at - began) == ([ONE] * 3, 6.0)


def test_reading_follows_the_models():
    bench = Bench()
    bench.gpus(ONE)
    bench.let_read()
    assert [gpu.uuid for gpu in bench.gpus(TWO)] == []
    bench.let_read()
    assert [gpu.uuid for gpu in bench.gpus(TWO)] == [TWO]
    assert bench.nvml.calls == [ONE, TWO]


def test_reading_ends_when_the_last_model_has_left_and_begins_again():
    bench = Bench()
    bench.gpus()
    bench.sampler.gpus(())
    bench.let_read()
    assert (bench.threads, bench.nvml.calls) == ([], [])
    bench.gpus()
    bench.let_read()
    assert bench.gpus()
    assert bench.opened == 1


def test_reading_ends_when_nobody_asks():
    bench = Bench()
    bench.gpus()
    bench.let_read(turns=100)
    assert bench.threads == []
    assert len(bench.nvml.calls) == 30


def test_what_was_read_long_ago_is_not_told():
    bench = Bench()
    bench.gpus()
    bench.let_read()
    bench.at += 8.0
    assert bench.gpus()
    bench.at += 2.5
    with capture_logs() as logs:
        assert bench.gpus() == ()
        assert bench.gpus() == ()
    assert [each["log_level"] for each in logs] == ["warning"]
    assert "hasn't answered" in logs[0]["reason"]
    assert len(bench.threads) == 1  # none beside the one that hangs
    bench.let_read()
    assert bench.gpus()


def test_without_nvml_it_is_said_once_how_to_get_it():
    bench = Bench(missing="no package: install it")
    with capture_logs() as logs:
        for _ in range(3):
            assert bench.gpus() == ()
            if bench.threads:
                bench.let_read()
            bench.at += 61.0
    assert bench.opened == 3
    assert [(each["log_level"], each["reason"]) for each in logs] == [("info", "no package: install it")]


def test_an_nvml_that_is_missing_is_not_asked_for_again_at_once():
    bench = Bench(missing="gone")
    bench.gpus()
    bench.let_read()
    bench.at += 59.0
    bench.gpus()
    assert (bench.opened, bench.threads) == (1, [])


def test_whatever_a_driver_does_only_these_metrics_are_lost():
    bench = Bench()
    bench.nvml.broken = OSError("no such symbol")
    bench.gpus()
    with capture_logs() as logs:
        bench.let_read()
    assert bench.gpus() == ()
    assert "no such symbol" in logs[0]["reason"]
    bench.nvml.broken = None
    bench.at += 61.0
    bench.gpus()
    bench.let_read()
    assert bench.gpus()


def test_a_gpu_that_is_not_found_is_named_once():
    bench = Bench()
    bench.gpus("GPU-9")
    with capture_logs() as logs:
        bench.let_read(turns=5)
    assert [each["reason"] for each in logs] == ["NVML doesn't know of {'GPU-9': 'Not Found'}"]


# -- opening --------------------------------------------------------------------------------------------


def test_without_the_package_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NvmlMissing, match=r"tensorferry\[gpu\]"):
        open_nvml()


def test_without_a_driver_it_is_said_where_nvml_comes_from(monkeypatch):
    pynvml = pytest.importorskip("pynvml", reason="the extra gpu isn't installed")

    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    with pytest.raises(NvmlMissing, match="comes with NVIDIA's driver"):
        open_nvml()
