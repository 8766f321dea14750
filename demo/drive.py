"""Drive the server: transactions one by one as a payment service would, and a burst of many at once.

Both phases are asyncio and run in a process of their own (``demo/process.py``), so that neither
torch nor the progress display takes time from the calls that are being timed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np
import numpy.typing as npt

from demo.outcome import Outcome, Record
from demo.transactions import FEATURES
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tensorferry_client import ClientOptions, FraudScorer, Source

__all__ = ["Burst", "burst", "infer_request", "one_by_one"]

MODEL: Final = "fraud"

#: For one transaction. Generous, for machines that do other things as well: in a demonstration a
#: fallback decision counts as a failure.
BUDGET_MS: Final = 1000.0

CALL_TIMEOUT_S: Final = 5.0

Features = npt.NDArray[np.float32]
OnProgress = Callable[[int], object]


async def one_by_one(target: str, features: Features, on_progress: OnProgress) -> Outcome:
    """Score each row of ``features``, float32 (rows, 30), after the one before has its answer.

    ``target`` is ``host:port``; ``on_progress`` is called with the number of calls done.
    """
    record = Record()
    scorer = FraudScorer(ClientOptions(target=target), model=MODEL, budget_ms=BUDGET_MS)
    async with grpc.aio.insecure_channel(target) as channel:
        before = await _batches(channel)
        await scorer.start()
        try:
            started = time.monotonic()
            for row in range(len(features)):
                await _score(scorer, features, row, record)
                on_progress(row + 1)
                if record.is_hopeless:
                    break
            elapsed_s = time.monotonic() - started
        finally:
            await scorer.close()
        return record.outcome(elapsed_s, _since(before, await _batches(channel)))


async def _score(scorer: FraudScorer, features: Features, row: int, record: Record) -> None:
    began = time.perf_counter_ns()
    scored = await scorer.score(features[row])
    elapsed_ns = time.perf_counter_ns() - began
    if scored.source is Source.MODEL:
        record.answered(row, scored.score, elapsed_ns)
        record.decisions[scored.decision.value] += 1
    else:
        record.failed(f"decided without the model: {scored.reason}")


@dataclass(frozen=True, slots=True)
class Burst:
    """How hard to push: calls in flight at any time, for at least so many seconds."""

    in_flight: int
    seconds: float


async def burst(target: str, features: Features, load: Burst, on_progress: OnProgress) -> Outcome:
    """Keep ``load.in_flight`` calls of one row each running; return when each row had its turn and
    ``load.seconds`` are over.

    The requests are encoded beforehand and the answers come through the plain gRPC stub: what
    is left of the client's own work is grpc's.
    """
    requests = [infer_request(row) for row in features]
    async with grpc.aio.insecure_channel(target) as channel:
        before = await _batches(channel)
        workers = _Workers(channel, requests, time.monotonic() + load.seconds, on_progress)
        started = time.monotonic()
        await asyncio.gather(*(workers.work() for _ in range(load.in_flight)))
        elapsed_s = time.monotonic() - started
        return workers.record.outcome(elapsed_s, _since(before, await _batches(channel)))


class _Workers:
    """Tasks of one event loop that share a row counter and a record."""

    def __init__(
        self, channel: grpc.aio.Channel, requests: list[bytes], until: float, on_progress: OnProgress
    ) -> None:
        self.record = Record()
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.ModelInferResponse] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=None,  # bytes in
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        self._requests = requests
        self._until = until
        self._on_progress = on_progress
        self._issued = 0

    async def work(self) -> None:
        """Call after call, until the load is over."""
        while self._is_on():
            row = self._issued % len(self._requests)
            self._issued += 1
            await self._call(row)
            self._on_progress(len(self.record.rows))

    def _is_on(self) -> bool:
        if self.record.is_hopeless:
            return False
        return self._issued < len(self._requests) or time.monotonic() < self._until

    async def _call(self, row: int) -> None:
        began = time.perf_counter_ns()
        try:
            response = await self._infer(self._requests[row], timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.record.failed(f"{error.code().name}: {error.details()}")
            return
        elapsed_ns = time.perf_counter_ns() - began
        raw = response.raw_output_contents
        if len(raw) == 1 and len(raw[0]) == 4:
            self.record.answered(row, float(np.frombuffer(raw[0], dtype="<f4")[0]), elapsed_ns)
        else:
            self.record.failed(f"an answer of {[len(part) for part in raw]} bytes instead of one float32")


def infer_request(features: Features, split_key: str = "") -> bytes:
    """Encode one row, float32 of shape (30,), as a ModelInferRequest, with the caller's key."""
    request = pb.ModelInferRequest(model_name=MODEL)
    if split_key:
        request.parameters["split_key"].string_param = split_key
    request.inputs.add(name="features", datatype="FP32", shape=[1, len(FEATURES)])
    request.raw_input_contents.append(features.astype("<f4").tobytes())
    return request.SerializeToString()


async def _batches(channel: grpc.aio.Channel) -> dict[int, int]:
    """Ask the server how many batches of each size it has run since it started."""
    stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    response = await stub.ModelStatistics(pb.ModelStatisticsRequest(name=MODEL), timeout=CALL_TIMEOUT_S)
    return {
        stats.batch_size: stats.compute_infer.count
        for model in response.model_stats
        for stats in model.batch_stats
    }


def _since(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    counts = {size: count - before.get(size, 0) for size, count in sorted(after.items())}
    return {size: count for size, count in counts.items() if count}
