"""What callers get is counted, and is what they would have got."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.support import Station, model_spec

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.splitting import Splitter
from tensorferry.engine.cached_intake import CachedIntake
from tensorferry.engine.observed_intake import PROGRESS_REQUESTS, ObservedIntake
from tensorferry.engine.response_cache import ResponseCache
from tensorferry.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    QueueFull,
)
from tensorferry.model import BatchingSpec
from tensorferry.rollout.counts import ArmRecorder
from tensorferry.rollout.histograms import LATENCY_EDGES_S, quantile
from tensorferry.tensors import array_of, tensor_of


class Observed(Station):
    """A station that echoes floats, observed. ``wrap`` puts an intake between the two."""

    def __init__(self, spec=None, wrap=None, **more) -> None:
        super().__init__(spec or model_spec(), **more)
        self.recorder = ArmRecorder()
        self.told: list[int] = []
        inner = wrap(self) if wrap else self.batcher
        self.intake = ObservedIntake(
            inner, self.clock, self.recorder, 0, lambda: self.told.append(self.recorder.requests)
        )

    def ask(self, *scores: float, key=b"", deadline=NEVER, on_done=None) -> Pending:
        """Submit a request whose answer is ``scores``, one a row."""
        tensor = tensor_of("x", np.array(scores, np.float32).reshape(-1, 1))
        request = Pending(self.spec.bind([tensor]), on_done or self.done.append, deadline)
        request.split_key = key
        self.intake.submit(request)
        return request

    @property
    def counts(self):
        return self.recorder.snapshot()


def scores_in(request: Pending) -> list[float]:
    assert request.error is None, request.error
    return [float(each) for each in array_of(request.outputs[0]).ravel()]


def test_an_answer_is_counted_with_its_own_scores_and_given_to_the_caller():
    station = Observed()
    first, second = station.ask(0.25), station.ask(0.5, 0.75)
    station.clock.advance(0.003)
    station.finish_all()
    assert (scores_in(first), scores_in(second)) == ([0.25], [0.5, 0.75])
    assert station.done == [first, second]
    assert (station.counts.requests, station.counts.score_count, station.counts.score_sum) == (2, 3, 1.5)


def test_the_latency_is_from_submission_to_outcome():
    station = Observed()
    station.clock.advance(5.0)
    station.ask(0.5)
    station.clock.advance(0.040)
    station.executor.finish()
    assert quantile(station.counts.latencies, LATENCY_EDGES_S, 1.0) == pytest.approx(0.040, rel=0.05)


def test_a_request_is_counted_when_its_caller_hears_of_it():
    station = Observed()
    counted = []
    station.ask(0.5, on_done=lambda request: counted.append(station.counts.requests))
    station.finish_all()
    assert counted == [1]


def test_the_key_finds_the_score():
    station = Observed()
    station.ask(0.25, key=b"card")
    station.finish_all()
    assert station.recorder.memory.match([(b"card", 1)]) == [(0.25, 1)]


@pytest.mark.parametrize(
    ("error", "requests", "errors", "late"),
    [
        (ModelFailed("raised"), 1, 1, 0),
        (DeadlineExceeded("late"), 1, 0, 1),
        (QueueFull("full"), 1, 0, 1),
        (ModelNotReady("unloading"), 0, 0, 0),
        (Cancelled("cancelled"), 0, 0, 0),
        (InvalidRequest("wrong"), 0, 0, 0),
    ],
)
@pytest.mark.parametrize("at_submit", [True, False])
def test_errors_are_counted_by_whose_fault_they_are_and_passed_on(error, requests, errors, late, at_submit):
    class Inner:
        def submit(self, request):
            if at_submit:
                raise error
            request.fail(error)

        def cancel(self, request):
            raise AssertionError

    station = Observed(wrap=lambda station: Inner())
    if at_submit:
        with pytest.raises(type(error)) as raised:
            station.ask(0.5)
        assert raised.value is error
        assert station.done == []
    else:
        assert station.ask(0.5).error is error
        assert len(station.done) == 1
    assert (station.counts.requests, station.counts.errors, station.counts.late) == (requests, errors, late)


def test_a_refused_request_is_the_callers_again():
    station = Observed(max_queue_size=1)
    station.ask(0.5)
    heard = []
    tensor = tensor_of("x", np.array([[0.5]], np.float32))
    refused = Pending(station.spec.bind([tensor]), heard.append)
    with pytest.raises(QueueFull):
        station.intake.submit(refused)
    assert refused.on_done == heard.append
    station.finish_all()
    assert heard == []
    assert (station.counts.requests, station.counts.late) == (2, 1)


def test_an_answer_that_is_not_finite_is_told_at_once():
    station = Observed()
    request = station.ask(float("nan"))
    station.finish_all()
    assert np.isnan(scores_in(request)[0])
    assert (station.counts.not_finite, station.told) == (1, [1])


def test_cancelling_reaches_the_batcher_and_counts_for_nothing():
    station = Observed()
    request = station.ask(0.5)
    station.intake.cancel(request)
    assert isinstance(request.error, Cancelled)
    assert station.batcher.in_flight == 0
    assert station.counts.requests == 0


def test_a_caller_that_gives_up_when_its_time_is_over_counts_as_late():
    station = Observed()
    late, early = station.ask(0.5, deadline=1.0), station.ask(0.5, deadline=1.0)
    station.clock.advance(0.5)
    station.intake.cancel(early)
    station.clock.advance(0.45)
    station.intake.cancel(late)
    assert (station.counts.requests, station.counts.late) == (1, 1)


def test_a_request_whose_deadline_comes_in_the_queue_counts_as_late():
    station = Observed(streams=1)
    station.ask(0.5)
    station.tick()
    station.ask(0.5, deadline=0.1)
    station.finish_all()
    assert (station.counts.requests, station.counts.late) == (2, 1)


class TestProgress:
    def test_it_is_told_after_every_ten_requests_and_not_before(self):
        station = Observed()
        for number in range(1, PROGRESS_REQUESTS * 2 + 1):
            station.ask(0.5)
            station.finish_all()
            assert len(station.told) == number // PROGRESS_REQUESTS

    def test_it_is_told_after_every_error_at_the_end_of_the_tick(self):
        station = Observed()
        station.ask(0.5)
        station.tick()
        station.clock.advance(0.01)
        station.executor.finish(ModelFailed("raised"))
        assert station.done[0].state == DONE
        assert station.told == []
        station.tick()
        assert station.told == [1]

    def test_the_errors_of_one_tick_are_told_once(self):
        station = Observed()
        for _ in range(4):
            station.ask(0.5)
        station.tick()
        batch = station.executor.running[0]
        for request in batch.requests:
            request.fail(ModelFailed("raised"))
        station.tick()
        assert station.told == [4]

    def test_after_many_requests_it_is_told_after_one_in_a_hundred(self):
        station = Observed()
        for _ in range(3000):
            station.ask(0.5)
            station.finish_all()
        assert 100 + 80 < len(station.told) < 100 + 120

    def test_what_it_does_may_change_where_requests_go(self):
        station = Observed()
        unobserved = []
        station.intake = ObservedIntake(
            station.batcher, station.clock, station.recorder, 0, lambda: unobserved.append(station.batcher)
        )
        station.ask(float("nan"), on_done=lambda request: station.ask(0.5))
        station.finish_all()
        assert unobserved == [station.batcher]
        assert station.counts.requests == 2

    def test_nobody_needs_to_listen(self):
        station = Observed()
        station.intake = ObservedIntake(station.batcher, station.clock, station.recorder, 0)
        station.ask(float("nan"))
        station.finish_all()
        assert station.counts.not_finite == 1


def test_a_split_request_is_one_request_with_all_its_rows():
    spec = model_spec(max_batch_size=2, batching=BatchingSpec(split_oversized=True))
    station = Observed(spec, lambda station: Splitter(station.batcher, station.spec))
    request = station.ask(0.1, 0.2, 0.3, 0.4, 0.5)
    station.finish_all()
    assert scores_in(request) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (station.counts.requests, station.counts.score_count, station.counts.scored) == (1, 5, 1)


def test_answers_from_the_cache_are_counted_under_their_own_keys():
    cache = ResponseCache(2**20)
    station = Observed(wrap=lambda own: CachedIntake(own.spec, cache, own.batcher, own.clock, own.admission))
    station.ask(0.5, key=b"a")
    station.finish_all()
    station.ask(0.5, key=b"b")
    station.finish_all()
    assert len(station.executor.started) == 1
    assert station.counts.requests == 2
    assert station.recorder.memory.match([(b"a", 0), (b"b", 1)]) == [(0.5, 0), (0.5, 1)]
