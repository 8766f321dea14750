"""The fraud-scoring caller: an answer within a budget, from the model or without it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client._async import AsyncClient
from tensorferry_client._breaker import CircuitBreaker
from tensorferry_client._codec import InferResult
from tensorferry_client._connections import WarmConnections
from tensorferry_client._decisions import (
    Decision,
    FallbackPolicy,
    Reason,
    Scored,
    ScorerStatistics,
    Source,
    Thresholds,
    fallback_scores,
)
from tensorferry_client._errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ServerError,
    Unavailable,
)
from tensorferry_client._options import ClientOptions, ScorerTuning, options_of

__all__ = ["FraudScorer"]

# gRPC's own pause between attempts to connect grows to two minutes, which is long to score without
# a model after the server has come back. A scorer is one of few callers, and this is one packet a second.
_RECONNECT: tuple[tuple[str, int | str], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_THRESHOLDS: Final = Thresholds()
_TUNING: Final = ScorerTuning()


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The names of the model's input and output."""

    input: str
    output: str


class FraudScorer:
    """Scores transactions within a latency budget, and decides without the model where that fails.

    ``score`` raises for what the caller did wrong and never for the server's trouble: the budget is
    sent along as the deadline, and when it is spent, or the server is away, refuses or answers
    nonsense, the fallback decides. Use it in an ``async with``, or call ``start`` and ``close``.

    Args:
        options: The server, as for a client; a string is a target. ``retry`` is that of ``tuning``.
        model: The model's name. It takes float32 (rows, features) and returns one score for each row.
        budget_ms: Milliseconds that a call of ``score`` may take.
        thresholds: Where scores turn into decisions.
        fallback: What decides without the model.
        tuning: What seldom changes.
    """

    def __init__(
        self,
        options: ClientOptions | str,
        *,
        model: str = "fraud",
        budget_ms: float = 5.0,
        thresholds: Thresholds = _THRESHOLDS,
        fallback: FallbackPolicy = Decision.REVIEW,
        tuning: ScorerTuning = _TUNING,
    ) -> None:
        if not 0 < budget_ms < inf:
            raise ValueError(f"budget_ms is {budget_ms}; it must be above 0 and finite")
        options = options_of(options)
        self._options = replace(
            options, retry=tuning.retry, channel_args=(*_RECONNECT, *options.channel_args)
        )
        self._model = model
        self._budget_ms = budget_ms
        self._thresholds = thresholds
        self._fallback = fallback
        self._tuning = tuning
        self._breaker = CircuitBreaker(tuning.failures_to_open, tuning.probe_interval_s)
        self._connections: WarmConnections | None = None
        self._tensors: _Tensors | None = None
        if tuning.input_name is not None and tuning.output_name is not None:
            self._tensors = _Tensors(tuning.input_name, tuning.output_name)
        self._by_source: Counter[Source] = Counter()
        self._by_reason: Counter[Reason] = Counter()
        self._held_back = 0
        self._last_trouble = ""

    async def start(self, timeout_s: float = 5.0) -> bool:
        """Connect, learn the names of input and output, and run a row of zeros on each connection.

        Returns whether all that was done within ``timeout_s`` seconds. Where it wasn't, the scorer
        works all the same, by its fallback until the server is there;
        ``statistics().last_trouble`` says what is wrong.
        """
        if self._connections is not None:
            raise RuntimeError("the scorer is started already")
        self._connections = WarmConnections(self._options, self._tuning.connections, self._tuning.clock)
        deadline_s = self._tuning.clock() + timeout_s
        primed = await asyncio.gather(
            *(self._prime(client, deadline_s) for client in self._connections.clients)
        )
        return all(primed)

    async def score(
        self, features: ArrayLike, *, budget_ms: float | None = None, split_key: str = ""
    ) -> Scored:
        """Score one transaction, float32 (features,), or several at once, (n, features).

        ``budget_ms`` overrules the scorer's own for this call: a caller with less time left says so.
        ``split_key`` is for a server that compares versions: it has the same one answer the same key,
        such as the card's hash, and matches labels that are fed back by it.

        Raises:
            ValueError: the features have another shape, or aren't numbers.
            RuntimeError: the scorer isn't started, or is closed.
        """
        started_s = self._tuning.clock()
        rows = self._rows_of(features)
        if self._connections is None:
            raise RuntimeError("the scorer isn't running; use it in an `async with`, or call start() first")
        if not self._breaker.allows(started_s):
            self._held_back += 1
            return self._without_model(rows, Reason.SERVER_AWAY, started_s)
        budget_ms = self._budget_ms if budget_ms is None else budget_ms
        client = self._connections.next()
        try:
            scores = await self._ask(client, rows, started_s + budget_ms / 1000, split_key)
        except ClientError as error:
            reason = _reason_of(error, client)
            self._note(error, reason)
            return self._without_model(rows, reason, started_s)
        self._breaker.succeeded()
        self._by_source[Source.MODEL] += 1
        decisions = tuple(map(self._thresholds.decide, scores))
        return Scored(scores, decisions, Source.MODEL, None, self._elapsed_ms(started_s))

    def statistics(self) -> ScorerStatistics:
        """Return a snapshot of the counts."""
        return ScorerStatistics(
            {source: self._by_source[source] for source in Source},
            {reason: self._by_reason[reason] for reason in Reason},
            self._held_back,
            self._breaker.is_open,
            self._last_trouble,
        )

    async def close(self) -> None:
        """Close the connections. The scorer may be started again."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _rows_of(self, features: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(features)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"features have dtype {array.dtype}; give numbers, float32 at best")
        width = self._tuning.features
        rows = array[np.newaxis] if array.ndim == 1 else array
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise ValueError(
                f"features have shape {array.shape}; give ({width},), or (n, {width}) with n >= 1"
            )
        with np.errstate(over="ignore"):  # a double beyond float32 is infinite, and data like any other
            return rows.astype(np.float32, copy=False)

    async def _prime(self, client: AsyncClient, deadline_s: float) -> bool:
        try:
            if not await client.wait_until_connected(deadline_s - self._tuning.clock()):
                raise Unavailable(f"no server answers at {self._options.target}")
            await self._ask(client, np.zeros((1, self._tuning.features), np.float32), deadline_s)
        except ClientError as error:
            self._last_trouble = str(error)
            return False
        return True

    async def _ask(
        self, client: AsyncClient, rows: NDArray[np.float32], deadline_s: float, split_key: str = ""
    ) -> tuple[float, ...]:
        """Return the model's scores, one for each row, or raise a ``ClientError``."""
        tensors = self._tensors
        if tensors is None:
            tensors = self._tensors = await self._discover(client, deadline_s)
        result = await client.infer(
            self._model,
            {tensors.input: rows},
            version=self._tuning.version,
            outputs=(tensors.output,),
            timeout_s=deadline_s - self._tuning.clock(),
            label=self._tuning.label,
            split_key=split_key,
        )
        return _scores_of(result, tensors.output, len(rows))

    async def _discover(self, client: AsyncClient, deadline_s: float) -> _Tensors:
        tuning = self._tuning
        metadata = await client.model_metadata(
            self._model, tuning.version, timeout_s=deadline_s - tuning.clock()
        )
        return _Tensors(
            _name_in("input", tuning.input_name, metadata.inputs, metadata.name),
            _name_in("output", tuning.output_name, metadata.outputs, metadata.name),
        )

    def _note(self, error: ClientError, reason: Reason) -> None:
        self._last_trouble = str(error)
        if reason is Reason.SERVER_AWAY:
            self._breaker.failed(self._tuning.clock())
        elif reason is not Reason.BUDGET_SPENT:  # which says nothing about whether the server is there
            self._breaker.succeeded()

    def _without_model(self, rows: NDArray[np.float32], reason: Reason, started_s: float) -> Scored:
        self._by_source[Source.FALLBACK] += 1
        self._by_reason[reason] += 1
        scores, decisions = fallback_scores(self._fallback, self._thresholds, rows)
        return Scored(scores, decisions, Source.FALLBACK, reason, self._elapsed_ms(started_s))

    def _elapsed_ms(self, started_s: float) -> float:
        return (self._tuning.clock() - started_s) * 1000


