"""Open-loop load tests without a server: when calls are due, and the figures of a part."""

from __future__ import annotations

import numpy as np
import pytest
from loadtests.figures import figures_of_part, figures_of_phase, merged
from loadtests.reading import load_scenario
from loadtests.scenario import OpenLoopScenario, Phase, Traffic, scenario_names
from loadtests.with_openloop import schedule_of

from tensorferry.benchmark.endings import OK, Ending, Failure
from tensorferry.benchmark.traffic import Result

ENDINGS = (
    Ending(OK, ""),
    Ending(8, "too late"),
    Ending(4, "deadline"),
    Ending(int(Failure.UNANSWERED), "no answer"),
)
ANSWERED, REFUSED, EXPIRED, SILENT = range(4)


def result_of(*calls: tuple[float, float, int, int]) -> Result:
    """``calls`` are (due, latency, ending, stream), in seconds, sorted by when they are due."""
    due, latency, ending, stream = (np.array(column) for column in zip(*calls, strict=True))
    done = np.where(ending == SILENT, np.nan, due + latency)
    sent = due + 0.001
    return Result(("a", "b"), stream.astype(np.int16), due, sent, done, ending.astype(np.int32), ENDINGS)


RESULT = result_of(
    (0.5, 0.010, ANSWERED, 0),
    (1.0, 0.010, ANSWERED, 0),
    (1.1, 0.030, ANSWERED, 0),
    (1.2, 0.001, REFUSED, 0),
    (1.3, 0.100, EXPIRED, 0),
    (1.4, 9.000, SILENT, 0),
    (1.5, 0.500, ANSWERED, 1),
    (1.9, 0.200, ANSWERED, 0),
    (3.0, 0.010, ANSWERED, 0),
)


class TestFiguresOfAPart:
    FIGURES = figures_of_part(RESULT, place=0, part_s=(1.0, 2.0), objective_ms=20.0)

    def test_count_the_calls_that_were_due_in_it(self):
        assert self.FIGURES["offered_per_s"] == 6.0
        assert self.FIGURES["ok_per_s"] == 3.0
        assert self.FIGURES["ok_ratio"] == 0.5

    def test_good_is_within_the_objective(self):
        assert self.FIGURES["good_per_s"] == 1.0

    def test_answers_per_second_are_those_that_came_in_it(self):
        assert self.FIGURES["answered_per_s"] == 2.0
        later = figures_of_part(RESULT, place=0, part_s=(2.0, 4.0), objective_ms=20.0)
        assert later["answered_per_s"] == 1.0

    def test_refusals_are_apart_from_errors(self):
        assert self.FIGURES["refused_ratio"] == pytest.approx(1 / 6)
        assert self.FIGURES["errors"] == 2.0
        assert self.FIGURES["refused_p50_ms"] == pytest.approx(1.0, rel=1e-3)

    def test_percentiles_are_of_answers_from_when_they_were_due(self):
        assert self.FIGURES["p50_ms"] == pytest.approx(30.0, rel=1e-3)
        assert self.FIGURES["p99_ms"] == pytest.approx(200.0, rel=1e-3)
        assert self.FIGURES["slip_p99_ms"] == pytest.approx(1.0, rel=1e-3)

    def test_another_stream_has_its_own(self):
        other = figures_of_part(RESULT, place=1, part_s=(1.0, 2.0), objective_ms=20.0)
        assert (other["offered_per_s"], other["good_per_s"], other["errors"]) == (1.0, 0.0, 0.0)

    def test_what_has_nothing_to_measure_is_none(self):
        empty = figures_of_part(RESULT, place=1, part_s=(0.0, 1.0), objective_ms=20.0)
        assert (empty["offered_per_s"], empty["errors"]) == (0.0, 0.0)
        names = ("ok_ratio", "refused_ratio", "p50_ms", "p99_ms", "refused_p50_ms", "slip_p99_ms")
        assert [empty[name] for name in names] == [None] * len(names)


