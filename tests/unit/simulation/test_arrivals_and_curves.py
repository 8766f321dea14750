"""Schedules and run times: what simulations are made of."""

from __future__ import annotations

import numpy as np
import pytest

from tensorferry.errors import SettingsError
from tensorferry.simulation.arrivals import mmpp, poisson, read_timestamps, replay, steps
from tensorferry.simulation.curves import RunCurve, affine, drifting, noisy, parse_curve, pipelined


def dispersion(times: np.ndarray, seconds: float) -> float:
    """Variance by mean of the counts in a thousand equal parts: 1 for a Poisson process."""
    counts, _ = np.histogram(times, bins=1000, range=(0, seconds))
    return float(counts.var() / counts.mean())


def test_a_poisson_process_has_its_rate_and_its_spread():
    times = poisson(10_000, 10.0, seed=1)
    assert len(times) == pytest.approx(100_000, rel=0.02)
    assert dispersion(times, 10.0) == pytest.approx(1.0, abs=0.15)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 10.0


def test_bursts_keep_the_mean_rate_and_spread_far_more():
    times = mmpp((5_000, 50_000), (0.09, 0.01), 50.0, seed=1)
    assert len(times) / 50.0 == pytest.approx(9_500, rel=0.1)
    assert dispersion(times, 50.0) > 20
    assert (np.diff(times) >= 0).all()


def test_a_step_changes_the_rate_at_its_instants():
    times = steps([(1_000, 1.0), (0, 1.0), (4_000, 1.0)], seed=1)
    counts, _ = np.histogram(times, bins=3, range=(0, 3))
    assert counts[0] == pytest.approx(1_000, rel=0.1)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(4_000, rel=0.1)


def test_a_replay_starts_at_nought_and_may_change_its_rate():
    assert replay([12.0, 10.0, 11.0]).tolist() == [0.0, 1.0, 2.0]
    assert replay([10.0, 11.0, 14.0], rate=20).tolist() == pytest.approx([0.0, 0.025, 0.1])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: poisson(-1, 1.0), "rate"),
        (lambda: poisson(float("nan"), 1.0), "rate"),
        (lambda: steps([(1, -1.0)]), "lasts"),
        (lambda: mmpp((1, 2), (0.0, 1.0), 1.0), "more than 0"),
        (lambda: replay([1.0, float("inf")]), "finite"),
        (lambda: replay([1.0, 1.0], rate=5), "the same"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make, what):
    with pytest.raises(ValueError, match=what):
        make()


def test_timestamps_are_read_line_by_line(tmp_path):
    path = tmp_path / "times.txt"
    path.write_text("1.5\n\n2.5\n")
    assert read_timestamps(path).tolist() == [1.5, 2.5]
    path.write_text("1.5\nnoon\n")
    with pytest.raises(ValueError, match=r"times.txt:2: 'noon'"):
        read_timestamps(path)


def test_a_curve_is_straight_between_its_points_and_beyond_them():
    curve = parse_curve("1:0.1, 11:0.2, 21:0.4")
    assert curve(1) == pytest.approx(1e-4)
    assert curve(6) == pytest.approx(1.5e-4)
    assert curve(16) == pytest.approx(3e-4)
    assert curve(31) == pytest.approx(6e-4)


def test_below_its_first_point_a_curve_never_reaches_nought():
    curve = RunCurve((10, 20), (1e-3, 3e-3))
    assert curve(5) == pytest.approx(0.5e-3)
    assert RunCurve((10,), (1e-3,))(5) == pytest.approx(0.5e-3)


def test_capacity_is_that_of_the_best_batch():
    assert affine(60e-6, 1.5e-6).capacity(64) == pytest.approx(64 / 156e-6)
    assert affine(60e-6, 1.5e-6).capacity(64, streams=2) == pytest.approx(128 / 156e-6)
    # Beyond 8 rows it gets worse.
    assert parse_curve("1:1,8:2,16:8").capacity(16) == pytest.approx(8 / 2e-3)


def test_curves_add_up_at_any_size():
    total = parse_curve("1:1,8:2").plus(parse_curve("4:1"), parse_curve("2:1,4:1,16:4"))
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 32):
        parts = (parse_curve(text)(rows) for text in ("1:1,8:2", "4:1", "2:1,4:1,16:4"))
        assert total(rows) == pytest.approx(sum(parts))


def test_a_busy_stream_is_as_quick_as_its_slowest_stage_or_as_its_slots_allow():
    run, copy = affine(2e-3, 0.0), affine(1e-3, 0.0)
    for slots, seconds in ((1, 4e-3), (2, 2e-3), (3, 2e-3)):
        assert pipelined([run, copy, copy], slots, 8)(5) == pytest.approx(seconds)
    assert pipelined([run, run, copy], 2, 8)(5) == pytest.approx(2.5e-3)


def test_noise_keeps_the_median_and_adds_hiccups():
    curve = affine(0.0, 1e-3)
    run_s = noisy(curve, 0.2, hiccup_share=0.1, hiccup_factor=10.0, seed=1)
    seconds = np.array([run_s(1, 0.0) for _ in range(5000)])
    assert np.median(seconds[seconds < 4e-3]) == pytest.approx(1e-3, rel=0.02)
    assert (seconds > 4e-3).mean() == pytest.approx(0.1, abs=0.02)


def test_a_drift_sets_in_at_its_instant():
    run_s = drifting(affine(0.0, 1e-3), {2.0: 3.0, 1.0: 2.0})
    assert [run_s(1, now) for now in (0.0, 1.0, 1.9, 2.0)] == pytest.approx([1e-3, 2e-3, 2e-3, 3e-3])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "1:0.08,64:0.25"),
        ("1:0.08,64", "'64' isn't ROWS:MILLISECONDS"),
        ("0:1", "at least 1 row"),
        ("1:0", "more than 0 ms"),
        ("1:nan", "more than 0 ms"),
        ("1:1,1:2", "given twice"),
        ("1:2,4:1", "can't take less time"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(text, what):
    with pytest.raises(SettingsError) as refusal:
        parse_curve(text)
    assert what in str(refusal.value)
