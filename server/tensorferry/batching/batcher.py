"""The only owner of one model's queue and timers.

The policy decides (``policy.decide``); the batcher does what it says, on the loop thread, without
a task, a future or a lock. How a request passes through::

    submit ──> WaitingQueue ──flush, once per loop tick──> Executor.start(batch)
                    │                                            │
                 expire/cancel                        _finished: refill first, then reply
                    v                                            v
              request.fail(...)                    request.finish(outputs) / request.fail(...)

Contracts:

* ``submit`` returns quickly and never blocks. It either raises, and the request is the caller's
  again, or the request's ``on_done`` will be called exactly once.
* A request whose deadline has come, or that was cancelled, is never handed to a stream.
* A batch that the model raises on is halved and run again until the request at fault stands
  alone: the others get their answers. Requests of one that a device had no room for run alone at once,
  as the model has halved it itself. One that found the device lost isn't run again: no run could succeed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Final

from tensorferry.batching.admission import Admission, Gate, Refused, Share
from tensorferry.batching.batch import Batch
from tensorferry.batching.executor import BatchOutcome, Executor
from tensorferry.batching.expiry import Expiry
from tensorferry.batching.forecast import Forecast
from tensorferry.batching.ordering import InOrder
from tensorferry.batching.pending import DONE, NEVER, RUNNING, WAITING, Pending
from tensorferry.batching.policy import Run, Spare, Wait, cut, decide, follow, limits_of
from tensorferry.batching.queue import Place, WaitingQueue
from tensorferry.batching.record import DEADLINE, FULL, IDLE, RETRY
from tensorferry.batching.statistics import BatcherStatistics, Counters, failure_reason
from tensorferry.clock import Clock, Timer
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    DeviceLost,
    ModelFailed,
    OutOfDeviceMemory,
    TensorferryError,
)
from tensorferry.model import ModelSpec, RunResult

__all__ = ["Admission", "BatchOutcome", "Batcher", "Executor", "limits_of"]

#: How long ticks that bring requests may put a departure off (docs/decisions/0008-gathering.md).
_MAX_GATHER_S: Final = 0.8e-3

#: How long full batches may run on the loop thread, one after another, before sockets are read.
_MAX_INLINE_S: Final = 1e-3


class Batcher:
    """Coalesces the requests of one model version."""

    def __init__(
        self,
        spec: ModelSpec,
        executor: Executor,
        clock: Clock,
        admission: Admission,
        max_queue_size: int,
        run_s: Mapping[int, float] | None = None,
        has_histograms: bool = True,
    ) -> None:
        """``run_s`` maps rows to the seconds of a run, where warm-up has measured them."""
        self._spec = spec
        self._executor = executor
        self._clock = clock
        self._admission = admission
        self._share = Share(admission)
        self._limits = limits_of(spec)
        self._is_greedy = self._limits.is_greedy
        objective_s = spec.batching.latency_objective_ms / 1e3
        self._queue = WaitingQueue(max(1, spec.batching.priority_levels))
        self._lowest = max(0, spec.batching.priority_levels - 1)
        self._forecast = Forecast(self._limits.max_rows, executor.idle, run_s or {}, objective_s)
        self._gate = Gate(spec, self._queue, self._forecast, self._share, max_queue_size, self._is_idle)
        self._expiry = Expiry(clock, self._expired)
        self._in_order = InOrder() if spec.batching.preserve_ordering else None
        self._again: deque[Batch] = deque()  # halves of failed batches, before everything else
        self._running = 0
        self._flushing = False
        self._flush_handle: Timer | None = None
        self._hold_handle: Timer | None = None
        self._hold_end = NEVER
        self._gathered = 0
        self._gather_end = 0.0
        self._idle_event = asyncio.Event()
        self._idle_since = 0.0
        self._counters = Counters(has_histograms)

    def submit(self, request: Pending) -> None:
        """Queue a request; it leaves at the end of this loop tick at the earliest.

        Raises:
            InvalidRequest: the model doesn't have the request's priority.
            QueueFull: the model's queue, or the server's bytes in flight, are at their bound.
            PredictedLate: its answer would come after its deadline or the model's objective.
            DeadlineExceeded: the request came too late to run at all.
        """
        now = self._clock.now()
        queue = self._queue
        self._forecast.arrived_rows += request.bound.rows
        refused = self._gate.admit(request, now)
        if refused is not None:
            raise self._turned_away(request, refused)
        if self._lowest and request.level < self._lowest:
            self._forecast.above_rows += request.bound.rows
        self._share.byte_size += request.byte_size  # as ``Share.take``, on every request's way
        self._admission.byte_size += request.byte_size
        if self._in_order is not None:
            self._in_order.join(request)
        queue.push(request)
        if request.deadline != NEVER:
            self._expiry.watch(request, queue.count)
        if self._flush_handle is None:
            self._gathered = 0
            self._gather_end = now + _MAX_GATHER_S
            self._flush_handle = self._clock.call_soon(self._gather)

    def _is_idle(self) -> bool:
        return not self._queue.count and not self._again and self._executor.idle > 0

    def _turned_away(self, request: Pending, refused: Refused) -> TensorferryError:
        request.state = DONE
        if refused.reason:
            self._counters.refused(refused.reason)
        self._counters.failed(failure_reason(refused.error), 0.0)
        return refused.error

    def cancel(self, request: Pending) -> None:
        """Give a request up. One that waits never runs; the answer of one that runs is dropped."""
        if request.state == WAITING:
            self._end_waiting(request, Cancelled("the caller cancelled the request"))
        elif request.state == RUNNING:
            self._give(request, Cancelled("the caller cancelled the request"), self._clock.now())

    def fail_waiting(self, error: TensorferryError) -> None:
        """End everything that waits with ``error``. What runs is left to finish."""
        for request in self._queue.waiting():
            self._end_waiting(request, error)

    async def wait_idle(self) -> None:
        """Wait until nothing waits or runs. New requests postpone it: refuse them first."""
        while self.in_flight:
            self._idle_event.clear()
            await self._idle_event.wait()

    def close(self) -> None:
        """Stop its timers, and give its share of the bytes to the others. Nothing may be in flight."""
        self._share.close()
        self._expiry.close()
        if self._hold_handle is not None:
            self._hold_handle.cancel()
            self._hold_handle = None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._queue.count

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._queue.count + self._running + sum(len(batch.requests) for batch in self._again)

    def statistics(self) -> BatcherStatistics:
        """Return a snapshot of the counts."""
        return self._counters.snapshot(self._queue.count, self._running)

    def __repr__(self) -> str:
        return f"<Batcher {self._spec.name}/{self._spec.version}: {self._queue!r}, {self._running} running>"

    # -- departure ------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Leave at the end of the first tick that brought nobody new, or when the batch is full.

        While ticks bring requests, the loop is busy reading them: a run now would only take its
        time from them. grpc.aio hands over about one request a tick; leaving at every tick, a
        saturated server ran batches of 1.1 rows and answered a third of the calls.
        """
        waiting = self._queue.count
        if (
            waiting == self._gathered
            or waiting >= self._limits.max_rows
            or self._clock.now() >= self._gather_end
        ):
            self._flush()
            return
        self._gathered = waiting
        self._flush_handle = self._clock.call_soon(self._gather)

    def _flush(self) -> None:
        """Start batches until the policy says wait, or no stream is idle or has a place to spare."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._flushing = True
        end = 0.0
        try:
            while self._executor.idle:
                batch = self._next_half() or self._next_batch()
                if batch is None:
                    self._forecast.rested()
                    return
                running = self._running
                self._running += len(batch.requests)
                now = self._clock.now()
                if self._forecast.is_needed:
                    self._forecast.started(batch, now)
                else:
                    self._forecast.runs[batch] = now
                self._executor.start(batch, self._finished)
                if self._running != running:
                    continue
                # It ran here, on the loop thread. Let the sockets be read before the next one; but
                # not while whole batches wait: those who are in come before those who aren't.
                end = end or now + _MAX_INLINE_S
                if self._queue.count < self._limits.max_rows or self._clock.now() >= end:
                    if not (self._queue.count or self._again):
                        self._forecast.rested()
                    self._flush_soon()
                    return
            if self._executor.spare:
                self._follow()
        finally:
            self._flushing = False
            self._announce_idle()  # what was left may have been too late to run

    def _follow(self) -> None:
        """Start batches behind those that run, while there are places and the policy says so."""
        executor, forecast = self._executor, self._forecast
        while executor.spare:
            # A half of a failed batch gets no company by waiting.
            batch = self._next_half() or self._next_batch(follows=True)
            if batch is None:
                return
            self._running += len(batch.requests)
            forecast.started(batch, self._clock.now())
            executor.start(batch, self._finished)
            if batch.behind is not None:
                forecast.followers[batch.behind] = batch

    def _flush_soon(self) -> None:
        if self._flush_handle is None and (self._queue.count or self._again):
            self._flush_handle = self._clock.call_soon(self._flush)

    def _next_half(self) -> Batch | None:
        """Return the next part of a failed batch, less those whose time ran out meanwhile."""
        while self._again:
            batch = self._again.popleft()
            batch = Batch(self._spec, self._still_wanted(batch.requests), batch.started_at, RETRY)
            if batch.requests:
                return batch
        return None

    def _next_batch(self, follows: bool = False) -> Batch | None:
        now = self._clock.now()
        while departure := self._next_follower(now) if follows else self._next_departure(now):
            place, rows, shared, reason = departure
            # Those at the head that are still in time; there may be none.
            requests = self._still_wanted(self._queue.take(place, rows, shared))
            if requests:
                hold_s = 0.0 if follows else now - max(requests[0].enqueued_at, self._idle_since)
                batch = Batch(self._spec, requests, now, reason, hold_s)
                if reason is IDLE:
                    most = self._limits.max_rows
                    if self._queue.has_more(place):
                        batch.reason = FULL if rows >= most else DEADLINE
                    elif batch.rows >= most > 1:  # of a model that takes one row, every batch has all it may
                        batch.reason = FULL
                return batch
        return None

    def _next_departure(self, now: float) -> tuple[Place, int, int, str] | None:
        """Return whose batch leaves now, with how many rows, up to how many may be of lower levels, and why.

        If none leaves now, see to it that this is asked again when one does.
        """
        queue, most = self._queue, self._limits.max_rows
        if self._is_greedy:
            place = queue.first(now)
            if place is None:
                return None
            if place.head.limit == NEVER and not self._lowest:
                return place, most, most, IDLE
            return self._sized(place, most, now, now, IDLE)
        hold_end = NEVER
        for place in self._in_turn(now):
            view = queue.view(place, most)
            decision = decide(view, self._executor.idle, self._limits, now, self._forecast.expected)
            if isinstance(decision, Run):
                return self._sized(place, decision.rows, now, now, decision.reason)
            if isinstance(decision, Wait):
                hold_end = min(hold_end, decision.until)
        self._hold_until(hold_end)
        return None

    def _next_follower(self, now: float) -> tuple[Place, int, int, str] | None:
        """Return the same for a batch behind one that runs, with no stream idle."""
        queue, most, expected = self._queue, self._limits.max_rows, self._forecast.expected
        if not queue.count:
            return None
        follow_at = self._executor.follow_at(expected) if expected.is_known else NEVER
        hold_end = follow_at
        if now >= follow_at or sum(queue.rows) >= most:  # else nobody is full, and nobody leaves
            spare = Spare(follow_at, self._forecast.free_at(now, follow_at))
            hold_end = NEVER
            for place in self._in_turn(now):
                decision = follow(queue.view(place, most), self._limits, now, spare, expected)
                if isinstance(decision, Run):
                    rows, reason = (most, IDLE) if self._is_greedy else (decision.rows, decision.reason)
                    return self._sized(place, rows, now, spare.free_at, reason)
                if isinstance(decision, Wait):
                    hold_end = min(hold_end, decision.until)
                    if decision.until <= follow_at:
                        break  # it is this one's turn then, and nobody goes before it
        self._hold_until(hold_end)
        return None

    def _in_turn(self, now: float) -> Iterable[Place]:
        if self._is_greedy:
            first = self._queue.first(now)
            return () if first is None else (first,)
        turn = self._queue.turn(now)
        return chain([turn] if turn else [], self._queue.places())

    def _sized(
        self, place: Place, most: int, now: float, start: float, reason: str
    ) -> tuple[Place, int, int, str]:
        """Settle the size of a batch that leaves now and runs from ``start`` on, of at most ``most`` rows."""
        shared = most
        if self._lowest:
            shared = min(most, self._forecast.shared_rows(now))
            if place.level >= self._lowest:
                most = shared
        rows = self._rows_in_time(place, most, start)
        return place, rows, min(rows, shared), reason

    def _rows_in_time(self, place: Place, most: int, start: float) -> int:
        """Cut a batch that runs from ``start`` on to the rows that are in time for their limits.

        Those who are passed over are refused if the streams are overloaded: running them late
        would make others late. Otherwise they ride along, late.
        """
        expected = self._forecast.expected
        if place.head.limit == NEVER or not expected.is_known:
            return most
        queue = self._queue
        if start + expected(min(most, queue.rows[place.level])) <= place.head.limit:
            return most  # all of them are in time, the first as well
        line = queue.line(place, most)
        best = cut([(each.limit, each.bound.rows) for each in line], start, most, expected)
        if not best.skipped:
            return best.rows
        if not self._forecast.is_overloaded and queue.rows[place.level] <= most:
            return most
        for request in line[: best.skipped]:
            refused = self._gate.refuse_late(request, start + expected(best.rows))
            self._counters.refused(refused.reason)
            self._end_waiting(request, refused.error)
        return best.rows

    def _hold_until(self, hold_end: float) -> None:
        """Make sure the queue is looked at again at this instant; arrivals have it looked at before."""
        if hold_end == self._hold_end:
            return
        if self._hold_handle is not None:
            self._hold_handle.cancel()
        self._hold_end = hold_end
        self._hold_handle = None if hold_end == NEVER else self._clock.call_at(hold_end, self._hold_ended)

    def _hold_ended(self) -> None:
        self._hold_handle = None
        self._hold_end = NEVER
        self._flush()

    def _still_wanted(self, requests: list[Pending]) -> list[Pending]:
        """Mark them RUNNING and return those whose deadline hasn't come; end the others."""
        now = self._clock.now()
        late: list[Pending] = []
        for request in requests:
            if (entry := request.entry) is not None:
                entry[2] = request.entry = None  # as ``Expiry.forget``: this is every request's way
            if request.state != DONE:
                request.state = RUNNING
                if request.deadline <= now and not self._gate.delay(request, now):
                    late.append(request)
        for request in late:
            self._give(request, self._too_late(request), now)
        wanted: list[Pending] = []
        # A late one's callback may have cancelled any other.
        for request in requests:
            if request.state == DONE:
                self._share.give(request.byte_size)
            else:
                wanted.append(request)
        return wanted

    # -- return ---------------------------------------------------------------------------------

    def _finished(self, outcome: BatchOutcome) -> None:
        batch, result, error = outcome.batch, outcome.result, outcome.error
        if result is not None:
            if result.device is not None:
                most = self._forecast.limit_rows(outcome.stream, result.device.row_limit)
                if most != self._limits.max_rows:
                    self._limits = replace(self._limits, max_rows=most)
            try:
                batch.check(result.outputs)
            except ModelFailed as mismatch:
                error = mismatch
        self._running -= len(batch.requests)
        now, waiting = self._clock.now(), self._queue.count
        if self._forecast.followers and self._forecast.handed_on(batch, now):
            waiting = 0  # those who wait don't hold the stream up: the next batch is there
        elif self._executor.idle == 1:
            self._idle_since = now
        self._forecast.finished(batch, outcome.stream, now, error is None, waiting)
        if error is not None and len(batch.requests) > 1 and not isinstance(error, DeviceLost):
            # A model that has no room has halved the batch itself, down to one row.
            has_no_room = isinstance(error, OutOfDeviceMemory)
            self._again.extend(batch.singles() if has_no_room else batch.halves())
            batch.requests = []
        # Refill before replying: the stream works while the replies are encoded. A stream that
        # runs on this thread is refilled by the flush that is on the stack below.
        if not self._flushing:
            self._flush()
            now = self._clock.now()
        if error is not None:
            for request in batch.requests:
                self._end(request, error, now)
        elif result is not None:
            self._reply(outcome, result, now)
        self._announce_idle()

    def _reply(self, outcome: BatchOutcome, result: RunResult, now: float) -> None:
        batch = outcome.batch
        record = self._counters.ran(batch, result, now, outcome.stream)
        self._share.give(sum([request.byte_size for request in batch.requests]))
        first = batch.requests[0]
        waits_s, late = batch.deliver(result.outputs, record)
        if self._gate.late_s:
            self._forecast.answered(self._clock.now() - first.enqueued_at > self._gate.late_s)
        self._counters.answered(waits_s, late, record)

    def _end(self, request: Pending, error: TensorferryError, now: float) -> None:
        """Give a request that holds admission its error, unless it has an outcome already."""
        self._share.give(request.byte_size)
        self._give(request, error, now)

    def _end_waiting(self, request: Pending, error: TensorferryError) -> None:
        if request.state != WAITING:
            return  # the callback of one that was ended just before has cancelled it
        self._expiry.forget(request)
        # The outcome first: the queue counts a request as dead once it is DONE.
        self._end(request, error, self._clock.now())
        self._queue.forget(request)
        self._announce_idle()

    def _give(self, request: Pending, error: TensorferryError, now: float) -> None:
        if request.state != DONE:
            self._counters.failed(failure_reason(error), now - request.enqueued_at)
            request.fail(error)

    def _announce_idle(self) -> None:
        if not self.in_flight:
            self._idle_event.set()

    # -- expiry ---------------------------------------------------------------------------------

    def _expired(self, request: Pending) -> None:
        """A request that waits has reached its deadline, or its queue timeout."""
        now = self._clock.now()
        if not self._gate.delay(request, now):
            self._end_waiting(request, self._too_late(request))
            return
        self._queue.delay(request)
        if request.deadline != NEVER:
            self._expiry.watch(request, self._queue.count)
        self._flush_soon()

    def _too_late(self, request: Pending) -> DeadlineExceeded:
        waited_ms = (self._clock.now() - request.enqueued_at) * 1e3
        return DeadlineExceeded(
            f"model {self._spec.name!r}: the deadline came after {waited_ms:.1f} ms in the queue;"
            " the request was not run"
        )
