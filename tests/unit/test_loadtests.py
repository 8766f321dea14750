"""The load tests' parts that are plain functions: scenarios, figures, verdict."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loadtests.reading import ScenarioError, load_scenario, parse
from loadtests.run import conclude, main
from loadtests.scenario import LocustScenario, OpenLoopScenario, Threshold, scenario_names
from loadtests.verdict import judge, table
from loadtests.with_locust import Measured, NothingMeasured, figures_of, read_measured

LOCUST = """\
description = "A test."
generator = "locust"
model = "fraud"
users = 4
spawn_rate = 10
warmup_s = 1
duration_s = 5
rows_per_request = 1
"""
OPEN_LOOP = """\
description = "A test."
generator = "openloop"
connections = 2

[models.scorer]
kind = "tower"
max_batch_size = 16
objective_full_batches = 4

[phases.step]
parts = { before = 1, after = 2 }
streams.high = { model = "scorer", load = [0.5, 2], priority = 1 }
streams.low = { model = "scorer", rate_per_s = 10, arrivals = "mmpp" }

[phases.replay]
seconds = 3
streams.fraud = { model = "scorer", rate_per_s = 50, arrivals = "transactions" }
"""
ERRORS = """
[[thresholds]]
figure = "server.error_rate"
at_most = 0
"""
RATIO = """
[[thresholds]]
figure = "after.high.good_per_s"
at_least = 0.85
times = "scorer.capacity_per_s"
"""
SHIPPED = [
    "fraud_burst",
    "fraud_replay",
    "fraud_steady",
    "mixed_priorities",
    "openloop_smoke",
    "overload",
    "slow_beside_fast",
    "smoke",
]


def locust(text: str) -> LocustScenario:
    scenario = parse("mine", text)
    assert isinstance(scenario, LocustScenario)
    return scenario


def open_loop(text: str) -> OpenLoopScenario:
    scenario = parse("mine", text)
    assert isinstance(scenario, OpenLoopScenario)
    return scenario


def keys(text: str) -> list[str]:
    return re.findall(r"^(\w+) = ", text, re.MULTILINE)


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def with_value(text: str, key: str, value: str) -> str:
    assert f"\n{key} = " in "\n" + text
    return re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)


class TestShippedScenarios:
    @pytest.mark.parametrize("name", scenario_names())
    def test_is_well_formed(self, name: str):
        assert load_scenario(name).name == name

    @pytest.mark.parametrize("name", scenario_names())
    def test_asks_that_nothing_fails(self, name: str):
        scenario = load_scenario(name)
        none_fails = [
            each.figure
            for each in scenario.thresholds
            if (each.figure.endswith(("error_rate", "errors")) and each.at_most == 0)
            or (each.figure.endswith("ok_ratio") and each.at_least == 1)
        ]
        assert none_fails

    def test_are_those_that_the_readme_names(self):
        assert scenario_names() == SHIPPED
        readme = Path("loadtests/README.md").read_text(encoding="utf-8")
        assert [name for name in SHIPPED if f"`{name}`" not in readme] == []

    def test_unknown_name_is_refused_with_those_that_there_are(self):
        with pytest.raises(ScenarioError, match=r"'nothing'.*fraud_burst, fraud_replay, .*smoke"):
            load_scenario("nothing")

    def test_name_is_no_path(self):
        with pytest.raises(ScenarioError, match="no scenario"):
            load_scenario("../scenarios/smoke")


class TestLocustScenario:
    def test_reads_every_key(self):
        scenario = locust(with_value("reference_s = 2\n" + LOCUST, "users", "[4, 16]") + ERRORS)
        assert (scenario.name, scenario.users, scenario.reference_s) == ("mine", (4, 16), 2.0)
        assert scenario.thresholds == (Threshold(figure="server.error_rate", at_most=0.0),)

    def test_the_reference_has_figures_if_it_is_measured(self):
        assert "reference.p99_ms" not in locust(LOCUST + ERRORS).figures()
        assert "reference.p99_ms" in locust("reference_s = 2\n" + LOCUST + ERRORS).figures()

    @pytest.mark.parametrize("key", keys(LOCUST))
    def test_missing_key_is_refused_by_name(self, key: str):
        without = re.sub(rf"^{key} = .*\n", "", LOCUST, flags=re.MULTILINE)
        with pytest.raises(ScenarioError, match=rf"scenario 'mine': {key} is missing"):
            parse("mine", without + ERRORS)

    @pytest.mark.parametrize("key", ["user = 4", "connections = 4", 'name = "other"'])
    def test_unknown_key_is_refused_by_name(self, key: str):
        with pytest.raises(ScenarioError, match=rf"unknown key {key.split()[0]};"):
            parse("mine", key + "\n" + LOCUST + ERRORS)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("description", '""'),
            ("generator", '"wrk"'),
            ("model", "1"),
            ("users", "0"),
            ("users", "[]"),
            ("users", "[4, 0]"),
            ("users", "1.5"),
            ("users", "true"),
            ("spawn_rate", "0"),
            ("warmup_s", "-1"),
            ("duration_s", "0"),
            ("duration_s", "inf"),
            ("duration_s", '"5"'),
            ("rows_per_request", "0"),
        ],
    )
    def test_value_out_of_bounds_is_refused_by_name(self, key: str, value: str):
        with pytest.raises(ScenarioError, match=rf"{key} must be "):
            parse("mine", with_value(LOCUST, key, value) + ERRORS)

    def test_what_is_not_toml_is_refused(self):
        with pytest.raises(ScenarioError, match="'mine' isn't TOML"):
            parse("mine", "users: 4")


class TestOpenLoopScenario:
    def test_reads_models_phases_and_streams(self):
        scenario = open_loop(OPEN_LOOP + RATIO)
        assert (scenario.connections, scenario.rounds) == (2, 1)
        assert scenario.models["scorer"].objective_full_batches == 4.0
        step, replay = scenario.phases
        assert (dict(step.parts), step.seconds) == ({"before": 1.0, "after": 2.0}, 3.0)
        assert (step.traffic[0].load, step.traffic[0].priority) == ((0.5, 2.0), 1)
        assert (step.traffic[1].rate_per_s, step.traffic[1].arrivals) == ((10.0,), "mmpp")
        assert dict(replay.parts) == {"replay": 3.0}

    def test_measures_capacity_where_a_stream_refers_to_it(self):
        assert open_loop(OPEN_LOOP + RATIO).loaded_models() == {"scorer"}
        rates = changed(OPEN_LOOP, "load = [0.5, 2]", "rate_per_s = [5, 20]")
        with pytest.raises(
            ScenarioError, match=r"no figure 'scorer\.capacity_per_s'; there are scorer\.full"
        ):
            parse("mine", rates + RATIO)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('kind = "tower"\n', "", r"models\.scorer\.kind is missing"),
            ('"tower"', '"resnet"', r"models\.scorer\.kind must be one of mlp, tower"),
            ("max_batch_size", "batch", r"unknown key models\.scorer\.batch;"),
            ("objective_full_batches = 4", "objective_full_batches = 0.5", "must be a number of at least 1"),
            ("[models.scorer]", "[models.other]", r"phases\.step\.streams\.high\.model is 'scorer', .*other"),
            ("parts = ", "part = ", r"unknown key phases\.step\.part;"),
            ("seconds = 3\n", "", r"phases\.replay\.seconds or phases\.replay\.parts must be there"),
            ("seconds = 3\n", "seconds = 3\nparts = { a = 1 }\n", "and not both"),
            ("before = 1", "before = 0", r"phases\.step\.seconds must be a number of at least 0\.1"),
            ("before = 1", "replay = 1", "two parts have the name 'replay'"),
            ("before = 1", '"be.fore" = 1', "a name has letters, digits and _"),
            ("[0.5, 2]", "[0.5, 2, 1]", r"load has 3 numbers, and the phase has 2 parts"),
            ("[0.5, 2]", "-1", r"phases\.step\.streams\.high\.load must be a number from 0 to 10, or a list"),
            ("load = [0.5, 2], ", "", "load or .*rate_per_s must be there"),
            ("rate_per_s = 10,", "rate_per_s = 10, load = 1,", "and not both"),
            ("rate_per_s = 10,", "rate_per_s = [10, 20],", "'mmpp' have one rate; only poisson"),
            ("priority = 1", "priority = 0", r"priority must be a whole number above 0"),
            ("connections = 2", "users = 2", "unknown key users;"),
        ],
    )
    def test_mistake_is_refused_by_name(self, old: str, new: str, message: str):
        with pytest.raises(ScenarioError, match=message):
            parse("mine", changed(OPEN_LOOP, old, new) + RATIO)

    @pytest.mark.parametrize("table", ["models", "phases"])
    def test_missing_table_is_refused_by_name(self, table: str):
        without = re.sub(rf"\[{table}\.\w+\]\n([^\[].*\n|\n)*", "", OPEN_LOOP)
        with pytest.raises(ScenarioError, match=rf"{table} are missing|and the models are"):
            parse("mine", without + RATIO)


class TestThresholds:
    def test_may_be_asked_of_one_transport(self):
        own = ERRORS + 'transport = "http2"\n'
        (threshold,) = locust(LOCUST + own).thresholds
        assert threshold.transport == "http2"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "after.high.good_per_s",
                "after.high.goodput",
                r"no figure 'after\.high\.goodput'; there are after\.",
            ),
            (
                "after.high.good_per_s",
                "later.high.p99_ms",
                r"no figure .*; there are figures of after\.high, ",
            ),
            (
                "scorer.capacity_per_s",
                "scorer.capacity",
                r"no figure 'scorer\.capacity'; there are scorer\.cap",
            ),
            ("at_least = 0.85\n", "", "at_least or at_most must be there"),
            ("at_least = 0.85\n", "at_least = 0.85\nat_most = 2\n", "and not both"),
            ("at_least = 0.85", "at_least = nan", "thresholds 1: at_least must be"),
            ("at_least", "min", "unknown key thresholds 1: min;"),
            ("[[thresholds]]", "[thresholds]", "thresholds must be tables"),
            ("times =", 'transport = "http3"\ntimes =', "transport must be one of grpcio, http2"),
        ],
    )
    def test_mistake_is_refused_by_name(self, old: str, new: str, message: str):
        with pytest.raises(ScenarioError, match=message):
            parse("mine", OPEN_LOOP + changed(RATIO, old, new))

    def test_what_depends_on_the_machine_must_be_a_ratio(self):
        absolute = changed(RATIO, 'times = "scorer.capacity_per_s"\n', "")
        with pytest.raises(
            ScenarioError, match=r"after\.high\.good_per_s depends on the machine; name in times"
        ):
            parse("mine", OPEN_LOOP + absolute)

    def test_a_scenario_without_any_is_refused(self):
        with pytest.raises(ScenarioError, match="thresholds are missing"):
            parse("mine", LOCUST)


RATE = Threshold(figure="a.rate_per_s", at_least=0.5, times="b.rate_per_s")
P99 = Threshold(figure="a.p99_ms", at_most=3.0, times="b.p99_ms", plus=10.0)
ERROR_RATE = Threshold(figure="a.error_rate", at_most=0.01)
GOOD = {
    "a.rate_per_s": 150.0,
    "a.p99_ms": 130.0,
    "a.error_rate": 0.01,
    "b.rate_per_s": 300.0,
    "b.p99_ms": 40.0,
}


def oks(figures: dict[str, float | None], transport: str = "") -> list[bool]:
    return [check.ok for check in judge([RATE, P99, ERROR_RATE], figures, transport)]


class TestJudge:
    def test_passes_on_every_threshold_exactly_met(self):
        assert oks(GOOD) == [True, True, True]

    @pytest.mark.parametrize(
        ("worse", "expected"),
        [
            ({"a.rate_per_s": 149.0}, [False, True, True]),
            ({"b.rate_per_s": 301.0}, [False, True, True]),
            ({"a.p99_ms": 131.0}, [True, False, True]),
            ({"b.p99_ms": 39.0}, [True, False, True]),
            ({"a.error_rate": 0.011}, [True, True, False]),
        ],
    )
    def test_fails_on_each_threshold_missed(self, worse: dict, expected: list[bool]):
        assert oks(GOOD | worse) == expected

    @pytest.mark.parametrize("nothing", [None, float("nan")])
    @pytest.mark.parametrize("name", ["a.rate_per_s", "b.rate_per_s"])
    def test_what_was_not_measured_has_not_passed(self, name: str, nothing: float | None):
        checks = judge([RATE, P99], GOOD | {name: nothing})
        assert [check.ok for check in checks] == [False, True]
        assert checks[0].measured == f"{name} wasn't measured"

    def test_a_figure_that_is_missing_has_not_passed(self):
        assert [check.ok for check in judge([RATE], {})] == [False]

    def test_infinity_is_more_than_any_limit(self):
        assert oks(GOOD | {"a.p99_ms": float("inf")}) == [True, False, True]

    def test_a_ratio_to_nothing_is_judged_by_the_product(self):
        (check,) = judge([RATE], GOOD | {"b.rate_per_s": 0.0})
        assert check.ok
        assert "no ratio to 0" in check.measured

    def test_a_transports_thresholds_are_asked_of_it_alone(self):
        own = Threshold(figure="a.error_rate", at_most=0.0, transport="http2")
        assert [check.ok for check in judge([ERROR_RATE, own], GOOD, "http2")] == [True, False]
        assert [check.ok for check in judge([ERROR_RATE, own], GOOD, "grpcio")] == [True]

    def test_table_says_what_was_asked_what_came_and_which_was_missed(self):
        lines = table(judge([RATE, P99, ERROR_RATE], GOOD | {"a.p99_ms": 140.0})).splitlines()
        assert [line.split()[-1] for line in lines] == ["ok", "yes", "NO", "yes"]
        assert re.fullmatch(
            r"a\.rate_per_s >= 0\.5 x b\.rate_per_s +0\.5 x \(150 against 300\) +yes", lines[1]
        )
        assert re.fullmatch(r"a\.p99_ms <= 3 x b\.p99_ms \+ 10 +3\.5 x \(140 against 40\) +NO", lines[2])
        assert re.fullmatch(r"a\.error_rate <= 0\.01 +0\.01 +yes", lines[3])


MEASURED = Measured(requests=6000, failures=60, answered_per_s=150.0, p99_ms=130.0)
REFERENCE = Measured(requests=9000, failures=0, answered_per_s=300.0, p99_ms=40.0)


class TestLocustFigures:
    def test_references_count_with_their_mean_rate_and_worst_p99(self):
        slow = Measured(requests=9000, failures=0, answered_per_s=100.0, p99_ms=20.0)
        figures = figures_of(MEASURED, [REFERENCE, slow])
        assert figures["server.error_rate"] == 0.01
        assert (figures["reference.requests_per_s"], figures["reference.p99_ms"]) == (200.0, 40.0)

    def test_a_reference_with_failures_is_none(self):
        failing = Measured(requests=100, failures=1, answered_per_s=100.0, p99_ms=20.0)
        figures = figures_of(MEASURED, [REFERENCE, failing])
        assert figures["reference.requests_per_s"] is figures["reference.p99_ms"] is None
        assert figures["reference.error_rate"] == 0.01

    def test_are_those_that_a_scenario_promises(self):
        assert figures_of(MEASURED).keys() == locust(LOCUST + ERRORS).figures()
        with_reference = locust("reference_s = 2\n" + LOCUST + ERRORS)
        assert figures_of(MEASURED, [REFERENCE]).keys() == with_reference.figures()


HEADING = ["Type", "Name", "Request Count", "Failure Count", "Requests/s", "Failures/s", "50%", "99%", "100%"]


def write_csv(path: Path, *rows: list[object]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADING, *rows])
    return path


class TestReadMeasured:
    def test_reads_the_line_of_all_requests(self, tmp_path: Path):
        path = write_csv(
            tmp_path / "x.csv",
            ["grpc", "ModelInfer", 1, 1, 1.0, 1.0, 1, 1, 1],
            ["", "Aggregated", 6000, 60, 151.5, 1.5, 20, 130, 400],
        )
        assert read_measured(path) == MEASURED
        assert read_measured(path).error_rate == 0.01

    def test_missing_file_measured_nothing(self, tmp_path: Path):
        with pytest.raises(NothingMeasured, match=r"x\.csv isn't there"):
            read_measured(tmp_path / "x.csv")

    @pytest.mark.parametrize("text", ["", ",".join(HEADING) + "\n"])
    def test_file_without_figures_measured_nothing(self, tmp_path: Path, text: str):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(NothingMeasured, match="no line 'Aggregated'"):
            read_measured(tmp_path / "x.csv")

    def test_no_request_measured_nothing(self, tmp_path: Path):
        path = write_csv(tmp_path / "x.csv", ["", "Aggregated", 0, 0, 0.0, 0.0, "N/A", "N/A", "N/A"])
        with pytest.raises(NothingMeasured, match="counts no request"):
            read_measured(path)

    @pytest.mark.parametrize("p99", ["N/A", "nan", ""])
    def test_percentile_that_is_no_number_measured_nothing(self, tmp_path: Path, p99: str):
        path = write_csv(tmp_path / "x.csv", ["", "Aggregated", 5, 0, 1.0, 0.0, 20, p99, 400])
        with pytest.raises(NothingMeasured, match=r"x\.csv"):
            read_measured(path)

    def test_line_cut_short_measured_nothing(self, tmp_path: Path):
        path = write_csv(tmp_path / "x.csv", ["", "Aggregated", 5])
        with pytest.raises(NothingMeasured, match="isn't locust's statistics"):
            read_measured(path)


class TestConclusion:
    SCENARIO = locust(LOCUST + ERRORS)
    FIGURES = figures_of(MEASURED)

    def test_passes_if_every_threshold_holds_and_is_written(self, tmp_path: Path, capsys):
        assert conclude(self.SCENARIO, "http2", {**self.FIGURES, "server.error_rate": 0.0}, tmp_path)
        verdict = (tmp_path / "verdict.txt").read_text()
        assert verdict in capsys.readouterr().out
        assert "transport: http2" in verdict
        assert verdict.endswith("verdict: passed\n")

    def test_fails_if_one_is_missed(self, tmp_path: Path):
        assert not conclude(self.SCENARIO, "http2", self.FIGURES, tmp_path)
        assert (tmp_path / "verdict.txt").read_text().endswith("verdict: FAILED\n")
        written = json.loads((tmp_path / "verdict.json").read_text())
        assert not written["passed"]
        assert [check["ok"] for check in written["checks"]] == [False]
        assert written["figures"] == self.FIGURES

    def test_what_json_cannot_hold_is_null(self, tmp_path: Path):
        conclude(self.SCENARIO, "http2", {**self.FIGURES, "server.p99_ms": float("inf")}, tmp_path)
        assert json.loads((tmp_path / "verdict.json").read_text())["figures"]["server.p99_ms"] is None

    def test_a_late_generator_is_named_as_such(self, tmp_path: Path):
        slip = RATIO.replace("good_per_s", "slip_p99_ms").replace("at_least", "at_most")
        figures = {"after.high.slip_p99_ms": 9.0, "scorer.capacity_per_s": 1.0}
        assert not conclude(open_loop(OPEN_LOOP + slip), "http2", figures, tmp_path)
        assert "the generator was late" in (tmp_path / "verdict.txt").read_text()


class TestCommand:
    def test_lists_the_scenarios(self, capsys: pytest.CaptureFixture[str]):
        assert main(["--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == scenario_names()
        assert all(len(line.split()) > 1 for line in lines)

    def test_unknown_scenario_is_a_wrong_call(self, capsys: pytest.CaptureFixture[str]):
        assert main(["nothing"]) == 2
        assert "no scenario 'nothing'" in capsys.readouterr().err

    def test_nothing_tested_here_brings_gevent_along(self):
        # It patches the standard library of the process that imports it, and would patch pytest's.
        modules = ["figures", "payloads", "reference", "run", "scenario", "shapes", "verdict"]
        code = f"import sys, {', '.join('loadtests.' + name for name in modules)}; "
        code += "sys.exit(' '.join({'gevent', 'locust', 'torch'} & sys.modules.keys()) or 0)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