class TestFiguresOfAPhase:
    PHASE = Phase(
        name="step",
        parts={"before": 1.0, "after": 1.0},
        traffic=(Traffic(name="a", model="m", load=(1.0,)), Traffic(name="b", model="n", rate_per_s=(5.0,))),
    )

    def test_are_told_apart_by_part_and_stream(self):
        figures = figures_of_phase(self.PHASE, RESULT, {"m": 20.0}, grace_s=1.0)
        assert figures["before.a.offered_per_s"] == 1.0
        assert figures["after.a.offered_per_s"] == 6.0
        assert figures["after.b.offered_per_s"] == 1.0

    def test_a_model_with_an_objective_has_it_and_another_the_grace_time(self):
        figures = figures_of_phase(self.PHASE, RESULT, {"m": 20.0}, grace_s=1.0)
        assert (figures["after.a.good_per_s"], figures["after.b.good_per_s"]) == (1.0, 1.0)

    def test_are_those_that_a_scenario_promises(self):
        scenario = OpenLoopScenario(name="x", description="x", thresholds=(), models={}, phases=(self.PHASE,))
        measured = figures_of_phase(self.PHASE, RESULT, {}, grace_s=1.0).keys()
        assert measured | {"m.capacity_per_s"} == scenario.figures()


class TestMerged:
    def test_is_the_median_of_the_rounds(self):
        assert merged([{"a.p99_ms": 1.0}, {"a.p99_ms": 400.0}, {"a.p99_ms": 2.0}]) == {"a.p99_ms": 2.0}

    def test_no_error_of_any_round_is_forgotten(self):
        rounds = [{"a.errors": 0.0, "a.ok_ratio": 1.0}, {"a.errors": 2.0, "a.ok_ratio": 0.5}]
        assert merged([*rounds, rounds[0]]) == {"a.errors": 2.0, "a.ok_ratio": 0.5}

    def test_leaves_out_rounds_with_nothing_to_measure(self):
        assert merged([{"a.p99_ms": None}, {"a.p99_ms": 3.0}]) == {"a.p99_ms": 3.0}
        assert merged([{"a.p99_ms": None}]) == {"a.p99_ms": None}


class TestSchedules:
    def test_load_is_a_share_of_the_capacity_in_each_part(self):
        traffic = Traffic(name="a", model="m", load=(0.5, 2.0))
        schedule = schedule_of(traffic, [10.0, 5.0], capacity_per_s=1000.0, seed=1)
        before, after = np.histogram(schedule, [0.0, 10.0, 15.0])[0]
        assert before == pytest.approx(5000, rel=0.1)
        assert after == pytest.approx(10000, rel=0.1)

    @pytest.mark.parametrize("arrivals", ["poisson", "uniform", "mmpp", "transactions"])
    def test_every_kind_keeps_its_mean_rate_and_its_length(self, arrivals: str):
        traffic = Traffic(name="a", model="m", rate_per_s=(200.0,), arrivals=arrivals)
        schedule = schedule_of(traffic, [20.0, 20.0], capacity_per_s=0.0, seed=2)
        assert len(schedule) == pytest.approx(8000, rel=0.15)
        assert (np.diff(schedule) >= 0).all()
        assert schedule[0] >= 0
        assert schedule[-1] < 40.0

    def test_transactions_have_two_days_and_two_nights(self):
        traffic = Traffic(name="a", model="m", rate_per_s=(1000.0,), arrivals="transactions")
        schedule = schedule_of(traffic, [48.0], capacity_per_s=0.0, seed=1)
        per_hour = np.histogram(schedule, np.arange(49))[0]
        nights, afternoons = per_hour[[4, 28]], per_hour[[16, 40]]
        assert afternoons.min() > 5 * nights.max()

    def test_the_same_seed_gives_the_same_schedule(self):
        traffic = Traffic(name="a", model="m", rate_per_s=(100.0,), arrivals="transactions")
        first, again, other = (schedule_of(traffic, [2.0], 0.0, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", scenario_names())
def test_a_shipped_overload_offers_more_than_the_capacity(name: str):
    scenario = load_scenario(name)
    if not isinstance(scenario, OpenLoopScenario):
        return
    flooded = [
        share for phase in scenario.phases for each in phase.traffic for share in each.load if share > 1
    ]
    assert all(share == 2.0 for share in flooded)