def _reason_of(error: ClientError, client: AsyncClient) -> Reason:
    if isinstance(error, Unavailable):
        return Reason.SERVER_AWAY
    if isinstance(error, DeadlineExceeded):
        # Without a connection gRPC holds a call back while it tries to make one: nobody was asked.
        return Reason.BUDGET_SPENT if client.is_connected else Reason.SERVER_AWAY
    return Reason.BAD_ANSWER if isinstance(error, ServerError) else Reason.REFUSED


def _scores_of(result: InferResult, output: str, rows: int) -> tuple[float, ...]:
    scores = result.outputs.get(output)
    if scores is None:
        raise ServerError(f"the answer has outputs {list(result.outputs)}, and not {output!r}")
    if scores.shape not in ((rows,), (rows, 1)) or scores.dtype.kind not in "fiu":
        raise ServerError(
            f"output {output!r} is {scores.dtype} {scores.shape}, and not one score for each of {rows} rows"
        )
    if not np.isfinite(scores).all():
        raise ServerError(f"output {output!r} holds a score that is not a finite number")
    return tuple(scores.ravel().tolist())


def _name_in(
    kind: str,
    wanted: str | None,
    tensors: Sequence[pb.ModelMetadataResponse.TensorMetadata],
    model: str,
) -> str:
    names = [tensor.name for tensor in tensors]
    if wanted is not None:
        if wanted not in names:
            raise InvalidRequest(f"model {model!r} has no {kind} {wanted!r}; it has {names}")
        return wanted
    if len(names) != 1:
        raise InvalidRequest(f"model {model!r} has {kind}s {names}; say which in {kind}_name")
    return names[0]
