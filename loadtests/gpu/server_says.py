"""What the server's metrics say at two moments, and what lies between."""

from __future__ import annotations

import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Between", "Scrape", "scrape"]


@dataclass(frozen=True, slots=True, eq=False)
class Scrape:
    """All series at ``at_s`` of ``time.perf_counter``: (labels, value) by the sample's name."""

    at_s: float
    cpu_s: float
    series: dict[str, list[tuple[dict[str, str], float]]]

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of the series with these labels; None if there is none."""
        values = [
            value
            for own, value in self.series.get(name, ())
            if all(own.get(label) == wanted for label, wanted in labels.items())
        ]
        return sum(values) if values else None


def scrape(http_address: str, pid: int) -> Scrape:
    """Read the metrics of the server, and the processor's time of its process, now.

    Raises:
        OSError: the server doesn't answer.
    """
    with urllib.request.urlopen(f"http://{http_address}/metrics", timeout=30) as answer:
        text = answer.read().decode("utf-8")
    at_s, cpu_s = time.perf_counter(), _cpu_s(pid)
    series: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return Scrape(at_s, cpu_s, series)


def _cpu_s(pid: int) -> float:
    # The name before it, in brackets, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """What happened to ``model`` between two scrapes. None stands for what the server doesn't tell."""

    before: Scrape
    after: Scrape
    model: str

    @property
    def seconds(self) -> float:
        """The time between."""
        return self.after.at_s - self.before.at_s

    @property
    def server_cores(self) -> float:
        """Cores that the server's process took."""
        return (self.after.cpu_s - self.before.cpu_s) / self.seconds

    @property
    def batch_rows(self) -> float | None:
        """Mean rows of a batch."""
        return _ratio(self._grown("nv_inference_count_total"), self._grown("nv_inference_exec_count_total"))

    @property
    def graph_share(self) -> float | None:
        """Share of the batches that ran as a CUDA graph."""
        name = "tensorferry_device_batches_total"
        return _ratio(self._grown(name, graph="true"), self._grown(name))

    @property
    def device_busy(self) -> float | None:
        """Seconds that the model ran on the device, by its events, per second; over all streams."""
        return _ratio(self._grown("tensorferry_device_run_seconds_total"), self.seconds)

    @property
    def copying(self) -> dict[str, float | None]:
        """Seconds of copying to the device and back, per second."""
        names = {
            "in": "tensorferry_device_copy_in_seconds_total",
            "out": "tensorferry_device_copy_out_seconds_total",
        }
        return {way: _ratio(self._grown(name), self.seconds) for way, name in names.items()}

    @property
    def memory_bytes(self) -> dict[str, float | None]:
        """What the model's copies hold, by kind."""
        kinds = ("weights", "staging", "graphs", "workspace", "pinned")
        name = "tensorferry_device_memory_bytes"
        return {kind: self.after.total(name, model=self.model, kind=kind) for kind in kinds}

    @property
    def in_bytes_per_s(self) -> float | None:
        """Bytes copied to the device."""
        return _ratio(self._grown("tensorferry_device_bytes_total", direction="in"), self.seconds)

    @property
    def out_bytes_per_s(self) -> float | None:
        """Bytes copied back."""
        return _ratio(self._grown("tensorferry_device_bytes_total", direction="out"), self.seconds)

    @property
    def padding(self) -> float | None:
        """Elements of padding as a share of all that were run, for padded inputs."""
        true = self._grown("tensorferry_true_elements_total")
        padded = self._grown("tensorferry_padded_elements_total")
        return None if true is None or padded is None else _ratio(padded, true + padded)

    @property
    def padded_rows(self) -> float | None:
        """Rows that filled up a graph's batch, as a share of all rows that were run."""
        own = self._grown("nv_inference_count_total")
        padded = self._grown("tensorferry_device_padded_rows_total")
        return None if own is None or padded is None else _ratio(padded, own + padded)

    def _grown(self, name: str, **labels: str) -> float | None:
        if self.after.series == self.before.series:
            return None  # the server told again what it had told just before: nothing is known of between
        after = self.after.total(name, model=self.model, **labels)
        if after is None:
            return None
        return after - (self.before.total(name, model=self.model, **labels) or 0.0)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
