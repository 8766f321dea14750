"""The gate: bounds on what waits and on bytes, and what a refusal leaves behind."""

from __future__ import annotations

import pytest
from tests.unit.batching.timed import TimedStation, refusal
from tests.unit.support import Station, answer, bytes_spec

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.statistics import REFUSAL_REASONS
from tensorferry.errors import DeadlineExceeded, PredictedLate, QueueFull
from tensorferry.model import QueuePolicy
from tensorferry.tensors import Tensor


def busy(station: Station) -> Station:
    station.submit(b"x")
    station.tick()
    return station


def refuse_for(reason: str) -> tuple[Station, Exception]:
    """Have one request refused for each reason there is."""
    if reason == "max_queue_size":
        station = busy(Station(max_queue_size=1))
        station.submit()
        return station, refusal(station)
    if reason == "max_inflight_bytes":
        station = busy(Station(max_bytes=3))
        return station, refusal(station, b"abc")
    if reason == "latency_objective":
        station = busy(TimedStation(bytes_spec(latency_objective_ms=100.0), lambda _: 0.08))
        return station, refusal(station)
    station = busy(TimedStation(run_s=lambda _: 0.08))
    return station, refusal(station, deadline=0.1)


@pytest.mark.parametrize("reason", REFUSAL_REASONS)
def test_refusal_is_counted_by_its_reason_and_as_a_failure(reason):
    station, _ = refuse_for(reason)
    counts = station.batcher.statistics()
    assert counts.refusals == {**dict.fromkeys(REFUSAL_REASONS, 0), reason: 1}
    assert (counts.failures["REJECTED"], counts.failure_count, counts.failure_ns) == (1, 1, 0)


@pytest.mark.parametrize("reason", REFUSAL_REASONS)
def test_refused_request_leaves_nothing_behind_and_harms_nobody(reason):
    station, _ = refuse_for(reason)
    waiting = station.batcher.in_flight
    station.finish_all() if reason.startswith("max") else station.clock.advance(10.0)
    assert len(station.done) == waiting
    assert all(request.error is None for request in station.done)
    assert (station.batcher.in_flight, station.admission.byte_size) == (0, 0)
    request = station.submit(b"n")
    station.finish_all() if reason.startswith("max") else station.clock.advance(10.0)
    assert answer(request) == b"n"


@pytest.mark.parametrize("reason", REFUSAL_REASONS)
def test_refusal_names_the_model_the_bound_and_what_to_do(reason):
    _, error = refuse_for(reason)
    expected = {
        "max_queue_size": (QueueFull, "max_queue_size is 1"),
        "max_inflight_bytes": (QueueFull, "max_inflight_bytes is 3"),
        "latency_objective": (PredictedLate, "the latency objective of 100 ms leaves it 88.0 ms"),
        "deadline": (PredictedLate, "its deadline is 100.0 ms after that"),
    }
    kind, words = expected[reason]
    assert type(error) is kind
    assert str(error).startswith("model 'm': ")
    assert words in str(error)
    assert "retry" in str(error)


@pytest.mark.parametrize("reason", ["latency_objective", "deadline"])
def test_prediction_is_in_the_error(reason):
    _, error = refuse_for(reason)
    assert "expected up to 160.0 ms after the request came" in str(error)


def test_nearer_deadline_is_the_reason_where_both_would_be_missed():
    station = busy(TimedStation(bytes_spec(latency_objective_ms=100.0), lambda _: 0.08))
    assert "its deadline" in str(refusal(station, deadline=0.09))
    assert station.refusals == {"deadline": 1}


def test_refused_request_can_be_cancelled_without_effect():
    station = busy(Station(max_queue_size=1))
    station.submit()
    tensor = Tensor("x", "UINT8", (1, 1), b"a")
    request = Pending(station.spec.bind([tensor]), station.done.append)
    with pytest.raises(QueueFull):
        station.batcher.submit(request)
    assert request.state == DONE
    station.batcher.cancel(request)
    assert station.batcher.in_flight == 2
    assert station.batcher.statistics().failures["CANCELED"] == 0
    assert station.done == []


def test_models_own_queue_size_goes_before_the_servers():
    station = busy(Station(bytes_spec(queue_policy=QueuePolicy(max_queue_size=2)), max_queue_size=100))
    station.submit()
    station.submit()
    assert "max_queue_size is 2" in str(refusal(station))


def test_bounds_hold_even_where_a_stream_is_idle():
    station = Station(max_queue_size=2)
    station.submit()
    station.submit()
    assert isinstance(refusal(station), QueueFull)


def test_bound_is_looked_at_before_time():
    spec = bytes_spec(max_batch_size=1, latency_objective_ms=100.0)
    for max_queue_size, expected in ((1, QueueFull), (2, PredictedLate)):
        station = busy(TimedStation(spec, lambda _: 0.04, max_queue_size=max_queue_size))
        station.submit()
        assert type(refusal(station)) is expected


def test_request_that_comes_too_late_counts_as_expired_and_not_as_rejected():
    station = Station()
    station.clock.advance(1.0)
    assert type(refusal(station, deadline=1.0)) is DeadlineExceeded
    counts = station.batcher.statistics()
    assert (counts.failures["EXPIRED"], counts.failures["REJECTED"]) == (1, 0)
    assert counts.refusals["deadline"] == 1


def test_far_deadline_is_let_in_behind_a_long_queue():
    station = busy(TimedStation(run_s=lambda _: 1.0))
    for _ in range(80):
        station.submit(deadline=NEVER)
    request = station.submit(b"f", deadline=1000.0)
    station.clock.advance(100.0)
    assert answer(request) == b"f"
