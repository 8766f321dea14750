"""Equal requests are computed once, and each still has one outcome, its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.support import POISON, Station, answer, bytes_spec, picky

from tensorferry.batching.pending import DONE, NEVER, WAITING, Pending
from tensorferry.batching.splitting import Splitter
from tensorferry.engine.cached_intake import FOLLOWER_BYTES, CachedIntake
from tensorferry.engine.response_cache import ResponseCache
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    PredictedLate,
    QueueFull,
)
from tensorferry.model import QueuePolicy
from tensorferry.tensors import Tensor

LEVELS = {"priority_levels": 3, "default_priority_level": 2}


class CachedStation(Station):
    """A station with the cache before its batcher."""

    def __init__(self, spec=None, cache=None, split=False, has_histograms=True, **more) -> None:
        super().__init__(spec, **more)
        self.cache = cache or ResponseCache(2**20)
        inner = Splitter(self.batcher, self.spec) if split else self.batcher
        self.intake = CachedIntake(self.spec, self.cache, inner, self.clock, self.admission, has_histograms)

    def submit(self, data=b"a", rows=1, deadline=NEVER, on_done=None, timeout_s=0.0, priority=0) -> Pending:
        tensor = Tensor("x", "UINT8", (rows, len(data)), data * rows)
        bound = self.spec.bind([tensor])
        request = Pending(bound, on_done or self.done.append, deadline, None, timeout_s, priority)
        self.intake.submit(request)
        return request

    def unload(self) -> None:
        self.intake.close(ModelNotReady("unloading"))
        self.batcher.fail_waiting(ModelNotReady("unloading"))

    @property
    def statistics(self):
        return self.intake.statistics(self.batcher.statistics())

    @property
    def hits(self) -> int:
        return self.intake.cache_statistics().hit_count

    @property
    def misses(self) -> int:
        return self.intake.cache_statistics().miss_count


class Inbox:
    """An intake that only takes: the test says what becomes of a request."""

    def __init__(self) -> None:
        self.taken: list[Pending] = []

    def submit(self, request: Pending) -> None:
        self.taken.append(request)

    def cancel(self, request: Pending) -> None:
        request.fail(Cancelled("cancelled"))


def refused_late(**batching) -> tuple[list[Pending], Inbox]:
    """Three equal requests, whose run is taken and then refused because it would be late."""
    station = CachedStation(bytes_spec(**batching))
    inbox = Inbox()
    station.intake = CachedIntake(station.spec, station.cache, inbox, station.clock, station.admission)
    requests = [station.submit(b"a", deadline=deadline) for deadline in (1.0, 2.0, NEVER)]
    inbox.taken[0].fail(PredictedLate("late"))
    station.tick()
    return requests, inbox


def answered_once(station: CachedStation, data: bytes = b"a") -> Pending:
    request = station.submit(data)
    station.finish_all()
    return request


class TestHit:
    def test_a_request_asked_before_is_answered_without_a_run(self):
        station = CachedStation()
        first = answered_once(station)
        second = station.submit(b"a")
        station.tick()
        assert answer(second) == answer(first) == b"a"
        assert len(station.executor.log) == 1
        assert (station.hits, station.misses) == (1, 1)

    def test_it_gets_its_answer_on_a_later_tick_than_it_came(self):
        station = CachedStation()
        answered_once(station)
        hit = station.submit(b"a")
        assert hit.state != DONE
        station.tick()
        assert hit.state == DONE

    def test_hits_of_one_tick_are_answered_in_the_order_they_came(self):
        station = CachedStation()
        answered_once(station, b"a")
        answered_once(station, b"b")
        station.done.clear()
        hits = [station.submit(data) for data in (b"a", b"b", b"a")]
        station.tick()
        assert station.done == hits

    def test_one_that_is_cancelled_before_its_answer_is_cancelled(self):
        station = CachedStation()
        answered_once(station)
        hit = station.submit(b"a")
        station.intake.cancel(hit)
        station.tick()
        assert isinstance(hit.error, Cancelled)
        assert station.hits == 0
        assert station.statistics.failures["CANCELED"] == 1

    def test_its_rows_are_its_own_whatever_batch_they_came_from(self):
        station = CachedStation()
        for data in (b"a", b"b", b"c"):
            station.submit(data, rows=2)
        station.finish_all()
        assert station.sizes == [6]
        hit = station.submit(b"b", rows=2)
        station.tick()
        assert answer(hit) == b"bb"

    def test_more_rows_of_the_same_are_another_request(self):
        station = CachedStation()
        answered_once(station)
        station.submit(b"a", rows=2)
        station.finish_all()
        assert station.sizes == [1, 2]

    def test_a_request_larger_than_a_batch_is_kept_whole(self):
        station = CachedStation(bytes_spec(4, split_oversized=True), split=True)
        tensor = Tensor("x", "UINT8", (6, 1), b"abcdef")
        loose = replace(station.spec, max_batch_size=8)
        for _ in range(2):
            station.intake.submit(Pending(loose.bind([tensor]), station.done.append))
            station.finish_all()
        assert [answer(request) for request in station.done] == [b"abcdef"] * 2
        assert station.sizes == [4, 2]

    def test_a_priority_that_the_model_does_not_have_is_refused_all_the_same(self):
        station = CachedStation(bytes_spec(**LEVELS))
        answered_once(station)
        with pytest.raises(InvalidRequest):
            station.submit(b"a", priority=4)
        assert station.intake.in_flight == 0

    def test_a_failure_is_not_kept(self):
        station = CachedStation()
        failed = station.submit(b"a")
        station.tick()
        station.executor.finish(ModelFailed("once"))
        station.finish_all()
        assert isinstance(failed.error, ModelFailed)
        assert answer(answered_once(station)) == b"a"
        assert len(station.executor.log) == 2


class TestSharedRun:
    def test_equal_requests_in_flight_run_once(self):
        station = CachedStation()
        requests = [station.submit(b"a") for _ in range(3)]
        station.tick()
        requests += [station.submit(b"a") for _ in range(2)]
        station.finish_all()
        assert station.sizes == [1]
        assert {answer(request) for request in requests} == {b"a"}
        assert station.done == requests
        assert (station.hits, station.misses) == (4, 1)

    def test_the_run_goes_on_when_its_lead_is_cancelled(self):
        station = CachedStation()
        lead, follower = station.submit(b"a"), station.submit(b"a")
        station.intake.cancel(lead)
        station.finish_all()
        assert isinstance(lead.error, Cancelled)
        assert answer(follower) == b"a"

    def test_the_run_ends_with_the_last_who_wants_it(self):
        station = CachedStation()
        requests = [station.submit(b"a") for _ in range(2)]
        for request in requests:
            station.intake.cancel(request)
        station.finish_all()
        assert station.executor.log == []
        assert station.intake.in_flight == station.admission.byte_size == 0

    def test_an_error_is_everybodys(self):
        station = CachedStation()
        requests = [station.submit(b"a") for _ in range(3)]
        station.tick()
        station.executor.finish(ModelFailed("no"))
        assert [str(request.error) for request in requests] == ["no"] * 3
        assert station.statistics.failures["BACKEND"] == 3

    def test_followers_with_time_left_run_after_the_leads_deadline(self):
        station = CachedStation()
        station.submit(b"z")
        station.tick()  # the only stream is busy
        lead, follower = station.submit(b"a", deadline=1.0), station.submit(b"a", deadline=5.0)
        third = station.submit(b"a", deadline=6.0)
        station.clock.advance(2.0)
        assert isinstance(lead.error, DeadlineExceeded)
        assert follower.state != DONE
        station.executor.finish()
        station.tick()
        station.executor.finish()
        assert answer(follower) == answer(third) == b"a"
        assert station.executor.log == [[b"z"], [b"a"]]

    def test_a_follower_expires_at_its_own_deadline_while_the_run_goes_on(self):
        station = CachedStation()
        lead = station.submit(b"a")
        station.tick()
        follower = station.submit(b"a", deadline=1.0)
        station.clock.advance(1.0)
        assert isinstance(follower.error, DeadlineExceeded)
        station.executor.finish()
        assert answer(lead) == b"a"

    def test_a_run_that_would_miss_the_leads_deadline_goes_on_for_the_others(self):
        requests, inbox = refused_late()
        assert isinstance(requests[0].error, PredictedLate)
        assert [request.state for request in requests[1:]] == [WAITING, WAITING]
        assert [pending.deadline for pending in inbox.taken] == [1.0, 2.0]
        inbox.taken[1].finish([Tensor("y", "UINT8", (1,), b"a")])
        assert [answer(request) for request in requests[1:]] == [b"a", b"a"]

    def test_a_run_that_would_miss_the_models_objective_is_given_up_for_all(self):
        requests, inbox = refused_late(latency_objective_ms=10.0)
        assert all(isinstance(request.error, PredictedLate) for request in requests)
        assert len(inbox.taken) == 1

    def test_a_nearer_deadline_does_not_wait_behind_a_later_one(self):
        station = CachedStation()
        station.submit(b"z")
        station.tick()
        relaxed = station.submit(b"a")
        urgent = station.submit(b"a", deadline=station.clock.now() + 1.0)
        station.executor.finish()
        station.tick()
        station.finish_all()
        assert answer(relaxed) == answer(urgent) == b"a"
        assert sum(len(batch) for batch in station.executor.log) == 3

    def test_the_models_own_timeout_is_each_followers_own(self):
        station = CachedStation(bytes_spec(queue_policy=QueuePolicy(default_timeout_us=1_000_000)))
        station.submit(b"z", timeout_s=0.0)
        station.tick()
        lead = station.submit(b"a")
        station.clock.advance(0.6)
        follower = station.submit(b"a")
        station.clock.advance(0.6)
        assert isinstance(lead.error, DeadlineExceeded)
        assert follower.state != DONE
        station.clock.advance(0.6)
        assert isinstance(follower.error, DeadlineExceeded)

    def test_a_higher_priority_does_not_wait_behind_a_lower_one(self):
        station = CachedStation(bytes_spec(1, **LEVELS))
        station.submit(b"z")
        station.tick()
        low = station.submit(b"a", priority=3)
        station.submit(b"b", priority=2)
        high = station.submit(b"a", priority=1)
        station.executor.finish()
        station.tick()
        station.executor.finish()
        assert answer(high) == b"a"
        assert low.state != DONE

    def test_a_lower_priority_rides_along_with_a_higher_one(self):
        station = CachedStation(bytes_spec(**LEVELS))
        requests = [station.submit(b"a", priority=priority) for priority in (1, 0, 3)]
        station.finish_all()
        assert station.sizes == [1]
        assert all(answer(request) == b"a" for request in requests)

    def test_what_waits_where_timeouts_delay_is_not_followed(self):
        delaying = QueuePolicy(default_timeout_us=1_000_000, timeout_action="DELAY")
        station = CachedStation(bytes_spec(queue_policy=delaying))
        station.submit(b"a")
        station.submit(b"a")
        station.tick()
        station.submit(b"a")
        station.finish_all()
        assert station.sizes == [2]

    def test_a_callback_may_cancel_another_of_the_same_run(self):
        station = CachedStation()
        others = []
        lead = station.submit(b"a", on_done=lambda _: station.intake.cancel(others[0]))
        others.append(station.submit(b"a"))
        station.finish_all()
        assert answer(lead) == b"a"
        assert isinstance(others[0].error, Cancelled)
        assert station.statistics.success_count == 1

    def test_a_callback_may_ask_the_same_again(self):
        station = CachedStation()
        again = []
        station.submit(b"a", on_done=lambda _: again.append(station.submit(b"a")))
        station.finish_all()
        assert answer(again[0]) == b"a"


class TestBounds:
    def test_followers_are_bounded_by_the_servers_bytes_in_flight(self):
        station = CachedStation(max_bytes=2 + FOLLOWER_BYTES)
        station.submit(b"a")
        station.submit(b"a")
        with pytest.raises(QueueFull, match="max_inflight_bytes is 1026"):
            station.submit(b"a")
        assert station.statistics.refusals["max_inflight_bytes"] == 1
        station.finish_all()
        assert station.admission.byte_size == 0

    def test_followers_take_no_place_in_the_queue(self):
        station = CachedStation(max_queue_size=1)
        requests = [station.submit(b"a") for _ in range(5)]
        with pytest.raises(QueueFull, match="max_queue_size"):
            station.submit(b"b")
        station.finish_all()
        assert all(answer(request) == b"a" for request in requests)

    def test_a_refused_lead_leaves_nothing_behind(self):
        station = CachedStation(max_queue_size=1)
        station.submit(b"a")
        for _ in range(2):
            with pytest.raises(QueueFull):
                station.submit(b"b")
        assert station.intake.in_flight == 1
        assert station.statistics.failures["REJECTED"] == 2

    def test_a_more_urgent_one_that_is_refused_leaves_the_run_to_others(self):
        station = CachedStation(max_queue_size=1)
        station.submit(b"a")
        with pytest.raises(QueueFull):
            station.submit(b"a", deadline=1.0)
        follower = station.submit(b"a")
        station.finish_all()
        assert answer(follower) == b"a"


class TestUnload:
    def test_a_version_never_answers_from_anothers_entries(self):
        cache = ResponseCache(2**20)
        answered_once(CachedStation(cache=cache))
        station = CachedStation(cache=cache)
        answered_once(station)
        assert len(station.executor.log) == 1

    def test_it_drops_the_versions_entries_and_keeps_none_from_then_on(self):
        station = CachedStation()
        answered_once(station, b"b")
        running = station.submit(b"a")
        station.tick()
        station.unload()
        assert station.cache.size().count == 0
        station.executor.finish()
        assert answer(running) == b"a"
        assert station.cache.size().count == 0

    def test_what_waits_ends_and_new_requests_are_refused(self):
        station = CachedStation()
        requests = [station.submit(b"a") for _ in range(2)]
        station.unload()
        assert all(isinstance(request.error, ModelNotReady) for request in requests)
        with pytest.raises(ModelNotReady):
            station.submit(b"a")

    def test_followers_between_two_runs_end_too(self):
        station = CachedStation()
        station.submit(b"z")
        station.tick()
        station.submit(b"a", deadline=1.0, on_done=lambda _: station.unload())
        follower = station.submit(b"a", deadline=5.0)
        station.clock.advance(1.0)
        assert isinstance(follower.error, ModelNotReady)
        station.finish_all()
        assert station.executor.log == [[b"z"]]
        assert station.intake.in_flight == 0


def test_counts_are_of_requests_and_runs_of_the_batcher():
    station = CachedStation()
    for _ in range(3):
        station.submit(b"a")
    station.finish_all()
    station.submit(b"a")
    station.tick()
    counts = station.statistics
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (4, 1, 1)
    assert (station.hits, station.misses) == (3, 1)


SUBMIT = st.tuples(
    st.just("submit"),
    st.sampled_from([b"a", b"b", b"cd", bytes([POISON])]),
    st.integers(1, 2),  # rows
    st.sampled_from([NEVER, NEVER, 0.0, 0.5, 1.0, 2.5]),  # seconds to the deadline
    st.sampled_from([0.0, 0.0, 0.75]),  # its own timeout
    st.integers(0, 3),  # priority
)
ACTIONS = st.lists(
    st.one_of(
        SUBMIT,
        SUBMIT,
        st.tuples(st.just("cancel"), st.integers(0, 99)),
        st.tuples(st.just("advance"), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        st.tuples(st.just("finish")),
        st.tuples(st.just("finish")),
        st.tuples(st.just("fail")),
        st.tuples(st.just("unload")),
    ),
    max_size=50,
)
SPECS = st.builds(
    bytes_spec,
    max_batch_size=st.just(4),
    max_queue_delay_us=st.sampled_from([None, 1_000_000]),
    priority_levels=st.sampled_from([0, 3]),
    latency_objective_ms=st.sampled_from([0.0, 0.0, 1500.0]),
    queue_policy=st.sampled_from(
        [
            QueuePolicy(),
            QueuePolicy(default_timeout_us=600_000),
            QueuePolicy(default_timeout_us=600_000, timeout_action="DELAY"),
        ]
    ),
)
BOUNDS = st.fixed_dictionaries(
    {
        "max_queue_size": st.sampled_from([2, 100]),
        "max_bytes": st.sampled_from([2 * FOLLOWER_BYTES, 2**30]),
        "streams": st.integers(1, 2),
        "inline": st.booleans(),
    }
)


class Ledger:
    """Drives a cached station, and keeps what becomes of each request."""

    def __init__(self, station: CachedStation) -> None:
        self.station = station
        self.asked: list[tuple[Pending, bytes]] = []
        self.outcomes: dict[Pending, int] = {}
        self.refused = 0
        self.is_unloaded = False

    def act(self, action) -> None:
        getattr(self, action[0])(*action[1:])
        station = self.station
        assert station.cache.size().byte_size <= station.cache.size().max_bytes
        assert station.admission.byte_size <= station.admission.max_bytes

    def submit(self, data, rows, after, timeout_s, priority) -> None:
        def on_done(request) -> None:
            assert not self.is_submitting
            self.outcomes[request] = self.outcomes.get(request, 0) + 1

        self.is_submitting = True
        try:
            request = self.station.submit(
                data, rows, self.station.clock.now() + after, on_done, timeout_s, priority
            )
        except (QueueFull, DeadlineExceeded, ModelNotReady) as error:
            self.refused += not isinstance(error, ModelNotReady)
        else:
            self.asked.append((request, data * rows))
        finally:
            self.is_submitting = False

    def cancel(self, number) -> None:
        if self.asked:
            self.station.intake.cancel(self.asked[number % len(self.asked)][0])

    def advance(self, seconds) -> None:
        self.station.clock.advance(seconds)

    def finish(self) -> None:
        if self.station.executor.running:
            self.station.executor.finish()

    def fail(self) -> None:
        if self.station.executor.running:
            self.station.executor.finish(ModelFailed("failed"))

    def unload(self) -> None:
        self.is_unloaded = True
        self.station.unload()


@settings(max_examples=300)
@given(SPECS, BOUNDS, ACTIONS)
def test_each_request_has_one_outcome_and_no_answer_differs_from_the_uncached(spec, bounds, actions):
    station = CachedStation(spec, ResponseCache(12_000), behaviour=picky, **bounds)
    ledger = Ledger(station)
    for action in actions:
        ledger.act(action)
    station.finish_all()
    for request, data in ledger.asked:
        assert ledger.outcomes.get(request) == 1
        if request.error is None:
            assert answer(request) == data
            assert POISON not in data
    assert station.intake.in_flight == station.batcher.in_flight == 0
    assert station.admission.byte_size == 0
    assert not station.intake._runs
    counts = station.statistics
    successes = sum(request.error is None for request, _ in ledger.asked)
    assert counts.success_count == successes == station.hits + station.misses
    assert counts.failure_count == len(ledger.asked) - successes + ledger.refused
    if ledger.is_unloaded:
        assert station.cache.size().byte_size == 0


def test_with_monitoring_off_nothing_is_distributed():
    station = CachedStation(has_histograms=False)
    answered_once(station)
    station.submit(b"a")
    station.tick()
    assert station.hits == 1
    assert station.statistics.success_count == 2
    assert station.intake._counters.histograms is None
