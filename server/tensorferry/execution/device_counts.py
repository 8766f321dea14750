"""What the batches of one model did on one device, added up. The model's pool owns it, on the loop thread."""

from __future__ import annotations

from dataclasses import dataclass

from tensorferry.device import DeviceRun

__all__ = ["DeviceCounts"]


@dataclass(slots=True)
class DeviceCounts:
    """Sums since the model was loaded; times in nanoseconds, as in ``DeviceRun``.

    ``out_of_memory`` counts batches that had to be run in pieces, or couldn't be run at all.
    ``row_limit`` is the least of the streams' latest limits; 0 while there is none.
    """

    batches: int = 0
    graph_batches: int = 0
    copy_in_ns: int = 0
    run_ns: int = 0
    copy_out_ns: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    padded_rows: int = 0
    out_of_memory: int = 0
    row_limit: int = 0

    def ran(self, run: DeviceRun) -> None:
        """Add one batch; its stream's limit is the device's until ``row_limit`` is set anew."""
        self.batches += 1
        self.graph_batches += run.is_graph
        self.copy_in_ns += run.copy_in_ns
        self.run_ns += run.run_ns
        self.copy_out_ns += run.copy_out_ns
        self.bytes_in += run.bytes_in
        self.bytes_out += run.bytes_out
        self.padded_rows += run.padded_rows
        self.out_of_memory += run.out_of_memory
        self.row_limit = run.row_limit
