"""What NVIDIA's own library says of the GPU while a case runs; nothing where it, or a GPU, isn't there.

Only read, never set: clocks and limits are as whoever owns the machine has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from statistics import mean
from threading import Event, Thread
from typing import Any, Final

__all__ = ["Watcher"]

_EVERY_S: Final = 0.2


class Watcher:
    """Reads the GPU with the UUID ``uuid``; the first one if that is ""."""

    def __init__(self, uuid: str, *, is_rehearsal: bool) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        #: Why nothing is read; "" if it is.
        self.why_not = "a rehearsal has no GPU" if is_rehearsal else ""
        if is_rehearsal:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = (
                pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)
            )
            self._nvml = pynvml
        except Exception as error:  # its column stays empty, and all else is measured
            self.why_not = f"{type(error).__name__}: {error}"

    @contextlib.contextmanager
    def watching(self) -> Iterator[dict[str, float]]:
        """Read the GPU while the block runs; the dictionary has the means when it has ended.

        ``utilization`` is a share, ``sm_mhz`` and ``power_w`` what they say, and
        ``pcie_in_bytes_per_s`` and ``pcie_out_bytes_per_s`` samples of 20 ms by NVML.
        """
        found: dict[str, float] = {}
        if self._nvml is None:
            yield found
            return
        stop, values = Event(), dict[str, list[float]]()
        thread = Thread(target=self._read, args=(stop, values), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join(5.0)
            found.update({name: mean(each) for name, each in values.items() if each})

    def _read(self, stop: Event, values: dict[str, list[float]]) -> None:
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], float]] = {
            "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            # Received and sent are said from the GPU's side, in KB/s.
            "pcie_in_bytes_per_s": lambda: (
                nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES) * 1000
            ),
            "pcie_out_bytes_per_s": lambda: (
                nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES) * 1000
            ),
        }
        while not stop.wait(_EVERY_S):
            for name, read in readings.items():
                with contextlib.suppress(Exception):  # a device needn't tell all of it
                    values.setdefault(name, []).append(float(read()))
