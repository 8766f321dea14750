from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.pending import NEVER
from tensorferry.batching.policy import Limits, QueueView, Rest, Run, Wait, decide

HELD = Limits(max_rows=8, max_queue_delay_s=1.0)


def view(rows=1, count=1, is_full=False, oldest=0.0, deadline=NEVER) -> QueueView:
    return QueueView(count, rows, is_full, oldest, deadline)


def test_nobody_waiting_means_rest():
    assert decide(view(rows=0, count=0), 1, HELD, 5.0) == Rest()


def test_no_idle_stream_means_rest_even_for_a_full_batch():
    assert decide(view(rows=8, count=8, is_full=True), 0, HELD, 5.0) == Rest()


def test_without_a_delay_whoever_is_there_leaves_at_once():
    assert decide(view(rows=3, count=2), 1, Limits(8), 0.0) == Run(3)


def test_full_batch_leaves_at_once_in_spite_of_a_delay():
    assert decide(view(rows=8, count=3, is_full=True), 1, HELD, 0.0) == Run(8)


def test_delay_is_counted_from_the_oldest_and_obeyed_to_the_instant():
    held = view(rows=2, count=2, oldest=3.0)
    assert decide(held, 1, HELD, 3.0) == Wait(4.0)
    assert decide(held, 1, HELD, 3.999999) == Wait(4.0)
    assert decide(held, 1, HELD, 4.0) == Run(2)
    assert decide(held, 1, HELD, 9.0) == Run(2)


def test_deadline_before_the_end_of_the_hold_ends_it_while_there_is_time_to_run():
    decision = decide(view(oldest=3.0, deadline=3.5), 1, HELD, 3.0)
    assert isinstance(decision, Wait)
    assert 3.0 < decision.until < 3.5
    assert decide(view(oldest=3.0, deadline=3.5), 1, HELD, decision.until) == Run(1)


def test_deadline_after_the_end_of_the_hold_does_not_matter():
    assert decide(view(oldest=3.0, deadline=4.0), 1, HELD, 3.0) == Wait(4.0)
    assert decide(view(oldest=3.0, deadline=99.0), 1, HELD, 3.0) == Wait(4.0)


def test_held_batch_leaves_early_at_a_preferred_size_and_only_there():
    limits = Limits(8, 1.0, (4, 6))
    assert decide(view(rows=3, count=3), 1, limits, 0.0) == Wait(1.0)
    assert decide(view(rows=4, count=3), 1, limits, 0.0) == Run(4)
    assert decide(view(rows=5, count=3), 1, limits, 0.0) == Wait(1.0)
    assert decide(view(rows=6, count=3), 1, limits, 0.0) == Run(6)


@pytest.mark.parametrize(("rows", "cut"), [(3, 3), (4, 4), (5, 4), (7, 6)])
def test_batch_that_leaves_on_time_is_cut_to_the_largest_preferred_size(rows, cut):
    assert decide(view(rows=rows, count=rows), 1, Limits(8, 1.0, (4, 6)), 1.0) == Run(cut)
    assert decide(view(rows=rows, count=rows), 1, Limits(8, 0.0, (4, 6)), 0.0) == Run(cut)


INSTANTS = st.floats(0, 100, allow_nan=False)


@given(
    queue=st.builds(
        QueueView, st.integers(0, 9), st.integers(1, 9), st.booleans(), INSTANTS, INSTANTS | st.just(NEVER)
    ),
    idle=st.integers(0, 3),
    limits=st.builds(
        Limits,
        st.just(8),
        st.floats(0, 10),
        st.lists(st.integers(1, 8), max_size=3).map(lambda x: tuple(sorted(set(x)))),
    ),
    now=INSTANTS,
)
def test_decision_is_never_to_wait_for_the_past_nor_to_run_more_than_waits(queue, idle, limits, now):
    decision = decide(queue, idle, limits, now)
    if isinstance(decision, Wait):
        assert decision.until > now
        assert decision.until <= queue.oldest_enqueued_at + limits.max_queue_delay_s
    elif isinstance(decision, Run):
        assert 1 <= decision.rows <= queue.rows
    else:
        assert not (queue.count and idle), "it rests while somebody waits and a stream is idle"


@given(
    count=st.integers(1, 9),
    rows=st.integers(1, 9),
    is_full=st.booleans(),
    times=st.tuples(*[st.floats(0, 1e6)] * 3),
    streams=st.integers(1, 4),
)
def test_greedy_limits_mean_that_whatever_waits_leaves_at_once(count, rows, is_full, times, streams):
    limits = Limits(max_rows=9)
    oldest, deadline, now = times
    assert limits.is_greedy
    assert decide(QueueView(count, rows, is_full, oldest, deadline), streams, limits, now) == Run(rows)


@pytest.mark.parametrize("limits", [Limits(9, max_queue_delay_s=1e-6), Limits(9, preferred_rows=(4,))])
def test_a_delay_or_preferred_sizes_are_not_greedy(limits):
    assert not limits.is_greedy
