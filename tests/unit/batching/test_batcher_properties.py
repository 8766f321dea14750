"""Whatever happens in whatever order: each request has one outcome, the right one; nothing is left over."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import POISON, Station, answer, bytes_spec, content, picky

from tensorferry.batching.pending import NEVER
from tensorferry.errors import Cancelled, DeadlineExceeded, Draining, ModelFailed, QueueFull

MAX_ROWS = 4

SPECS = st.builds(
    bytes_spec,
    max_batch_size=st.just(MAX_ROWS),
    enabled=st.booleans(),
    max_queue_delay_us=st.sampled_from([None, 0, 1_000_000, 3_000_000]),
    preferred_batch_sizes=st.sampled_from([(), (2,), (3, 4)]),
)

SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, MAX_ROWS),  # rows
    st.integers(1, 2),  # width, which is the key
    st.sampled_from([NEVER, NEVER, 0.0, 0.5, 1.0, 2.5]),  # seconds to the deadline
    st.sampled_from([False, False, False, True]),  # poisoned
)
OTHER = st.one_of(
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    st.tuples(st.just("jump"), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("fail"), st.just(0)),
    st.tuples(st.just("stop"), st.just(0)),
)


class Ledger:
    """Drives a station by a list of actions, and keeps what each request may end as."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.requests = []
        self.outcomes: dict[int, int] = {}
        self.refused = {"REJECTED": 0, "EXPIRED": 0}
        self.has_failed = self.has_stopped = False
        self.cancelled: set[int] = set()

    def act(self, action) -> None:
        getattr(self, f"_{action[0]}")(*action[1:])

    def _submit(self, rows, width, after, is_poisoned) -> None:
        number = len(self.requests) % POISON
        row = bytes([number] * (width - 1) + [POISON if is_poisoned else number])
        index = len(self.requests) + sum(self.refused.values())

        def on_done(request) -> None:
            self.outcomes[index] = self.outcomes.get(index, 0) + 1

        try:
            request = self.station.submit(row, rows, self.station.clock.now() + after, on_done)
        except QueueFull:
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
        self.station.clock._now += seconds
        self.station.tick()

    def _finish(self, _) -> None:
        if self.station.executor.running:
            self.station.executor.finish()

    def _fail(self, _) -> None:
        if self.station.executor.running:
            self.has_failed = True
            self.station.executor.finish(ModelFailed("the test says so"))

    def _stop(self, _) -> None:
        self.has_stopped = True
        self.station.batcher.fail_waiting(Draining("over"))

    def check_outcome(self, request) -> None:
        error = request.error
        if error is None:
            assert answer(request) == content(request)
            (output,) = request.outputs
            assert output.shape == request.bound.tensors[0].shape
            assert POISON not in content(request)
        elif isinstance(error, DeadlineExceeded):
            assert request.deadline <= self.station.clock.now()
        elif isinstance(error, Cancelled):
            assert id(request) in self.cancelled
        elif isinstance(error, ModelFailed):
            assert POISON in content(request) or self.has_failed
        else:
            assert isinstance(error, Draining)
            assert self.has_stopped


def assert_idle(station: Station) -> None:
    assert station.admission.byte_size == 0
    assert station.batcher.in_flight == 0
    assert (station.batcher._queue.count, station.batcher._queue.byte_size) == (0, 0)
    asyncio.run(asyncio.wait_for(station.batcher.wait_idle(), 1.0))


@settings(max_examples=300, deadline=None)
@given(
    spec=SPECS,
    streams=st.integers(1, 3),
    inline=st.booleans(),
    max_queue_size=st.sampled_from([3, 1000]),
    max_bytes=st.sampled_from([20, 10_000]),
    actions=st.lists(SUBMIT | OTHER, max_size=40),
)
def test_each_request_has_one_outcome_and_the_right_one(
    spec, streams, inline, max_queue_size, max_bytes, actions
):
    station = Station(
        spec,
        max_queue_size=max_queue_size,
        max_bytes=max_bytes,
        streams=streams,
        inline=inline,
        behaviour=picky,
    )
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
        assert 0 <= station.admission.byte_size <= max_bytes
        assert station.batcher.statistics().waiting <= max_queue_size
    station.finish_all()

    assert len(ledger.outcomes) == len(ledger.requests)
    assert set(ledger.outcomes.values()) <= {1}
    for request in ledger.requests:
        ledger.check_outcome(request)
    assert_idle(station)

    counts = station.batcher.statistics()
    answered = [request for request in ledger.requests if request.error is None]
    assert counts.success_count == len(answered)
    assert counts.success_count + counts.failure_count == len(ledger.requests) + sum(ledger.refused.values())
    assert counts.failure_count == sum(counts.failures.values())
    assert counts.failures["REJECTED"] == ledger.refused["REJECTED"]
    assert counts.inference_count >= sum(request.rows for request in answered)
    assert counts.inference_count == sum(rows * size.count for rows, size in counts.batch_sizes.items())
    assert counts.execution_count == sum(size.count for size in counts.batch_sizes.values())
    if not spec.batching.enabled:
        assert all(len(batch) == 1 for batch in station.executor.log)


@settings(max_examples=150, deadline=None)
@given(
    spec=SPECS,
    streams=st.integers(1, 3),
    actions=st.lists(
        st.tuples(
            st.just("submit"), st.integers(1, MAX_ROWS), st.integers(1, 3), st.just(NEVER), st.just(False)
        )
        | st.tuples(st.just("advance"), st.sampled_from([0.0, 0.5, 1.0]))
        | st.tuples(st.just("finish"), st.just(0)),
        max_size=40,
    ),
)
def test_without_deadlines_requests_of_one_shape_start_in_the_order_they_came(spec, streams, actions):
    station = Station(spec, streams=streams)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
    station.finish_all()
    started = [data for batch in station.executor.log for data in batch]
    for width in (1, 2, 3):
        came = [content(request) for request in ledger.requests if request.bound.tensors[0].shape[1] == width]
        assert [data for data in started if data in came] == came
    assert len(started) == len(ledger.requests)


@settings(max_examples=150, deadline=None)
@given(
    delay_us=st.integers(1, 5_000_000),
    gaps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, MAX_ROWS)), min_size=1, max_size=12),
)
def test_with_an_idle_stream_nobody_waits_longer_than_the_delay_and_nobody_less_in_vain(delay_us, gaps):
    station = Station(bytes_spec(max_batch_size=MAX_ROWS, max_queue_delay_us=delay_us), streams=100)
    for gap, rows in gaps:
        station.clock.advance(gap)
        station.submit(rows=rows)
    station.clock.advance(100.0)
    batches = station.executor.started
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        waited_s = batch.started_at - batch.requests[0].enqueued_at
        assert waited_s <= delay_us / 1e6 + 1e-9
        if waited_s < delay_us / 1e6 - 1e-9:
            # It left early, so it was full, or the next one wouldn't have fitted.
            assert batch.rows == MAX_ROWS or batch.rows + following.requests[0].rows > MAX_ROWS
