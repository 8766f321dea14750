from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.pending import NEVER
from tensorferry.batching.policy import (
    Cut,
    Limits,
    QueueView,
    Rest,
    Run,
    Spare,
    Wait,
    cut,
    decide,
    follow,
)
from tensorferry.batching.record import DEADLINE, FULL, HOLD, IDLE, PREFERRED
from tensorferry.batching.run_times import RunTimes

HELD = Limits(max_rows=8, max_queue_delay_s=1.0)


def view(rows=1, count=1, is_full=False, oldest=0.0, limit=NEVER) -> QueueView:
    return QueueView(count, rows, is_full, oldest, limit)


def test_nobody_waiting_means_rest():
    assert decide(view(rows=0, count=0), 1, HELD, 5.0) == Rest()


def test_no_idle_stream_means_rest_even_for_a_full_batch():
    assert decide(view(rows=8, count=8, is_full=True), 0, HELD, 5.0) == Rest()


def test_without_a_delay_whoever_is_there_leaves_at_once():
    assert decide(view(rows=3, count=2), 1, Limits(8), 0.0) == Run(3)


def test_full_batch_leaves_at_once_in_spite_of_a_delay():
    assert decide(view(rows=8, count=3, is_full=True), 1, HELD, 0.0) == Run(8, FULL)


def test_delay_is_counted_from_the_oldest_and_obeyed_to_the_instant():
    held = view(rows=2, count=2, oldest=3.0)
    assert decide(held, 1, HELD, 3.0) == Wait(4.0)
    assert decide(held, 1, HELD, 3.999999) == Wait(4.0)
    assert decide(held, 1, HELD, 4.0) == Run(2, HOLD)
    assert decide(held, 1, HELD, 9.0) == Run(2, HOLD)


def test_limit_before_the_end_of_the_hold_ends_it_while_there_is_time_to_run():
    decision = decide(view(oldest=3.0, limit=3.5), 1, HELD, 3.0)
    assert isinstance(decision, Wait)
    assert 3.0 < decision.until < 3.5
    assert decide(view(oldest=3.0, limit=3.5), 1, HELD, decision.until) == Run(1, DEADLINE)


def test_limit_after_the_end_of_the_hold_does_not_matter():
    assert decide(view(oldest=3.0, limit=4.0), 1, HELD, 3.0) == Wait(4.0)
    assert decide(view(oldest=3.0, limit=99.0), 1, HELD, 3.0) == Wait(4.0)


def test_hold_ends_so_that_the_run_is_over_at_the_limit():
    held = view(rows=4, count=4, oldest=3.0, limit=3.5)
    assert decide(held, 1, HELD, 3.0, lambda rows: rows * 0.0625) == Wait(3.25)
    assert decide(held, 1, HELD, 3.25, lambda rows: rows * 0.0625) == Run(4, DEADLINE)


def test_hold_that_leaves_time_for_the_run_is_obeyed_to_its_end():
    held = view(oldest=3.0, limit=4.25)
    assert decide(held, 1, HELD, 3.0, lambda _: 0.25) == Wait(4.0)
    assert decide(held, 1, HELD, 3.0, lambda _: 0.5) == Wait(3.75)


def test_limit_that_the_run_alone_would_miss_holds_nothing():
    assert decide(view(oldest=3.0, limit=3.5), 1, HELD, 3.0, lambda _: 0.75) == Run(1, DEADLINE)


def test_run_time_that_is_not_known_is_as_none_given():
    held = view(oldest=3.0, limit=3.5)
    assert decide(held, 1, HELD, 3.0, lambda _: 0.0) == decide(held, 1, HELD, 3.0)


def test_held_batch_leaves_early_at_a_preferred_size_and_only_there():
    limits = Limits(8, 1.0, (4, 6))
    assert decide(view(rows=3, count=3), 1, limits, 0.0) == Wait(1.0)
    assert decide(view(rows=4, count=3), 1, limits, 0.0) == Run(4, PREFERRED)
    assert decide(view(rows=5, count=3), 1, limits, 0.0) == Wait(1.0)
    assert decide(view(rows=6, count=3), 1, limits, 0.0) == Run(6, PREFERRED)


