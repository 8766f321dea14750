"""What is said about models on devices: how one is to be run there, and what a batch took.

Rules for this file: no torch, no imports from the package. Everything here is immutable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DeviceMemory", "DeviceRun", "Tuning"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a torch model is run: what changes its speed and memory, and its numbers by rounding at most.

    ``autocast`` is the datatype that ``torch.autocast`` runs matrix products in; "" leaves them as they
    are. ``channels_last`` lays 4-dimensional weights and inputs out with the channels last. Both also
    hold on the CPU; the rest is for GPUs alone:

    ``cuda_graphs``: ``auto`` captures a graph for each batch bucket where the model can be captured and
    the graph is right, ``on`` refuses the model otherwise, ``off`` captures none. ``busy_wait`` has a
    thread spin until a batch is done instead of sleeping: a wake-up sooner, for a core.
    ``staging_slots`` is how many batches a worker stream holds at once, each with staging buffers of its
    own: 1 runs one after another, from 2 on copies overlap with runs. With ``shares_weights`` the
    streams of one device share one copy of the model.
    """

    autocast: Literal["", "FP16", "BF16"] = ""
    channels_last: bool = False
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    busy_wait: bool = False
    staging_slots: int = 3
    shares_weights: bool = False


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """What one batch took on a GPU, measured there by events, in nanoseconds.

    ``copy_in_ns`` and ``copy_out_ns`` are the copies between pinned memory and the device, ``run_ns`` the
    model alone. They overlap with those of the batches before and behind it. ``padded_rows`` were run
    beside the batch's own to fill up a graph's bucket. ``row_limit`` is the largest batch in rows that is
    run at once since the device ran out of memory; 0 while it never has. ``staged_ns`` is the host's time
    from the launch until the copying of the inputs was enqueued: the joining of the parts in pinned memory.
    """

    copy_in_ns: int
    run_ns: int
    copy_out_ns: int
    bytes_in: int = 0
    bytes_out: int = 0
    is_graph: bool = False
    padded_rows: int = 0
    row_limit: int = 0
    out_of_memory: bool = False
    staged_ns: int = 0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What one copy of a model holds on a GPU, in bytes.

    ``weights`` are parameters and buffers (0 for a stream that shares another's), ``staging`` the
    input buffers of its slots, ``graphs`` what its captured graphs keep, ``workspace`` the most that the
    largest warm-up batch took beside all these. ``pinned`` is host memory.
    """

    weights: int = 0
    staging: int = 0
    graphs: int = 0
    workspace: int = 0
    pinned: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.staging + self.graphs + self.workspace
