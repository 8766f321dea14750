"""Counts as people read them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tensorferry.rollout.counts import ArmCounts, ArmRecorder
from tensorferry.rollout.report import arm_report, score_bounds, shadow_report
from tensorferry.rollout.shadow_counts import ShadowCounts, ShadowRecorder


def scored(*scores) -> ArmCounts:
    recorder = ArmRecorder()
    for score in scores:
        recorder.record(0.002, [score])
    return recorder.snapshot()


def test_an_arms_report_has_its_figures():
    recorder = ArmRecorder()
    for number in range(100):
        recorder.record(0.001 if number < 95 else 0.050, [0.25 if number % 2 else 0.75])
    recorder.record_error()
    recorder.record(0.001, [float("nan")])
    counts = recorder.snapshot()
    report = arm_report(counts, score_bounds([counts]), [(0.2, 0), (0.9, 1), (0.8, 1)])
    assert (report.requests, report.errors, report.not_finite, report.late) == (102, 1, 1, 0)
    assert report.latency_p50_ms == pytest.approx(1.0, rel=0.05)
    assert report.latency_p99_ms == pytest.approx(50.0, rel=0.05)
    assert report.score_mean == 0.5
    assert report.labelled == 3
    assert report.auc.value == 1.0


def test_an_arm_without_requests_has_a_report():
    report = arm_report(ArmCounts(), score_bounds([ArmCounts()]))
    assert (report.requests, report.latency_p99_ms, report.score_mean, report.auc) == (0, 0.0, 0.0, None)
    assert sum(report.scores.counts) == 0


def test_probabilities_are_shown_finely_at_both_ends():
    counts = scored(0.0, 0.0005, 0.3, 0.9993, 1.0)
    bars = arm_report(counts, score_bounds([counts])).scores
    assert len(bars.counts) == len(bars.bounds) + 1 == 20
    assert (bars.counts[0], bars.counts[-1], sum(bars.counts)) == (2, 2, 5)
    assert (bars.bounds[0], bars.bounds[-1]) == (0.001, 0.995)


@pytest.mark.parametrize(
    "scores", [[-4.0, 0.5, 3.0], [100.0, 90000.0], [-1e-9, 0.5], [1.5], [-3.0], [5e5, -5e5]]
)
def test_other_scores_are_shown_in_equal_steps_over_their_range(scores):
    counts = scored(*scores)
    bounds = score_bounds([counts])
    assert 1 <= len(bounds) <= 25
    assert all(later > earlier for earlier, later in pairwise(bounds))
    bars = arm_report(counts, bounds).scores
    assert sum(bars.counts) == len(scores)


def test_all_arms_share_bounds_that_suit_them_together():
    low, high = scored(-4.0), scored(4.0)
    bounds = score_bounds([low, high])
    first, second = arm_report(low, bounds).scores, arm_report(high, bounds).scores
    assert first.bounds == second.bounds
    assert first.counts.index(1) < second.counts.index(1)


def test_a_shadows_report_has_its_differences():
    recorder = ShadowRecorder()
    recorder.compare([0.5, 0.5], [0.5, 0.8])
    recorder.dropped += 2
    report = shadow_report(recorder.snapshot())
    assert (report.compared, report.dropped, report.errors, report.incompatible) == (1, 2, 0, 0)
    assert report.differences.counts[0] == 1
    assert report.differences.counts[report.differences.bounds.index(0.5)] == 1
    assert sum(report.differences.counts) == 2


def test_scores_that_cant_be_compared_are_the_shadows_error():
    recorder = ShadowRecorder()
    recorder.compare([0.5], [])
    recorder.compare([0.5], [float("nan")])
    recorder.compare([0.5], [float("inf")])
    assert (recorder.errors, recorder.compared) == (3, 0)


def test_a_shadows_counts_add_up_subtract_and_travel():
    first, second = ShadowRecorder(), ShadowRecorder()
    first.compare([0.5], [0.6])
    second.compare([0.5], [0.9])
    second.incompatible += 1
    both = first.snapshot().plus(second.snapshot())
    assert (both.compared, both.incompatible, both.differences.sum()) == (2, 1, 2)
    assert both.minus(first.snapshot()).to_json() == second.snapshot().to_json()
    assert ShadowCounts.from_json(both.to_json()).to_json() == both.to_json()
