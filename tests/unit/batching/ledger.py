"""Drives a station by a list of actions, and knows what each request may end as."""

from __future__ import annotations

import asyncio

from hypothesis import strategies as st
from tests.unit.support import POISON, Station, answer, content

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelFailed,
    PredictedLate,
    QueueFull,
)

MAX_ROWS = 4

SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, MAX_ROWS),  # rows
    st.integers(1, 2),  # width, which is the key
    st.sampled_from([NEVER, NEVER, 0.0, 0.5, 1.0, 2.5]),  # seconds to the deadline
    st.sampled_from([False, False, False, True]),  # poisoned
    st.sampled_from([0.0, 0.0, 0.25, 2.0]),  # the request's own timeout in seconds
    st.sampled_from([0, 0, 1, 2, 3, 9]),  # priority
)
OTHER = st.one_of(
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    st.tuples(st.just("jump"), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("finish")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("finish_last")),
    st.tuples(st.just("fail")),
    st.tuples(st.just("stop")),
    st.tuples(st.just("follow"), st.sampled_from([-1.0, 0.0, 0.25, 1.0, NEVER])),
)


class Ledger:
    """Acts on a station, and keeps what was submitted, refused, ended and told."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.requests: list[Pending] = []
        self.outcomes: dict[int, int] = {}
        self.refused = {"REJECTED": 0, "EXPIRED": 0, "OTHER": 0}
        self.has_failed = self.has_stopped = False
        self.cancelled: set[int] = set()
        self._count = 0

    def act(self, action) -> None:
        getattr(self, f"_{action[0]}")(*action[1:])

    def end(self) -> None:
        """Let everything leave and finish, and all timers pass."""
        self.station.finish_all()

    # -- actions --------------------------------------------------------------------------------

    def _submit(self, rows, width, after, is_poisoned, timeout_s, priority) -> None:
        index, self._count = self._count, self._count + 1
        number = index % POISON
        row = bytes([number] * (width - 1) + [POISON if is_poisoned else number])

        def on_done(request) -> None:
            assert request.state == DONE
            self.outcomes[index] = self.outcomes.get(index, 0) + 1

        wishes = {"timeout_s": timeout_s, "priority": priority}
        try:
            request = self.station.submit(row, rows, self.station.clock.now() + after, on_done, **wishes)
        except InvalidRequest:
            assert priority > self.station.spec.batching.priority_levels > 0
            self.refused["OTHER"] += 1
        except QueueFull:
            self.refused["REJECTED"] += 1
        except PredictedLate:
            assert after != NEVER or self.station.spec.batching.latency_objective_ms
            self.refused["REJECTED"] += 1
        except DeadlineExceeded:
            assert after == 0.0
            self.refused["EXPIRED"] += 1
        else:
            self.requests.append(request)

    def _cancel(self, number) -> None:
        if self.requests:
            request = self.requests[number % len(self.requests)]
            self.cancelled.add(id(request))
            self.station.batcher.cancel(request)

    def _advance(self, seconds) -> None:
        self.station.clock.advance(seconds)

    def _jump(self, seconds) -> None:
        """Time passes and the end of the tick comes before any timer has its turn."""
        self.station.clock.sleep(seconds)
        self.station.tick()

    def _finish(self) -> None:
        if self.station.executor.running:
            self.station.executor.finish()

    def _finish_last(self) -> None:
        """The stream that was idle last is done first, as a faster one would be."""
        running = self.station.executor.running
        first = [batch for batch in running if batch.behind is None]
        if first:
            self.station.executor.finish(batch=first[-1])

    def _follow(self, seconds) -> None:
        """From now on, an unfull batch is best started behind another so many seconds from now."""
        self.station.executor.best_instant = self.station.clock.now() + seconds

    def _fail(self) -> None:
        if self.station.executor.running:
            self.has_failed = True
            self.station.executor.finish(ModelFailed("the test says so"))

    def _stop(self) -> None:
        self.has_stopped = True
        self.station.batcher.fail_waiting(Draining("over"))

    # -- checks ---------------------------------------------------------------------------------

    def check_outcomes(self) -> None:
        assert len(self.outcomes) == len(self.requests)
        assert set(self.outcomes.values()) <= {1}
        for request in self.requests:
            self._check_outcome(request)

    def _check_outcome(self, request) -> None:
        error = request.error
        batching = self.station.spec.batching
        if error is None:
            # The model is an echo: alone, the request would have had the same answer.
            assert answer(request) == content(request)
            (output,) = request.outputs
            assert output.shape == request.bound.tensors[0].shape
            assert POISON not in content(request)
        elif isinstance(error, DeadlineExceeded):
            assert request.deadline <= self.station.clock.now()
            if self._delays(request):
                assert request.call_deadline != NEVER, "a queue timeout ended what it should delay"
        elif isinstance(error, PredictedLate):
            assert request.call_deadline != NEVER or batching.latency_objective_ms
        elif isinstance(error, Cancelled):
            assert id(request) in self.cancelled
        elif isinstance(error, ModelFailed):
            assert POISON in content(request) or self.has_failed
        else:
            assert isinstance(error, Draining)
            assert self.has_stopped

    def _delays(self, request) -> bool:
        batching = self.station.spec.batching
        level = request.priority or batching.default_priority_level
        own = dict(batching.priority_policies)
        policy = own.get(level if batching.priority_levels else 1, batching.queue_policy)
        return policy.timeout_action == "DELAY"

    def check_statistics(self) -> None:
        counts = self.station.batcher.statistics()
        answered = [request for request in self.requests if request.error is None]
        assert (counts.waiting, counts.running) == (0, 0)
        assert counts.success_count == len(answered)
        submitted = len(self.requests) + sum(self.refused.values())
        assert counts.success_count + counts.failure_count == submitted
        assert counts.failure_count == sum(counts.failures.values())
        late = sum(isinstance(request.error, PredictedLate) for request in self.requests)
        assert counts.failures["REJECTED"] == self.refused["REJECTED"] + late
        assert counts.failures["OTHER"] >= self.refused["OTHER"]
        refused = sum(self.refused.values()) - self.refused["OTHER"]
        assert sum(counts.refusals.values()) == refused + late
        expired = sum(isinstance(request.error, DeadlineExceeded) for request in self.requests)
        assert counts.failures["EXPIRED"] == self.refused["EXPIRED"] + expired
        assert counts.inference_count >= sum(request.rows for request in answered)
        assert counts.inference_count == sum(rows * size.count for rows, size in counts.batch_sizes.items())
        assert counts.execution_count == sum(size.count for size in counts.batch_sizes.values())
        assert counts.execution_count == sum(counts.departures.values())


def assert_idle(station: Station) -> None:
    """Nothing is left of anything that was submitted, in any of the batcher's parts."""
    batcher = station.batcher
    assert station.admission.byte_size == 0
    assert batcher.in_flight == 0
    assert batcher._queue.count == 0
    assert not any(batcher._queue.delayed_counts)
    assert not any(batcher._queue.counts)
    assert not any(batcher._queue.rows)
    assert batcher._queue.waiting() == []
    assert len(batcher._expiry) == 0
    assert len(batcher._forecast.runs) == 0
    assert len(batcher._forecast.followers) == 0
    assert station.clock.next_timer() is None
    asyncio.run(asyncio.wait_for(batcher.wait_idle(), 1.0))
