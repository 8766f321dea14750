"""What the server's unit tests share: specifications, requests, a batcher on virtual time, a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import NEVER, RUNNING, Pending
from tensorferry.engine import Engine
from tensorferry.errors import ModelFailed
from tensorferry.model import BatchingSpec, BatchInput, ModelSpec, RunResult, TensorSpec
from tensorferry.repository import scan
from tensorferry.tensors import DATATYPES, Tensor
from tensorferry.testing.clock import VirtualClock
from tensorferry.testing.puppet import PuppetExecutor, echo

T = TypeVar("T")

#: No test waits so long; one that would hang fails instead.
PATIENCE_S = 30.0

#: A byte that marks a request as one that the model can't take; see ``picky``.
POISON = 255


def tensor_spec(name="x", datatype="FP32", dims=(1,)):
    return TensorSpec(name, DATATYPES[datatype] if datatype else None, None if dims is None else tuple(dims))


def model_spec(inputs=None, outputs=None, max_batch_size=8, **more) -> ModelSpec:
    return ModelSpec(
        name="m",
        version=1,
        path=Path("m/1/model.pt"),
        max_batch_size=max_batch_size,
        inputs=tuple(inputs or (tensor_spec(),)),
        outputs=tuple(outputs or (tensor_spec("y"),)),
        **more,
    )


def bytes_spec(max_batch_size=8, **batching) -> ModelSpec:
    """One input of bytes in rows of any width, so that a request's content is easy to see."""
    return model_spec(
        [tensor_spec("x", "UINT8", [-1])], None, max_batch_size, batching=BatchingSpec(**batching)
    )


class StrictExecutor(PuppetExecutor):
    """A puppet that looks at every batch it is given."""

    def __init__(self, clock: VirtualClock, **more) -> None:
        super().__init__(**more)
        self._clock = clock
        #: The content of each batch, by request, as it was when the batch started.
        self.log: list[list[bytes]] = []

    def start(self, batch: Batch, done) -> None:
        assert batch.requests, "an empty batch was started"
        for request in batch.requests:
            assert request.state == RUNNING, "a request that has its outcome reached the executor"
            assert request.deadline > self._clock.now(), "a request that is too late reached the executor"
        assert batch.rows == sum(request.rows for request in batch.requests)
        assert batch.rows <= batch.spec.max_batch_size or len(batch.requests) == 1
        if batch.spec.padding is None:
            assert len({request.bound.key for request in batch.requests}) == 1
        self.log.append([content(request) for request in batch.requests])
        super().start(batch, done)


class Station:
    """A batcher on virtual time with a puppet for an executor, and every request submitted to it."""

    def __init__(self, spec=None, *, max_queue_size=100_000, max_bytes=2**30, run_s=None, **executor) -> None:
        self.spec = spec or bytes_spec()
        self.clock = VirtualClock()
        self.executor = self.make_executor(**executor)
        self.admission = Admission(max_bytes)
        self.batcher = Batcher(self.spec, self.executor, self.clock, self.admission, max_queue_size, run_s)
        #: Requests in the order of their outcomes.
        self.done: list[Pending] = []

    def make_executor(self, **executor) -> StrictExecutor:
        return StrictExecutor(self.clock, **executor)

    def submit(
        self, data: bytes = b"a", rows: int = 1, deadline: float = NEVER, on_done=None, **wishes
    ) -> Pending:
        """Submit ``data`` as ``rows`` equal rows; ``wishes`` are a ``timeout_s`` and a ``priority``."""
        tensor = Tensor("x", "UINT8", (rows, len(data)), data * rows)
        request = Pending(self.spec.bind([tensor]), on_done or self.done.append, deadline, **wishes)
        self.batcher.submit(request)
        return request

    def submit_all(self, data: Sequence[bytes]) -> list[Pending]:
        return [self.submit(each) for each in data]

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch that was started, in order."""
        return [sum(len(data) for data in batch) for batch in self.executor.log]

    def tick(self) -> None:
        self.clock.tick()

    def finish_all(self) -> None:
        """Let everything leave and finish."""
        self.clock.advance(10.0)
        while self.executor.running:
            self.executor.finish()
            self.clock.advance(10.0)


def content(request: Pending) -> bytes:
    return bytes(request.bound.tensors[0].data)


def answer(request: Pending) -> bytes:
    assert request.error is None, request.error
    (output,) = request.outputs
    return bytes(output.data)


def picky(inputs: Sequence[BatchInput]) -> list[Tensor]:
    """Echo, but fail on a batch that holds ``POISON``."""
    if any(POISON in bytes(part) for each in inputs for part in each.parts):
        raise ModelFailed("poisoned")
    return echo(inputs)


class PythonModel:
    """A model written in Python: ``behaviour`` makes its outputs. Keeps what happened to it."""

    def __init__(
        self, spec: ModelSpec, behaviour: Callable[[Sequence[BatchInput]], list[Tensor]] = echo
    ) -> None:
        self.spec = spec
        self.runs: list[tuple[BatchInput, ...]] = []
        self.attached: list[int] = []
        self.is_closed = False
        self._behaviour = behaviour

    def attach(self, intra_op_threads: int) -> None:
        self.attached.append(intra_op_threads)

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        assert not self.is_closed
        self.runs.append(tuple(inputs))
        return RunResult(self._behaviour(inputs), 1, 2, 3)

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True

    @property
    def rows_run(self) -> list[int]:
        return [inputs[0].shape[0] for inputs in self.runs]


def run(coroutine: Awaitable[T]) -> T:
    """Run a test's coroutine to its end."""

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await coroutine

    return asyncio.run(bounded())


def with_engine(
    root: Path,
    use: Callable[[Engine], Awaitable[T]],
    max_queue_size: int = 4096,
    max_inflight_bytes: int = 2**30,
) -> T:
    """Run ``use`` with an engine that has loaded the repository ``root``."""

    async def main() -> T:
        engine = Engine(max_queue_size, max_inflight_bytes)
        await engine.load_all(scan(root))
        try:
            return await use(engine)
        finally:
            await engine.close()

    return run(main())
