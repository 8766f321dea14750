"""A model on a GPU that does nothing but what the test tells it, and streams without threads."""

from __future__ import annotations

import asyncio
import queue
import threading

from tests.unit.support import PATIENCE_S, bytes_spec

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.batching.pending import Pending
from tensorferry.device import DeviceMemory, DeviceRun
from tensorferry.execution.launching import DeviceStatus
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.puppet import echo

SPEC = bytes_spec(max_batch_size=8)

RUN = DeviceRun(copy_in_ns=2_000_000, run_ns=5_000_000, copy_out_ns=1_000_000, staged_ns=1_000_000)


def batch_of(data: bytes) -> Batch:
    bound = SPEC.bind([Tensor("x", "UINT8", (len(data), 1), data)])
    return Batch(SPEC, [Pending(bound, print)], 0.0)


class Ride:
    """A ``Launch`` that lasts until ``end``."""

    def __init__(self, model: LaunchingPuppet, inputs) -> None:
        self.outputs = echo(inputs)
        self._model = model
        self._ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def end(self, error: Exception | None = None) -> None:
        self._ends.put(error)

    def wait(self) -> RunResult:
        self._model.waits += 1
        error = self._ends.get(timeout=PATIENCE_S)
        self._model.flying -= 1
        if error is not None:
            raise error
        return RunResult(self.outputs, 1, 2, 3, RUN)


class LaunchingPuppet:
    """A ``LaunchingModel``. ``rides`` has what was launched, for the test to take and end."""

    def __init__(self, spec=SPEC, slots=3, device="cuda:0", prepare_error: Exception | None = None) -> None:
        self.spec = spec
        self.slots = slots
        self.status = DeviceStatus(device, memory=DeviceMemory(weights=3 * 2**20), graphs=(1, 2))
        self.rides: queue.SimpleQueue[Ride] = queue.SimpleQueue()
        self.launches = 0
        self.waits = 0
        self.flying = 0
        #: What the next launches raise.
        self.refusals: list[Exception] = []
        #: What happened to it, in order, and the threads it was launched and closed on.
        self.story: list[str] = []
        self.threads: set[threading.Thread] = set()
        #: The names of the threads that it was attached on.
        self.attached: list[str] = []
        self._prepare_error = prepare_error

    def attach(self, intra_op_threads: int) -> None:
        self.attached.append(threading.current_thread().name)
        if len(self.attached) == 1:
            self.story.append("attach")

    def prepare(self) -> None:
        self._did("prepare")
        if self._prepare_error is not None:
            raise self._prepare_error

    def run(self, inputs) -> RunResult:
        self._did("run")
        return RunResult(echo(inputs), 1, 2, 3, RUN)

    def launch(self, inputs) -> Ride:
        self.threads.add(threading.current_thread())
        self.launches += 1
        if self.refusals:
            raise self.refusals.pop(0)
        self.flying += 1
        assert self.flying <= self.slots, "launched without a slot"
        ride = Ride(self, inputs)
        self.rides.put(ride)
        return ride

    def close(self) -> None:
        assert not self.flying or self.waits < self.launches, "closed with a batch under way"
        self._did("close")

    async def ride(self) -> Ride:
        """Take the next launch, once it is there."""
        return await asyncio.to_thread(self.rides.get, True, PATIENCE_S)

    @property
    def is_closed(self) -> bool:
        return "close" in self.story

    def _did(self, what: str) -> None:
        self.threads.add(threading.current_thread())
        if self.story[-1:] != [what]:
            self.story.append(what)


class HandStream:
    """A stream whose batches end when the test says so, in order."""

    last_cpu_s = -1.0

    def __init__(self) -> None:
        self.flying: list[tuple[Batch, object]] = []
        self.is_closed = False

    def start(self, batch, done) -> None:
        self.flying.append((batch, done))

    def end(self, result=None, error=None) -> None:
        batch, done = self.flying.pop(0)
        if result is None and error is None:
            result = RunResult([], 1, 2, 3, RUN)
        done(BatchOutcome(batch, result, error))

    @property
    def rows(self) -> list[int]:
        return [batch.rows for batch, _ in self.flying]

    def close(self) -> None:
        self.is_closed = True

    async def wait_closed(self) -> None:
        assert self.is_closed
