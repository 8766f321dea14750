"""What an arm counts, and that it adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry import errors
from tensorferry.rollout.counts import ArmCounts, ArmRecorder, is_fault, is_late, merged
from tensorferry.rollout.histograms import LATENCY_EDGES_S, SCORE_EDGES, quantile


def counted(*outcomes) -> ArmCounts:
    """``outcomes`` are (latency, scores), or the name of a method."""
    recorder = ArmRecorder()
    for outcome in outcomes:
        if isinstance(outcome, str):
            getattr(recorder, outcome)()
        else:
            recorder.record(*outcome)
    return recorder.snapshot()


def test_an_answer_counts_as_a_request_with_its_latency_and_scores():
    counts = counted((0.002, [0.25]), (0.004, [0.75, 0.5]))
    assert (counts.requests, counts.failures, counts.late) == (2, 0, 0)
    assert (counts.score_count, counts.score_sum) == (3, 1.5)
    assert counts.scored == 2
    assert quantile(counts.latencies, LATENCY_EDGES_S, 0.5) == pytest.approx(0.002, rel=0.05)
    assert quantile(counts.scores, SCORE_EDGES, 1.0) == pytest.approx(0.75, rel=0.05)


def test_an_error_counts_as_a_request_without_a_latency():
    counts = counted("record_error", (0.001, [0.5]))
    assert (counts.requests, counts.errors, counts.failures) == (2, 1, 1)
    assert counts.latencies.sum() == 1


def test_a_late_request_is_slower_than_any_that_answered():
    counts = counted("record_late", (500.0, [0.5]))
    assert (counts.requests, counts.late, counts.failures) == (2, 1, 0)
    assert counts.latencies[-1] == 1
    assert quantile(counts.latencies, LATENCY_EDGES_S, 0.99) == float("inf")
    assert quantile(counts.latencies, LATENCY_EDGES_S, 0.5) == LATENCY_EDGES_S[-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_an_answer_that_is_not_finite_counts_once_and_adds_no_scores(bad, rows):
    scores = [0.5] * (rows - 1) + [bad]
    counts = counted((0.001, scores), (0.001, np.array(scores)))
    assert (counts.requests, counts.not_finite, counts.score_count, counts.scores.sum()) == (2, 2, 0, 0)
    assert counts.latencies.sum() == 2


def test_infinities_that_cancel_out_are_not_finite():
    assert counted((0.001, [float("inf"), -float("inf")])).not_finite == 1


def test_finite_scores_whose_sum_is_not_are_finite():
    assert counted((0.001, [1e308, 1e308])).not_finite == 0


def test_record_says_whether_all_scores_were_finite():
    recorder = ArmRecorder()
    assert recorder.record(0.1, [0.5])
    assert recorder.record(0.1, [])
    assert not recorder.record(0.1, [float("nan")])
    assert not recorder.record(0.1, [float("nan")] * 20)


@given(st.lists(st.floats(-1e5, 1e5, width=32), max_size=40))
def test_many_rows_at_once_count_as_the_same_rows_one_by_one(scores):
    together, apart = ArmRecorder(), ArmRecorder()
    together.record(0.001, memoryview(np.array(scores, dtype=np.float32)).cast("B").cast("f"))
    for score in scores:
        apart.record(0.001, [score])
    assert np.array_equal(together.snapshot().scores, apart.snapshot().scores)
    assert together.snapshot().score_sum == pytest.approx(apart.snapshot().score_sum, rel=1e-9, abs=1e-6)
    assert together.snapshot().scored == min(1, len(scores))


def test_a_snapshot_stays_as_it_is():
    recorder = ArmRecorder()
    recorder.record(0.001, [0.5])
    before = recorder.snapshot()
    recorder.record(0.001, [0.5])
    assert (before.requests, before.scores.sum(), before.latencies.sum()) == (1, 1, 1)


def test_counts_of_processes_add_up_and_those_of_moments_subtract():
    first = counted((0.002, [0.25]), "record_error", "record_late", (0.1, [float("nan")]))
    second = counted((0.004, [0.5, 0.75]), "record_error")
    both = merged(first, second)
    assert (both.requests, both.errors, both.not_finite, both.late) == (6, 2, 1, 1)
    assert both.minus(first).to_json() == second.to_json()
    assert both.minus(both).to_json() == ArmCounts().to_json()


def test_counts_travel_as_json():
    counts = counted((0.002, [0.25, -3.0]), "record_error", "record_late")
    plain = json.loads(json.dumps(counts.to_json()))
    assert ArmCounts.from_json(plain).to_json() == counts.to_json()
    assert np.array_equal(ArmCounts.from_json(plain).scores, counts.scores)


def test_the_score_of_a_request_of_one_row_is_remembered_under_its_key():
    recorder = ArmRecorder()
    recorder.record(0.1, [0.25], b"card")
    recorder.record(0.1, [0.5, 0.75], b"rows")
    recorder.record(0.1, [float("nan")], b"bad")
    recorder.record(0.1, [0.5])
    labels = [(b"card", 1), (b"rows", 1), (b"bad", 1), (b"", 1)]
    assert recorder.memory.match(labels) == [(0.25, 1)]


@pytest.mark.parametrize(
    ("error", "fault", "late"),
    [
        (errors.ModelFailed("x"), True, False),
        (RuntimeError("x"), True, False),
        (errors.ModelLoadError("x"), True, False),
        (errors.InvalidRequest("x"), False, False),
        (errors.Cancelled("x"), False, False),
        (errors.Draining("x"), False, False),
        (errors.ModelNotReady("x"), False, False),
        (errors.QueueFull("x"), False, True),
        (errors.PredictedLate("x"), False, True),
        (errors.DeadlineExceeded("x"), False, True),
    ],
)
def test_only_the_models_and_the_servers_errors_are_faults(error, fault, late):
    assert (is_fault(error), is_late(error)) == (fault, late)
