"""What is noted of a batch: why it left, how long it was held, and who was late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import POISON, Station, bytes_spec, picky

from tensorferry.batching.record import DEADLINE, FULL, HOLD, IDLE, PREFERRED, RETRY

BAD = bytes([POISON])


def reasons(station: Station) -> dict[str, int]:
    return {reason: count for reason, count in station.batcher.statistics().departures.items() if count}


def test_with_an_idle_stream_a_batch_leaves_because_it_is_idle():
    station = Station()
    station.submit()
    station.tick()
    station.finish_all()
    assert reasons(station) == {IDLE: 1}


def test_a_batch_is_full_when_somebody_is_left_behind():
    station = Station(bytes_spec(max_batch_size=4))
    for _ in range(6):
        station.submit()
    station.finish_all()
    assert station.sizes == [4, 2]
    assert reasons(station) == {FULL: 1, IDLE: 1}


def test_a_batch_is_full_that_has_as_many_rows_as_it_may():
    station = Station(bytes_spec(max_batch_size=4))
    for _ in range(4):
        station.submit()
    station.finish_all()
    assert reasons(station) == {FULL: 1}


def test_a_model_of_one_row_is_full_when_somebody_is_left_behind():
    station = Station(bytes_spec(max_batch_size=1))
    station.submit()
    station.finish_all()
    assert reasons(station) == {IDLE: 1}
    station.submit()
    station.submit()
    station.finish_all()
    assert reasons(station) == {IDLE: 2, FULL: 1}


def test_a_held_batch_leaves_when_the_delay_is_over_or_a_limit_ends_it():
    station = Station(bytes_spec(max_queue_delay_us=1_000_000))
    station.submit()
    station.finish_all()
    station.submit(deadline=station.clock.now() + 0.5)
    station.finish_all()
    assert reasons(station) == {HOLD: 1, DEADLINE: 1}


def test_a_preferred_size_is_named():
    station = Station(bytes_spec(max_queue_delay_us=1_000_000, preferred_batch_sizes=(2,)))
    station.submit()
    station.submit()
    station.finish_all()
    assert reasons(station) == {PREFERRED: 1}


def test_parts_of_a_failed_batch_are_retries():
    station = Station(behaviour=picky)
    station.submit_all([b"a", BAD])
    station.finish_all()
    assert reasons(station) == {RETRY: 1}  # the other part failed again, and what fails isn't counted


def test_waiting_beside_an_idle_stream_is_hold_and_waiting_for_a_busy_one_is_not():
    station = Station(bytes_spec(max_queue_delay_us=1_000_000))
    held = station.submit()
    station.clock.advance(1.0)  # leaves
    behind = station.submit()
    station.clock.advance(3.0)
    station.executor.finish()  # now a stream is idle, and the delay has been over for long
    station.finish_all()
    assert held.record is not None
    assert behind.record is not None
    assert held.record.hold_s == pytest.approx(1.0)
    assert behind.record.hold_s == pytest.approx(0.0)
    histograms = station.batcher.statistics().histograms
    assert histograms is not None
    assert histograms.hold.sum_s == pytest.approx(1.0)
    assert histograms.queue.sum_s == pytest.approx(4.0)


def test_requests_of_a_batch_share_its_record():
    station = Station()
    requests = station.submit_all([b"a", b"b", b"c"])
    station.tick()
    station.clock.advance(0.25)
    station.executor.finish()
    (record,) = {request.record for request in requests}
    assert record is not None
    assert (record.rows, record.requests, record.reason) == (3, 3, IDLE)
    assert record.ended_at - record.started_at == pytest.approx(0.25)


def test_a_request_that_fails_has_no_record():
    station = Station(behaviour=picky)
    request = station.submit(BAD)
    station.finish_all()
    assert request.error is not None
    assert request.record is None


def test_answers_after_their_deadline_are_late():
    station = Station()
    station.submit(deadline=1.0)
    station.submit(deadline=3.0)
    station.submit()
    station.tick()
    station.clock.advance(2.0)
    station.executor.finish()
    assert station.batcher.statistics().late_count == 1


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0.0, 0.01)), min_size=1, max_size=30))
def test_distributions_count_what_the_counters_count(arrivals):
    station = Station(inline=True)
    for rows, pause_s in arrivals:
        station.submit(rows=rows)
        station.clock.advance(pause_s)
    station.finish_all()
    counts = station.batcher.statistics()
    histograms = counts.histograms
    assert histograms is not None
    assert histograms.queue.count == histograms.response.count == counts.success_count == len(arrivals)
    assert histograms.hold.count == histograms.run.count == counts.execution_count
    assert sum(counts.departures.values()) == counts.execution_count
    assert histograms.queue.sum_s * 1e9 == pytest.approx(counts.queue_ns, abs=counts.execution_count)
    parts_ns = counts.queue_ns + counts.compute_input_ns + counts.compute_infer_ns + counts.compute_output_ns
    assert counts.success_ns == parts_ns
