"""The batcher's benchmark where it is arithmetic: verdicts, parts of a run, recovery after a burst."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from loadtests.batching.verdict import (
    Bound,
    Figure,
    Value,
    between,
    drift,
    markdown,
    recovered_after_s,
    value_of,
)

from tensorferry.benchmark.endings import OK, Ending, Failure
from tensorferry.benchmark.report import Bounds, Windows, analyse
from tensorferry.benchmark.traffic import Result

LATE = "p99 of how late calls left: 3 ms"
RESOURCE_EXHAUSTED = 8


def figure(*values: Value | float, bound: Bound | None = None) -> Figure:
    rounds = tuple(each if isinstance(each, Value) else Value(each) for each in values)
    return Figure("case", "what", "ms", rounds, bound)


def result(intended_s: list[float], latency_s: float = 0.002, slip_s: float = 0.0) -> Result:
    """One stream, all answered."""
    due = np.array(intended_s)
    return Result(
        names=("only",),
        stream=np.zeros(len(due), dtype=np.int16),
        intended_s=due,
        sent_s=due + slip_s,
        done_s=due + latency_s,
        ending=np.zeros(len(due), dtype=np.int32),
        endings=(Ending(OK, ""), Ending(RESOURCE_EXHAUSTED, "late"), Ending(Failure.LOST, "gone")),
    )


def windows(p99_ms: list[float | None], refused: dict[int, int] | None = None) -> Windows:
    """Windows of 100 ms with ten calls each, of which ``refused`` were, by window."""
    number = len(p99_ms)
    refusals = [(refused or {}).get(place, 0) for place in range(number)]
    return Windows(
        width_s=0.1,
        start_s=[round(place * 0.1, 9) for place in range(number)],
        offered=[10] * number,
        ok=[10 - each for each in refusals],
        ok_in_time=[10 - each for each in refusals],
        refused=refusals,
        failed=[0] * number,
        p50_ms=p99_ms,
        p99_ms=p99_ms,
    )


class TestBound:
    @pytest.mark.parametrize(("value", "holds"), [(0.4, True), (0.5, True), (0.51, False)])
    def test_a_most_holds_up_to_its_limit(self, value: float, holds: bool):
        assert Bound(0.5).holds(value) is holds

    @pytest.mark.parametrize(("value", "holds"), [(0.94, False), (0.95, True), (1.1, True)])
    def test_a_least_holds_from_its_limit(self, value: float, holds: bool):
        assert Bound(0.95, is_most=False).holds(value) is holds

    @pytest.mark.parametrize("is_most", [True, False])
    def test_what_is_no_number_keeps_no_bound(self, is_most: bool):
        assert not Bound(1.0, is_most).holds(math.nan)

    def test_says_which_side_it_is_on(self):
        assert (str(Bound(0.5)), str(Bound(0.95, is_most=False))) == ("<= 0.5", ">= 0.95")


class TestFigure:
    def test_the_verdict_is_on_the_median(self):
        assert figure(1.0, 9.0, 2.0, bound=Bound(2.0)).verdict == "yes"
        assert figure(1.0, 9.0, 3.0, bound=Bound(2.0)).verdict == "NO"

    def test_rounds_that_are_not_valid_are_left_out_and_counted(self):
        told = figure(1.0, Value(9.0, LATE), 3.0, bound=Bound(2.0))
        assert told.median == 2.0
        assert told.verdict == "yes (1 of 3 rounds not valid)"

    def test_too_few_valid_rounds_give_no_verdict(self):
        told = figure(1.0, Value(1.0, LATE), Value(1.0, LATE), bound=Bound(2.0))
        assert told.holds is None
        assert told.verdict == "NOT VALID (2 of 3 rounds not valid)"

    def test_no_round_at_all_is_no_verdict_and_no_error(self):
        told = figure(bound=Bound(2.0))
        assert told.holds is None
        assert told.row()[2:4] == ("-", "-")

    def test_values_that_are_not_valid_are_still_shown(self):
        assert figure(Value(9.0, LATE), bound=Bound(2.0)).row()[2:4] == ("-", "9 - 9")

    def test_what_never_came_misses_a_most(self):
        assert figure(math.inf, bound=Bound(1.0)).verdict == "NO"

    def test_without_a_bound_it_is_told_and_not_judged(self):
        assert figure(1.0).holds is None
        assert figure(1.0).verdict == "-"

    def test_is_plain_json_with_every_round_and_its_reason(self):
        document = json.loads(json.dumps(figure(math.inf, Value(2.0, LATE)).to_dict(), allow_nan=False))
        assert document["rounds"] == [
            {"value": None, "invalid_because": ""},
            {"value": 2.0, "invalid_because": LATE},
        ]


class TestValueOf:
    def test_is_valid_only_if_every_run_behind_it_is(self):
        good = analyse(result([0.1, 0.2]), Bounds(), 1.0)
        late = analyse(result([0.1, 0.2], slip_s=0.005), Bounds(), 1.0)
        assert not value_of(1.0, good).invalid_because
        assert "how late calls left" in value_of(1.0, good, late).invalid_because

    def test_none_is_what_never_came(self):
        assert value_of(None).value == math.inf


class TestDrift:
    @pytest.mark.parametrize(("before", "after"), [(100.0, 100.0), (100.0, 110.0), (110.0, 100.0)])
    def test_a_yardstick_that_moved_little_can_be_relied_on(self, before: float, after: float):
        assert drift(before, after) == ""

    @pytest.mark.parametrize(("before", "after"), [(100.0, 112.0), (112.0, 100.0)])
    def test_one_that_moved_more_can_not_whichever_way(self, before: float, after: float):
        assert f"{before:g}/s before and {after:g}/s after" in drift(before, after)


class TestBetween:
    def test_keeps_the_calls_that_were_due_and_counts_from_the_start(self):
        part = between(result([0.5, 1.0, 1.5, 2.0]), 1.0, 2.0)
        assert part.intended_s.tolist() == [0.0, 0.5]
        assert part.done_s.tolist() == pytest.approx([0.002, 0.502])

    def test_latencies_and_slips_stay_what_they_were(self):
        whole = result([0.5, 1.25], latency_s=0.008, slip_s=0.001)
        part = analyse(between(whole, 1.0, 2.0), Bounds(), 1.0)
        assert part.total.latency_of_ok.p50_ms == pytest.approx(8.0, rel=1e-3)
        assert part.total.slip.p99_ms == pytest.approx(1.0)

    def test_endings_stay_with_their_calls(self):
        whole = replace(result([0.5, 1.5]), ending=np.array([0, 1], dtype=np.int32))
        assert between(whole, 1.0, 2.0).status.tolist() == [RESOURCE_EXHAUSTED]


class TestRecovery:
    def test_is_zero_if_the_first_windows_after_the_burst_are_calm(self):
        assert recovered_after_s(windows([4.0] * 8), 0.2, 4.0) == 0.0

    def test_counts_to_the_first_of_three_calm_windows(self):
        p99_ms = [4.0, 9.0, 9.0, 9.0, 5.0, 5.0, 5.0, 5.0]
        assert recovered_after_s(windows(p99_ms), 0.2, 4.0) == pytest.approx(0.2)

    def test_a_refusal_is_not_calm_however_quick_the_answers_are(self):
        refusing = windows([4.0] * 8, refused={2: 1, 3: 1})
        assert recovered_after_s(refusing, 0.2, 4.0) == pytest.approx(0.2)

    def test_one_lucky_window_is_no_recovery(self):
        p99_ms = [4.0, 4.0, 4.0, 9.0, 4.0, 4.0, 4.0, 4.0]
        assert recovered_after_s(windows(p99_ms), 0.2, 4.0) == pytest.approx(0.2)

    def test_windows_up_to_the_factor_are_calm_and_beyond_it_not(self):
        assert recovered_after_s(windows([6.0] * 5), 0.2, 4.0, factor=1.5) == 0.0
        assert recovered_after_s(windows([6.1] * 5), 0.2, 4.0, factor=1.5) == math.inf

    def test_what_comes_in_the_burst_is_not_looked_at(self):
        bursting = windows([4.0, 90.0, 90.0, 4.0, 4.0, 4.0], refused={1: 5, 2: 5})
        assert recovered_after_s(bursting, 0.3, 4.0) == 0.0

    def test_the_last_windows_count_as_far_as_the_run_goes(self):
        assert recovered_after_s(windows([4.0, 9.0, 9.0, 4.0]), 0.2, 4.0) == pytest.approx(0.1)

    def test_a_hiccup_after_the_recovery_does_not_undo_it(self):
        p99_ms = [4.0, 4.0, 4.0, 4.0, 4.0, 90.0, 4.0]
        assert recovered_after_s(windows(p99_ms), 0.2, 4.0) == 0.0

    def test_a_window_without_answers_is_calm_only_if_nothing_was_offered(self):
        silent = windows([4.0, 4.0, None, 4.0, 4.0, 4.0])
        assert recovered_after_s(silent, 0.2, 4.0) == pytest.approx(0.1)
        assert recovered_after_s(replace(silent, offered=[10, 10, 0, 10, 10, 10]), 0.2, 4.0) == 0.0

    def test_never_is_infinite(self):
        assert recovered_after_s(windows([4.0, 9.0, 9.0, 9.0]), 0.1, 4.0) == math.inf


def test_the_table_has_a_line_for_each_figure_and_its_columns_are_straight():
    lines = markdown([figure(1.0, 2.0, 3.0, bound=Bound(2.5)), figure(1234.5)]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["case", "what", "2 ms", "1 - 3", "<= 2.5 ms", "yes"]
    assert "1,234 ms" in lines[3]
