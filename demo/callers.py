"""Callers that go on while versions change: card transactions, many in flight, one card each.

They run in a process of their own (``demo/process.py``) until they are told to stop, and note for
every call which version answered, and when.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from ctypes import c_bool
from dataclasses import dataclass, field
from typing import Final

import grpc
import numpy as np
import numpy.typing as npt

from demo.drive import CALL_TIMEOUT_S, infer_request
from demo.transactions import Transactions, generate
from tensorferry.wire import open_inference_pb2 as pb

__all__ = ["Answers", "card", "keep_calling", "traffic"]

#: So many more frauds than in life, where it is one in hundreds: else the hundred answers that a
#: canary's first step lasts would hold none, and nobody could say how well it tells them apart.
FRAUD_SHARE: Final = 0.2

#: Beyond this many failed calls there is nothing more to learn.
MAX_FAILURES: Final = 50

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back, one entry for each call: integers and seconds (``time.monotonic``), of shape (calls,).

    ``rows`` says whose transaction it was, ``versions`` which version answered, ``at_s`` when.
    ``failures`` counts calls without an answer by their reason.
    """

    rows: npt.NDArray[np.int64]
    versions: npt.NDArray[np.int64]
    at_s: npt.NDArray[np.float64]
    failures: Mapping[str, int]

    @property
    def failed(self) -> int:
        """Calls without an answer."""
        return sum(self.failures.values())

    @property
    def calls(self) -> int:
        """All calls."""
        return len(self.rows) + self.failed

    def by(self, version: int) -> int:
        """How many calls a version has answered."""
        return int((self.versions == version).sum())

    def by_after(self, version: int, instant_s: float) -> int:
        """How many calls a version has answered later than ``instant_s``."""
        return int(((self.versions == version) & (self.at_s > instant_s)).sum())


@dataclass(slots=True)
class _Log:
    """What the callers write down; their one event loop is its only writer."""

    rows: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def answers(self) -> Answers:
        return Answers(
            np.asarray(self.rows, dtype=np.int64),
            np.asarray(self.versions, dtype=np.int64),
            np.asarray(self.at_s, dtype=np.float64),
            dict(self.failures),
        )


def card(row: int) -> str:
    """Return the card of a transaction: the key by which calls are divided, and labels find their score."""
    return f"card-{row:06d}"


def traffic(test: Transactions, rows: int, seed: int, *, made_up: bool) -> Transactions:
    """Return ``rows`` transactions to send, ``FRAUD_SHARE`` of them frauds.

    Made up anew, or drawn from ``test`` with replacement.
    """
    if made_up:
        return generate(rows, seed + 1, FRAUD_SHARE)
    rng = np.random.default_rng(seed + 1)
    is_fraud = rng.random(rows) < FRAUD_SHARE
    frauds = rng.choice(np.flatnonzero(test.is_fraud), rows)
    ordinary = rng.choice(np.flatnonzero(~test.is_fraud), rows)
    return test.take(np.where(is_fraud, frauds, ordinary))


async def keep_calling(
    target: str, features: Features, in_flight: int, stop: c_bool, on_progress: Callable[[int], object]
) -> Answers:
    """Send each row of ``features``, float32 (rows, 30), and begin again, until ``stop`` is true.

    ``in_flight`` calls to ``target`` (``host:port``) are under way at any time. ``stop`` lies in memory that
    is shared with whoever sets it; without a lock, which a process that is killed would take with it.
    """
    requests = [infer_request(row, card(index)) for index, row in enumerate(features)]
    log = _Log()
    turns = iter(range(2**62))

    async with grpc.aio.insecure_channel(target) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.ModelInferResponse] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=None,  # bytes in
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        async def call_on() -> None:
            while not stop.value and log.failures.total() < MAX_FAILURES:
                row = next(turns) % len(requests)
                await _call(infer, requests[row], row, log)
                on_progress(len(log.rows))

        await asyncio.gather(*(call_on() for _ in range(in_flight)))
    return log.answers()


async def _call(
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.ModelInferResponse], request: bytes, row: int, log: _Log
) -> None:
    try:
        response = await infer(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        log.failures[f"{error.code().name}: {error.details()}"] += 1
        return
    score = np.frombuffer(b"".join(response.raw_output_contents), dtype="<f4")
    if score.shape != (1,) or not np.isfinite(score).all():
        log.failures[f"version {response.model_version} answered {score}"] += 1
        return
    log.rows.append(row)
    log.versions.append(int(response.model_version))
    log.at_s.append(time.monotonic())