@pytest.mark.parametrize(("rows", "cut"), [(3, 3), (4, 4), (5, 4), (7, 6)])
def test_batch_that_leaves_on_time_is_cut_to_the_largest_preferred_size(rows, cut):
    assert decide(view(rows=rows, count=rows), 1, Limits(8, 1.0, (4, 6)), 1.0) == Run(
        cut, PREFERRED if rows in (4, 6) else HOLD
    )
    assert decide(view(rows=rows, count=rows), 1, Limits(8, 0.0, (4, 6)), 0.0) == Run(cut, IDLE)


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
    expected_s=st.none() | st.floats(0, 10).map(lambda per_row: lambda rows: rows * per_row),
)
def test_decision_is_never_to_wait_for_the_past_nor_to_run_more_than_waits(
    queue, idle, limits, now, expected_s
):
    decision = decide(queue, idle, limits, now, expected_s)
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
    oldest, limit, now = times
    assert limits.is_greedy
    assert decide(QueueView(count, rows, is_full, oldest, limit), streams, limits, now) == Run(
        rows, FULL if is_full else IDLE
    )


@pytest.mark.parametrize("limits", [Limits(9, max_queue_delay_s=1e-6), Limits(9, preferred_rows=(4,))])
def test_a_delay_or_preferred_sizes_are_not_greedy(limits):
    assert not limits.is_greedy


# -- places behind a batch that runs ------------------------------------------------------------

#: The batch before ends at 11; whoever leaves at 10 is ready then.
SPARE = Spare(follow_at=10.0, free_at=11.0)


def one_s(rows: int) -> float:
    return 1.0


def test_full_batch_follows_at_once_and_an_unfull_one_when_waiting_gains_nothing_any_more():
    limits = Limits(8)
    assert follow(view(rows=8, count=8, is_full=True), limits, 5.0, SPARE, one_s) == Run(8, FULL)
    assert follow(view(rows=7, count=7), limits, 5.0, SPARE, one_s) == Wait(10.0)
    assert follow(view(rows=7, count=7), limits, 10.0, SPARE, one_s) == Run(7, IDLE)


def test_where_nothing_is_known_an_unfull_batch_never_follows():
    unknown = Spare(NEVER, 5.0)
    assert follow(view(rows=7, count=7), Limits(8), 1e9, unknown, one_s) == Wait(NEVER)
    assert follow(view(rows=8, count=8, is_full=True), Limits(8), 1.0, unknown, one_s) == Run(8, FULL)


def test_full_batch_below_the_highest_level_follows_as_late_as_an_unfull_one():
    low = QueueView(8, 8, True, 0.0, NEVER, level=1)
    assert follow(low, Limits(8), 5.0, SPARE, one_s) == Wait(10.0)
    assert follow(low, Limits(8), 10.0, SPARE, one_s) == Run(8, FULL)


def test_full_batch_that_will_have_to_be_cut_is_not_settled_before_it_leaves():
    in_time = view(rows=8, count=8, is_full=True, limit=12.0)
    late = view(rows=8, count=8, is_full=True, limit=11.9)
    assert follow(in_time, Limits(8), 5.0, SPARE, one_s) == Run(8, FULL)
    assert follow(late, Limits(8), 5.0, SPARE, one_s) == Wait(10.0)
    assert follow(late, Limits(8), 10.0, SPARE, one_s) == Run(8, FULL)


def test_hold_is_obeyed_behind_a_batch_as_on_an_idle_stream():
    assert follow(view(oldest=8.5), HELD, 9.0, SPARE, one_s) == Wait(10.0), "the hold is over by then"
    assert follow(view(oldest=9.5), HELD, 9.6, SPARE, one_s) == Wait(10.5)
    assert follow(view(oldest=9.5), HELD, 10.5, SPARE, one_s) == Run(1, HOLD)
    assert follow(view(rows=8, count=8, is_full=True, oldest=9.5), HELD, 9.6, SPARE, one_s) == Run(8, FULL)


