"""An NVML of the tests' own: as much of the module pynvml as is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace


class FakeError(Exception):
    """NVML says no."""


@dataclass
class FakeNvml:
    """NVML of some devices by UUID, each of which tells what is in its dictionary."""

    devices: dict[str, dict[str, object]]
    NVMLError: type[Exception] = FakeError
    #: Which functions were called with what, in order.
    calls: list[str] = field(default_factory=list)
    #: Raised by every call, instead of an answer.
    broken: Exception | None = None

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.calls.append(uuid)
        if self.broken:
            raise self.broken
        if uuid not in self.devices:
            raise FakeError("Not Found")
        return self.devices[uuid]

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        assert sensor == 0
        return self.ask(handle, "Temperature")

    def __getattr__(self, name):
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda handle: self.ask(handle, name.removeprefix("nvmlDeviceGet"))

    def ask(self, handle, what):
        if what not in handle:
            raise FakeError("Not Supported")
        return handle[what]


def whole(**changes) -> dict[str, object]:
    """All that a GPU tells, in NVML's units."""
    return {
        "Name": "NVIDIA H200",
        "UtilizationRates": SimpleNamespace(gpu=91, memory=40),
        "MemoryInfo": SimpleNamespace(total=150_000, free=50_000, used=100_000),
        "PowerUsage": 512_400,
        "EnforcedPowerLimit": 700_000,
        "TotalEnergyConsumption": 5_000_000,
        "Temperature": 64,
        "CurrentClocksThrottleReasons": 0,
        **changes,
    }
