"""Whatever happens in whatever order: each request has one outcome, the right one; nothing is left over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.batching.ledger import MAX_ROWS, OTHER, SUBMIT, Ledger, assert_idle
from tests.unit.batching.timed import TimedStation
from tests.unit.support import Station, bytes_spec, content, picky

from tensorferry.batching.pending import NEVER
from tensorferry.batching.record import RETRY
from tensorferry.model import QueuePolicy

PLAIN = QueuePolicy()
POLICIES = [
    PLAIN,
    QueuePolicy(max_queue_size=3),
    QueuePolicy(default_timeout_us=1_000_000),
    QueuePolicy(default_timeout_us=1_000_000, allow_timeout_override=False),
    QueuePolicy(default_timeout_us=500_000, timeout_action="DELAY"),
    QueuePolicy(timeout_action="DELAY"),
]


@st.composite
def specs(draw):
    """Every setting of batching that there is, with and without the others."""
    levels = draw(st.sampled_from([0, 0, 1, 3]))
    own = {level: draw(st.sampled_from(POLICIES)) for level in range(1, levels + 1) if draw(st.booleans())}
    return bytes_spec(
        MAX_ROWS,
        enabled=draw(st.sampled_from([True, True, True, False])),
        max_queue_delay_us=draw(st.sampled_from([None, None, 0, 1_000_000, 3_000_000])),
        preferred_batch_sizes=draw(st.sampled_from([(), (), (2,), (3, 4)])),
        queue_policy=draw(st.sampled_from(POLICIES)),
        priority_levels=levels,
        default_priority_level=draw(st.integers(1, levels)) if levels else 0,
        priority_policies=tuple(own.items()),
        preserve_ordering=draw(st.booleans()),
        latency_objective_ms=draw(st.sampled_from([0.0, 0.0, 900.0, 3000.0])),
    )


@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
@settings(max_examples=300, deadline=None)
@given(
    spec=specs(),
    streams=st.integers(1, 3),
    slots=st.integers(1, 3),
    max_queue_size=st.sampled_from([3, 1000]),
    max_bytes=st.sampled_from([20, 10_000]),
    run_s=st.sampled_from([None, {1: 0.25, MAX_ROWS: 0.5}, {1: 2.0}]),
    actions=st.lists(SUBMIT | OTHER, max_size=40),
)
def test_each_request_has_one_outcome_and_the_right_one(
    inline, spec, streams, slots, max_queue_size, max_bytes, run_s, actions
):
    station = Station(
        spec,
        max_queue_size=max_queue_size,
        max_bytes=max_bytes,
        run_s=run_s,
        streams=streams,
        slots=1 if inline else slots,
        inline=inline,
        behaviour=picky,
    )
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
        assert len(station.executor.running) <= streams * slots
        assert 0 <= station.admission.byte_size <= max_bytes
        assert station.batcher.statistics().waiting <= max_queue_size * max(1, spec.batching.priority_levels)
    ledger.end()
    assert_idle(station)
    ledger.check_outcomes()
    ledger.check_statistics()
    if not spec.batching.enabled:
        assert all(len(batch) == 1 for batch in station.executor.log)


def submissions(widths: int):
    """Submissions without deadlines, wishes or poison."""
    return st.tuples(
        st.just("submit"),
        st.integers(1, MAX_ROWS),
        st.integers(1, widths),
        st.just(NEVER),
        st.just(False),
        st.just(0.0),
        st.just(0),
    )


HOLDS = st.builds(
    bytes_spec,
    max_batch_size=st.just(MAX_ROWS),
    enabled=st.booleans(),
    max_queue_delay_us=st.sampled_from([None, 0, 1_000_000, 3_000_000]),
    preferred_batch_sizes=st.sampled_from([(), (2,), (3, 4)]),
)
MOVES = st.tuples(st.just("advance"), st.sampled_from([0.0, 0.5, 1.0])) | st.tuples(st.just("finish"))


FOLLOW = st.tuples(st.just("follow"), st.sampled_from([-1.0, 0.0, 0.25, 1.0, NEVER]))


@settings(max_examples=150, deadline=None)
@given(
    spec=HOLDS,
    streams=st.integers(1, 3),
    slots=st.integers(1, 3),
    actions=st.lists(submissions(3) | MOVES | FOLLOW, max_size=40),
)
def test_without_deadlines_requests_of_one_shape_start_in_the_order_they_came(spec, streams, slots, actions):
    station = Station(spec, run_s={1: 1.0}, streams=streams, slots=slots)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
    station.finish_all()
    started = [data for batch in station.executor.log for data in batch]
    for width in (1, 2, 3):
        came = [content(request) for request in ledger.requests if request.bound.tensors[0].shape[1] == width]
        assert [data for data in started if data in came] == came
    assert len(started) == len(ledger.requests)


@settings(max_examples=100, deadline=None)
@given(
    streams=st.integers(1, 3),
    slots=st.integers(1, 3),
    run_s=st.sampled_from([None, {1: 1.0}]),
    actions=st.lists(SUBMIT | OTHER, max_size=40),
)
def test_with_preserved_order_callers_are_told_in_the_order_they_came(streams, slots, run_s, actions):
    spec = bytes_spec(MAX_ROWS, preserve_ordering=True)
    station = Station(spec, run_s=run_s, streams=streams, slots=slots, behaviour=picky)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
    ledger.end()
    assert list(ledger.outcomes) == sorted(ledger.outcomes)
    assert len(station.batcher._in_order) == 0


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


@settings(max_examples=100, deadline=None)
@given(
    streams=st.integers(1, 3),
    slots=st.integers(1, 3),
    actions=st.lists(submissions(2) | MOVES | FOLLOW, max_size=40),
)
def test_no_stream_is_idle_while_somebody_waits_and_nothing_is_held(streams, slots, actions):
    spec = bytes_spec(MAX_ROWS, priority_levels=2, default_priority_level=1)
    station = Station(spec, run_s={1: 1.0}, streams=streams, slots=slots)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
        station.tick()
        assert not (station.batcher.statistics().waiting and station.executor.idle)


class FullOrInTimeStation(Station):
    """Looks at whatever leaves while no stream is idle: its size against what waits, and the instant."""

    def make_executor(self, **more):
        executor = super().make_executor(**more)
        start = executor.start

        def look_and_start(batch, done) -> None:
            if not executor.idle and batch.reason != RETRY and self.clock.now() < executor.best_instant:
                waiting = [
                    each for each in self.batcher._queue.waiting() if each.bound.key == batch_key(batch)
                ]
                assert batch.rows >= MAX_ROWS or batch.rows + waiting[0].rows > MAX_ROWS
            start(batch, done)

        executor.start = look_and_start
        return executor


def batch_key(batch):
    return batch.requests[0].bound.key


@settings(max_examples=200, deadline=None)
@given(
    spec=HOLDS.filter(lambda spec: spec.batching.enabled and not spec.batching.preferred_batch_sizes),
    streams=st.integers(1, 2),
    slots=st.integers(2, 3),
    run_s=st.sampled_from([None, {1: 1.0}]),
    actions=st.lists(
        submissions(2) | MOVES | FOLLOW | st.sampled_from([("fail",), ("cancel", 3), ("finish_last",)]),
        max_size=40,
    ),
)
def test_no_unfull_batch_leaves_for_a_spare_place_before_its_instant(spec, streams, slots, run_s, actions):
    station = FullOrInTimeStation(spec, run_s=run_s, streams=streams, slots=slots)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
    ledger.end()
    assert_idle(station)
    ledger.check_outcomes()
    ledger.check_statistics()


@settings(max_examples=150, deadline=None)
@given(
    streams=st.integers(1, 2),
    slots=st.integers(2, 3),
    lead_s=st.sampled_from([0.0, 0.25]),
    gaps=st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.5, 3.0]), st.integers(1, MAX_ROWS)), max_size=40),
)
def test_nobody_waits_while_a_place_is_to_spare_and_the_instant_has_come(streams, slots, lead_s, gaps):
    spec = bytes_spec(MAX_ROWS)
    station = TimedStation(spec, lambda rows: 0.5 + rows / 8, streams=streams, slots=slots, lead_s=lead_s)
    for gap, rows in gaps:
        station.submit(rows=rows)
        station.clock.advance(gap)
        executor, now = station.executor, station.clock.now()
        if executor.idle or executor.follow_at(station.batcher._forecast.expected) <= now:
            assert not station.batcher.statistics().waiting
    station.clock.advance(100.0)
    assert len(station.done) == len(gaps)
    assert station.executor.running == []