@given(
    now=st.floats(0.0, 20.0),
    rows=st.integers(1, 8),
    oldest=st.floats(0.0, 20.0),
    limit=st.floats(0.0, 30.0) | st.just(NEVER),
    delay_s=st.sampled_from([0.0, 1.0, 5.0]),
    preferred=st.sampled_from([(), (2, 4)]),
)
def test_from_the_instant_on_a_place_is_as_good_as_an_idle_stream(
    now, rows, oldest, limit, delay_s, preferred
):
    limits = Limits(8, delay_s, preferred)
    seen = QueueView(rows, rows, rows == 8, oldest, limit)
    if now >= SPARE.follow_at:
        assert follow(seen, limits, now, SPARE, one_s) == decide(seen, 1, limits, now, one_s)
    elif rows < 8:
        decision = follow(seen, limits, now, SPARE, one_s)
        assert isinstance(decision, Wait)
        assert decision.until >= SPARE.follow_at


# -- which of those who wait are in time --------------------------------------------------------

#: 1 s for each row: no batch serves more rows a second than another.
LINE = RunTimes(8, {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
#: 1 s for any batch: the larger, the better.
FLAT = RunTimes(8, {1: 1.0, 8: 1.0})


@pytest.mark.parametrize(
    ("limit", "rows"), [(13.0, 3), (13.9, 3), (14.0, 4), (18.0, 6), (99.0, 6), (NEVER, 6)]
)
def test_batch_has_as_many_rows_as_are_in_time_for_the_first(limit, rows):
    assert cut([(limit, 1)] * 6, 10.0, 8, LINE) == Cut(0, rows)


@pytest.mark.parametrize("limits", [[10.9, 10.9], [10.0, 10.5, 10.9], [5.0]])
def test_where_all_are_late_nobody_is_passed_over_and_the_batch_is_as_large_as_it_can_be(limits):
    assert cut([(limit, 1) for limit in limits], 10.0, 8, LINE) == Cut(0, 8)


def test_late_head_is_passed_over_for_those_behind_it_that_are_in_time():
    assert cut([(10.5, 1), (12.0, 1), (13.0, 1)], 10.0, 8, LINE) == Cut(1, 2)


def test_head_in_time_is_passed_over_only_where_that_is_worth_it():
    fixed = RunTimes(8, {1: 1.0, 8: 2.0})
    assert cut([(11.0, 1)] + [(19.0, 1)] * 7, 10.0, 8, fixed) == Cut(1, 7)
    assert cut([(11.9, 1)] + [(19.0, 1)] * 7, 10.0, 8, fixed) == Cut(0, 7)
    assert cut([(11.0, 1)] + [(19.0, 1)] * 7, 10.0, 8, LINE) == Cut(0, 1)


def test_nobody_is_passed_over_who_costs_the_others_nothing():
    assert cut([(11.0, 1)] * 4, 10.0, 8, FLAT) == Cut(0, 4)


def test_request_of_several_rows_is_not_cut_in_two():
    assert cut([(13.0, 4), (14.0, 4)], 10.0, 8, LINE) == Cut(1, 4)


LINES = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 4)), min_size=1, max_size=20).map(sorted)


@given(line=LINES, now=INSTANTS, most=st.integers(4, 8), expected=st.sampled_from([LINE, FLAT]))
def test_whoever_leaves_first_is_in_time_or_nobody_could_be(line, now, most, expected):
    best = cut(line, now, most, expected)
    assert 0 <= best.skipped < len(line)
    assert 1 <= best.rows <= most
    limit, first_rows = line[best.skipped]
    if now + expected(best.rows) <= limit + 1e-9:
        assert best.rows >= first_rows
    else:
        assert best == Cut(0, most)
        # Those passed over were looked at 0, 1, 2, 4, ... from the front.
        for index in (0, 1, 2, 4, 8, 16):
            if index < len(line):
                assert now + expected(line[index][1]) > line[index][0]
