"""How busy and how full the GPUs are that models run on, by NVML, NVIDIA's own library.

Reading takes milliseconds, and NVML of a driver in trouble has hung for minutes. So a thread reads, every
two seconds while somebody asks and a model is on a GPU; who asks gets what was read last, at once. What
wasn't read again for ten seconds is no longer told.

Source: NVIDIA's NVML API reference, sections "Device Queries" and "NvmlClocksEventReasons". A device is found
by its UUID, as CUDA_VISIBLE_DEVICES and MIG number devices in ways of their own. PCIe throughput is left out:
NVML measures it by waiting 20 ms, and what models move is counted exactly (``tensorferry_device_bytes``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol, TypeVar, cast

import structlog

__all__ = ["THROTTLED_BY", "Gpu", "GpuReader", "GpuSampler", "Nvml", "NvmlMissing", "open_nvml"]

T = TypeVar("T")

#: Between two readings.
_EVERY_S: Final = 2.0
#: What is older isn't told any more.
_STALE_S: Final = 10.0
#: Nobody has asked for so long: nobody scrapes, and nobody watches.
_IDLE_S: Final = 60.0
#: After this an NVML that couldn't be opened is tried again.
_RETRY_S: Final = 60.0

#: NVML's bits of the reasons for lower clocks, by the names that they have here. The power cap is at work
#: whenever a device gives all that its limit lets it; the others mean that something is wrong.
THROTTLED_BY: Final[Mapping[str, int]] = MappingProxyType(
    {
        "power_cap": 0x04,  # SwPowerCap
        "thermal": 0x20 | 0x40,  # SwThermalSlowdown, HwThermalSlowdown
        "hardware": 0x08 | 0x80,  # HwSlowdown, HwPowerBrakeSlowdown
    }
)

#: nvmlTemperatureSensors_t: the sensor of the GPU's die.
_DIE: Final = 0

_log = structlog.get_logger("tensorferry.monitoring")

_Handle = object


class NvmlMissing(Exception):
    """NVML can't be had here; the message says why, and how to get it."""


class _Utilization(Protocol):
    gpu: int  # per cent, as the next
    memory: int


class _Memory(Protocol):
    total: int  # bytes, as the next
    used: int


