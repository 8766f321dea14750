"""A torch model on a GPU: batches are launched one after another and waited for apart.

``launch`` copies a batch's inputs into pinned memory and enqueues all the rest: the copy to the device,
the run (a CUDA graph where there is one for the batch's size), the copy back. ``Launch.wait`` blocks
until the outputs are in pinned memory, where the replies are encoded from. See ``torch_staging`` for the
order of things on the device, ``torch_graphs`` for graphs, ``torch_pieces`` for what happens when memory
runs out.

State that crosses threads: slots are taken on the launching thread and given back on the thread that
waits, through a queue. All else belongs to the launching thread, or isn't changed after ``prepare``.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import structlog
import torch

from tensorferry.device import DeviceMemory
from tensorferry.errors import DeviceLost, ModelFailed, ModelLoadError, TensorferryError
from tensorferry.execution.backends.signature import positions
from tensorferry.execution.backends.torch_flight import InFlight
from tensorferry.execution.backends.torch_gpu import first_to_lose, gpu_of
from tensorferry.execution.backends.torch_graphs import Form, Graphs, capture_graphs, form_of
from tensorferry.execution.backends.torch_memory import Holding
from tensorferry.execution.backends.torch_pieces import RowLimit, run_in_pieces
from tensorferry.execution.backends.torch_staging import Lanes, Slot, largest_input_bytes
from tensorferry.execution.backends.torch_tensors import check_value, first_line, ordered_outputs
from tensorferry.execution.launching import DeviceStatus, Launch
from tensorferry.model import BatchInput, ModelSpec, RunResult

__all__ = ["DeviceModel"]

_log = structlog.get_logger("tensorferry.execution")


class DeviceModel:
    """A function of tensors on one GPU; see ``LaunchingModel`` for the protocol.

    Args:
        call: Takes the tensors in the model's order; returns a tensor, a sequence of them, or a
            dict by name.
        spec: The completed specification.
        device: ``cuda:<n>``.
        order: For each argument of ``call``, the index of the input that it takes.
        owned: The model's own tensors. An output that is a view of one is copied, as the next run, which
            may change it, overlaps with the output's way back.
        now: Seconds on a monotonic scale.

    Raises:
        ModelLoadError: the device has no memory for the slots.
    """

    def __init__(
        self,
        call: Callable[..., object],
        spec: ModelSpec,
        device: str,
        order: Sequence[int],
        owned: Iterable[torch.Tensor] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self._call = call
        self._device = device
        self._argument_order = list(order)
        self._output_order = positions(spec.outputs)
        self._gpu = gpu_of(device)
        self._gpu.attach()
        self._lanes = Lanes(self._gpu)
        self._slots = self._make_slots()
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._now = now
        self._limit = RowLimit(spec.max_batch_size)
        self._lost = ""
        #: What ordinary runs took, until graphs are captured.
        self._eager_ns: dict[tuple[Form, int], int] | None = {}
        self._graphs = Graphs({})
        owned = list(owned)
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self._holding = Holding(device, owned)
        self._at_rest = self._gpu.allocated_bytes()
        self._gpu.reset_peak()
        self._memory = DeviceMemory()

    @property
    def slots(self) -> int:
        """Batches that may be launched and not yet waited for."""
        return len(self._slots)

    @property
    def status(self) -> DeviceStatus:
        """What it has on the device."""
        return DeviceStatus(
            self._device, self._gpu.uuid, self._memory, self._graphs.sizes, self._graphs.why_not
        )

    def attach(self, intra_op_threads: int) -> None:
        """Make the model's device the calling thread's."""
        self._gpu.attach()

    def prepare(self) -> None:
        """Capture graphs and take stock of memory."""
        gpu, mode = self._gpu, self.spec.tuning.cuda_graphs
        eager_ns, self._eager_ns = self._eager_ns or {}, None
        workspace = max(0, gpu.peak_bytes() - self._at_rest)
        before, kept_before = gpu.reserved_bytes(), self._cached_bytes()
        if mode != "off" and eager_ns:
            self._graphs = capture_graphs(gpu, self._lanes, self._slots, self._forward, eager_ns)
        elif mode != "off":
            self._graphs.why_not = (
                "its inputs have no fixed size, so that there is nothing to capture: give it ragged_buckets,"
                " or a model_warmup of the shapes that are asked most"
            )
        self._say_why_not(mode)
        self._holding.keep_for_graphs(max(0, self._cached_bytes() - kept_before))
        staging = sum([slot.nbytes for slot in self._slots])
        self._memory = DeviceMemory(
            weights=self._holding.weight_bytes,
            staging=staging,
            graphs=max(0, gpu.reserved_bytes() - before, sum([slot.result_bytes for slot in self._slots])),
            workspace=workspace,
            pinned=staging,
        )

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Launch a batch and wait for it."""
        result = self.launch(inputs).wait()
        if self._eager_ns is not None and result.device is not None and not result.device.row_limit:
            key = (form_of(inputs, self.spec.has_batch_dimension), self._rows_of(inputs))
            run_ns = result.device.run_ns
            self._eager_ns[key] = min(self._eager_ns.get(key, run_ns), run_ns)
        return result

    def launch(self, inputs: Sequence[BatchInput]) -> Launch:
        """Stage one batch and hand it to the device."""
        if self._lost:
            raise DeviceLost(self._lost)
        started_ns = time.perf_counter_ns()
        rows = self._rows_of(inputs)
        slot = self._free.get()
        try:
            now = self._now()
            limit = self._limit.at(now)
            if not limit or rows <= limit:
                try:
                    return self.enqueue(slot, inputs, started_ns, limit)
                except torch.OutOfMemoryError:
                    slot.settle()
            return run_in_pieces(self, slot, inputs, self._limit, now, started_ns)
        except BaseException as error:
            self.reraise(slot, error)

    def enqueue(
        self, slot: Slot, inputs: Sequence[BatchInput], started_ns: int, row_limit: int = 0
    ) -> InFlight:
        """Put one batch on its way in a slot that the caller has.

        Raises:
            Exception: what the model raises, or torch; work may be under way in the slot.
        """
        rows = self._rows_of(inputs)
        bucket = self._graphs.choose(form_of(inputs, self.spec.has_batch_dimension), rows)
        captured = None
        if bucket is not None:
            targets, captured = bucket.slots[slot.index]
        else:
            targets = slot.targets(inputs)
        bytes_in = slot.stage(inputs, targets)
        staged_ns = time.perf_counter_ns() - started_ns
        run = self._lanes.run
        run.wait(slot.arrived)
        run.record(slot.began)
        if captured is not None:
            self._gpu.replay(run, captured)
            outputs = captured.outputs
        else:
            outputs = self._gpu.call(run, self._forward, targets)
        run.record(slot.ran)
        if bucket is not None and bucket.rows != rows:
            outputs = [each[:rows] for each in outputs]
        flight = InFlight(self, slot, outputs, started_ns)
        flight.is_graph, flight.row_limit = bucket is not None, row_limit
        flight.bytes_in, flight.staged_ns = bytes_in, staged_ns
        flight.padded_rows = bucket.rows - rows if bucket is not None else 0
        return flight

    def reraise(self, slot: Slot, error: BaseException) -> NoReturn:
        """Take the slot of a batch that failed back, and raise ``error``, or what lies behind it.

        Raises:
            DeviceLost: the device fails for good.
            BaseException: the error as it is.
        """
        if not self._lost and not isinstance(error, TensorferryError):
            self._ask_device(error)
        if not self._lost:
            try:
                slot.settle()
            except RuntimeError as failure:
                self._ask_device(failure)
        self._free.put(slot)
        if self._lost and not isinstance(error, DeviceLost):
            raise DeviceLost(self._lost) from error
        raise error

    def give_back(self, slot: Slot) -> None:
        """Take a slot back whose batch is done."""
        self._free.put(slot)

    def release_cached(self) -> None:
        """Give back what torch keeps of freed device memory."""
        self._gpu.release_cached()

    def view(self, pinned: torch.Tensor) -> memoryview:
        """Return pinned bytes to read."""
        return self._gpu.view(pinned)

    def close(self) -> None:
        """Drop the model; its memory goes with it."""
        self._graphs.close()
        self._holding.close()
        self._slots = []
        while not self._free.empty():
            self._free.get_nowait()
        del self._call
        if not self._lost:
            self._gpu.release_cached()

    def _forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The model's call as graphs capture it: checked outputs, in the configuration's order."""
        returned = self._call(*[tensors[index] for index in self._argument_order])
        values = ordered_outputs(self.spec, self._output_order, returned)
        for each, value in zip(self.spec.outputs, values, strict=True):
            check_value(self.spec, each, value)
            if not self._gpu.holds(value):
                raise ModelFailed(
                    f"model {self.spec.name!r}: output {each.name!r} is on {value.device}, and the model on"
                    f" {self._device}; leave it there"
                )
        return [self._apart(value) for value in values]

    def _apart(self, value: torch.Tensor) -> torch.Tensor:
        """Return an output in one piece, outside the model's own memory: the next run may write there."""
        if value.untyped_storage().data_ptr() in self._owned:
            return value.clone(memory_format=torch.contiguous_format)
        return value.contiguous()

    def _cached_bytes(self) -> int:
        return self._gpu.reserved_bytes() - self._gpu.allocated_bytes()

    def _rows_of(self, inputs: Sequence[BatchInput]) -> int:
        return inputs[0].shape[0] if self.spec.has_batch_dimension else 0

    def _make_slots(self) -> list[Slot]:
        sizes = largest_input_bytes(self.spec)
        tuning = self.spec.tuning
        try:
            return [
                Slot(self._gpu, self._lanes, index, sizes, not tuning.busy_wait)
                for index in range(tuning.staging_slots)
            ]
        except torch.OutOfMemoryError as error:
            raise ModelLoadError(
                f"model {self.spec.name!r} version {self.spec.version}: {self._device} has no memory for"
                f" {tuning.staging_slots} staging buffers of {sum(sizes)} bytes ({first_line(error)}); lower"
                " max_batch_size or staging_slots, or unload another model"
            ) from error

    def _say_why_not(self, mode: str) -> None:
        why_not, spec = self._graphs.why_not, self.spec
        if not why_not:
            return
        if mode == "on":
            raise ModelLoadError(
                f"model {spec.name!r} version {spec.version}: its cuda_graphs is on, and {why_not}; mend the"
                " model, or set cuda_graphs to auto"
            )
        _log.warning(
            "model runs without some CUDA graphs", model=spec.name, version=spec.version, reason=why_not
        )

    def _ask_device(self, error: BaseException) -> None:
        """Find out whether an error is the device's own, after which nothing works any more."""
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return
        if self._gpu.is_lost():
            spec = self.spec
            self._lost = (
                f"model {spec.name!r} version {spec.version}: {self._device} failed ({first_line(error)});"
                " start the server anew"
            )
            # One fault brings down every copy there: the others have nothing to add to the first.
            if first_to_lose(self._device):
                _log.error(
                    "GPU lost", model=spec.name, version=spec.version, device=self._device, exc_info=error
                )