class Nvml(Protocol):
    """The functions of the module ``pynvml`` that are used, by their names there.

    Each raises ``NVMLError`` where the device doesn't have what is asked for.
    """

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: D102, N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> _Handle: ...  # noqa: D102, N802
    def nvmlDeviceGetName(self, handle: _Handle, /) -> str: ...  # noqa: D102, N802
    def nvmlDeviceGetUtilizationRates(self, handle: _Handle, /) -> _Utilization: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryInfo(self, handle: _Handle, /) -> _Memory: ...  # noqa: D102, N802
    def nvmlDeviceGetPowerUsage(self, handle: _Handle, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: _Handle, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: _Handle, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetTemperature(self, handle: _Handle, sensor: int, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: _Handle, /) -> int: ...  # noqa: D102, N802


@dataclass(frozen=True, slots=True)
class Gpu:
    """What was read of one device; None is what it doesn't tell: of a part of a GPU (MIG) that is most.

    Utilizations are shares of the last moments, 0 to 1: ``utilization`` of the time in which anything ran,
    ``memory_utilization`` of the time in which device memory was read or written. Power is in watts,
    ``energy_j`` in joules since it was read first. ``throttled`` says of each reason whether it lowers the
    clocks now.
    """

    uuid: str
    name: str = ""
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    throttled: Mapping[str, bool] = field(default_factory=dict[str, bool])


def open_nvml() -> Nvml:
    """Load and initialize NVML. It is never shut down: other parts of the process may use it, too.

    Raises:
        NvmlMissing: the package, the driver or a device isn't there.
    """
    try:
        import pynvml
    except ImportError:
        raise NvmlMissing("the package nvidia-ml-py is missing: pip install 'tensorferry[gpu]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlMissing(
            f"NVML can't be opened: {error}. It comes with NVIDIA's driver (libnvidia-ml.so.1); in a"
            " container, NVIDIA_DRIVER_CAPABILITIES must include utility"
        ) from None
    return cast("Nvml", pynvml)


class GpuReader:
    """Reads devices. Used on one thread at a time; a call may take long."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        #: Why devices weren't found in the last reading, by UUID.
        self.missing: dict[str, str] = {}
        #: The last reading of each device's energy counter in mJ, and the sum of its steps.
        self._energy_mj: dict[str, tuple[int, int]] = {}

    def read(self, uuids: Iterable[str]) -> tuple[Gpu, ...]:
        """Return what there is to know of devices by their UUIDs. Those not found are in ``missing``."""
        self.missing = {}
        found = ((uuid, self._handle(uuid)) for uuid in sorted(uuids))
        return tuple(self._gpu(uuid, handle) for uuid, handle in found if handle is not None)

    def _handle(self, uuid: str) -> _Handle | None:
        # Asked anew each time, in microseconds: a handle doesn't outlive a device that was reset.
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            # CUDA tells the UUID of a part of a GPU without saying that it is a part's.
            part = uuid.replace("GPU-", "MIG-", 1)
            handle = self._told(lambda: self._nvml.nvmlDeviceGetHandleByUUID(part))
            if handle is None:
                self.missing[uuid] = str(error)
            return handle

    def _gpu(self, uuid: str, handle: _Handle) -> Gpu:
        nvml = self._nvml
        use = self._told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        reasons = self._told(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return Gpu(
            uuid,
            self._told(lambda: nvml.nvmlDeviceGetName(handle)) or "",
            None if use is None else use.gpu / 100,
            None if use is None else use.memory / 100,
            None if memory is None else memory.total,
            None if memory is None else memory.used,
            _thousandth(self._told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))),
            _thousandth(self._told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))),
            self._energy_j(uuid, self._told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))),
            self._told(lambda: nvml.nvmlDeviceGetTemperature(handle, _DIE)),
            {} if reasons is None else {name: bool(reasons & bits) for name, bits in THROTTLED_BY.items()},
        )

    def _told(self, ask: Callable[[], T]) -> T | None:
        """Return what a device tells; None where it doesn't."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None

    def _energy_j(self, uuid: str, now_mj: int | None) -> float | None:
        """Return the sum of the counter's steps: it begins anew when the driver is loaded again."""
        if now_mj is None:
            return None
        last_mj, sum_mj = self._energy_mj.get(uuid, (now_mj, 0))
        sum_mj += now_mj - last_mj if now_mj >= last_mj else now_mj
        self._energy_mj[uuid] = (now_mj, sum_mj)
        return sum_mj / 1000


class GpuSampler:
    """Tells how GPUs are without ever waiting for NVML. ``gpus`` is called on the loop thread.

    ``start`` runs a function on a thread, ``pause`` waits there for so many seconds.
    """

    def __init__(
        self,
        opened: Callable[[], Nvml] = open_nvml,
        now: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._opened = opened
        self._now = now
        self._start = start or _on_a_thread
        self._pause = pause
        # Set by the asker, read by the thread.
        self._wanted: frozenset[str] = frozenset()
        self._asked_at = now()
        # Set by the thread, read by the asker; is_reading is set by the asker too, while there is no thread.
        self._is_reading = False
        self._read: tuple[float, tuple[Gpu, ...]] = (now(), ())
        self._not_before = now()
        self._reader: GpuReader | None = None
        self._complaint = ""

    def gpus(self, uuids: Collection[str]) -> tuple[Gpu, ...]:
        """Return what was read last of devices by their UUIDs, and see to it that reading goes on.

        Empty at first, without NVML, and while NVML doesn't answer.
        """
        self._wanted = frozenset(filter(None, uuids))
        now = self._asked_at = self._now()
        if not self._wanted:
            return ()
        if not self._is_reading and now >= self._not_before:
            self._is_reading = True
            if now - self._read[0] > _STALE_S:
                self._read = now, ()  # it hasn't had time to answer
            self._start(self._read_on)
        read_at, gpus = self._read
        if now - read_at <= _STALE_S:
            return tuple(gpu for gpu in gpus if gpu.uuid in self._wanted)
        if self._is_reading:
            self._complain(
                "warning", f"NVML hasn't answered for {_STALE_S:g} s; see the kernel's log for Xid"
            )
        return ()

    def _read_on(self) -> None:
        """Read until nobody asks any more, or NVML can't be had. On the thread."""
        try:
            if self._reader is None:
                self._reader = GpuReader(self._opened())
            while (wanted := self._wanted) and self._now() - self._asked_at < _IDLE_S:
                gpus = self._reader.read(wanted)
                self._read = self._now(), gpus
                if self._reader.missing:
                    self._complain("warning", f"NVML doesn't know of {self._reader.missing}")
                self._pause(_EVERY_S)
        except NvmlMissing as error:
            self._complain("info", str(error))
            self._not_before = self._now() + _RETRY_S
        except Exception as error:  # nothing that a driver does may cost more than these metrics
            self._complain("warning", f"reading failed: {error!r}")
            self._not_before = self._now() + _RETRY_S
        finally:
            self._is_reading = False

    def _complain(self, level: str, reason: str) -> None:
        """Say it once, not every two seconds."""
        if reason != self._complaint:
            self._complaint = reason
            getattr(_log, level)("no metrics of GPUs", reason=reason)


def _on_a_thread(run: Callable[[], None]) -> None:
    # A daemon: the server stops without waiting for a driver that hangs.
    threading.Thread(target=run, name="gpus", daemon=True).start()


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000
