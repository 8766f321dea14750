"""The load tests' parts that are plain functions: scenarios, users over time, verdict, payloads."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loadtests.payloads import FEATURES, infer_request, infer_response, output_bytes, score_bytes
from loadtests.run import main
from loadtests.scenario import ScenarioError, Thresholds, load_scenario, parse, scenario_names
from loadtests.shapes import users_at
from loadtests.verdict import Measured, NothingMeasured, judge, read_measured, table

from tensorferry.wire import open_inference_pb2 as pb

PLAIN = """\
description = "A test."
model = "fraud"
users = 4
spawn_rate = 10
warmup_s = 1
duration_s = 5
rows_per_request = 1

[thresholds]
min_requests_per_s = 100
max_p99_ms = 250
max_error_rate = 0.01
"""
REQUIRED = re.findall(r"^(\w+) = ", PLAIN, re.MULTILINE)
RATIO = "min_rate_ratio_to_reference = 0.5\n"


def without(key: str) -> str:
    return re.sub(rf"^{key} = .*\n", "", PLAIN, flags=re.MULTILINE)


def changed(key: str, value: str) -> str:
    assert f"\n{key} = " in "\n" + PLAIN
    return re.sub(rf"^{key} = .*$", f"{key} = {value}", PLAIN, flags=re.MULTILINE)


class TestShippedScenarios:
    @pytest.mark.parametrize("name", scenario_names())
    def test_is_well_formed(self, name: str):
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.thresholds.max_error_rate == 0.0

    def test_are_those_that_the_readme_and_the_makefile_name(self):
        assert scenario_names() == ["fraud_burst", "fraud_steady", "smoke"]

    def test_unknown_name_is_refused_with_those_that_there_are(self):
        with pytest.raises(ScenarioError, match=r"'nothing'.*fraud_burst, fraud_steady, smoke"):
            load_scenario("nothing")

    def test_name_is_no_path(self):
        with pytest.raises(ScenarioError, match="no scenario"):
            load_scenario("../scenarios/smoke")


class TestScenario:
    def test_reads_every_key(self):
        scenario = parse("mine", "reference_s = 2\n" + changed("users", "[4, 16]") + RATIO)
        assert (scenario.name, scenario.users, scenario.reference_s) == ("mine", (4, 16), 2.0)
        assert scenario.thresholds == Thresholds(100.0, 250.0, 0.01, min_rate_ratio_to_reference=0.5)

    @pytest.mark.parametrize("key", REQUIRED)
    def test_missing_key_is_refused_by_name(self, key: str):
        with pytest.raises(ScenarioError, match=rf"scenario 'mine': (thresholds\.)?{key} is missing"):
            parse("mine", without(key))

    def test_missing_thresholds_are_refused_by_name(self):
        with pytest.raises(ScenarioError, match=r"thresholds\.min_requests_per_s is missing"):
            parse("mine", PLAIN.partition("[thresholds]")[0])

    @pytest.mark.parametrize(
        ("text", "key"),
        [("user = 4\n" + PLAIN, "user"), (PLAIN + "max_p90_ms = 1\n", r"thresholds\.max_p90_ms")],
    )
    def test_unknown_key_is_refused_by_name(self, text: str, key: str):
        with pytest.raises(ScenarioError, match=rf"unknown key {key};"):
            parse("mine", text)

    @pytest.mark.parametrize(
        ("text", "key"),
        [("max_p99_ms = 1\n" + PLAIN, "max_p99_ms"), (PLAIN + "duration_s = 1\n", r"thresholds\.duration_s")],
    )
    def test_key_in_the_wrong_table_is_unknown(self, text: str, key: str):
        with pytest.raises(ScenarioError, match=rf"unknown key {key};"):
            parse("mine", text)

    def test_name_is_the_files_and_no_key(self):
        with pytest.raises(ScenarioError, match="unknown key name;"):
            parse("mine", 'name = "other"\n' + PLAIN)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("description", '""'),
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
            ("max_error_rate", "1.5"),
            ("max_p99_ms", "nan"),
            ("min_requests_per_s", "false"),
        ],
    )
    def test_value_out_of_bounds_is_refused_by_name(self, key: str, value: str):
        with pytest.raises(ScenarioError, match=rf"{key} must be "):
            parse("mine", changed(key, value))

    def test_ratio_without_a_reference_is_refused(self):
        with pytest.raises(ScenarioError, match="reference_s is missing"):
            parse("mine", PLAIN + RATIO)

    def test_reference_that_nothing_asks_for_is_refused(self):
        with pytest.raises(ScenarioError, match="no ratio"):
            parse("mine", "reference_s = 2\n" + PLAIN)

    def test_transport_has_its_own_thresholds_and_the_common_rest(self):
        scenario = parse("mine", PLAIN + "\n[thresholds.http2]\nmin_requests_per_s = 900\n")
        assert scenario.thresholds_for("http2") == Thresholds(900.0, 250.0, 0.01)
        assert scenario.thresholds_for("grpcio") == scenario.thresholds == Thresholds(100.0, 250.0, 0.01)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("[thresholds.http2]\nmax_p90_ms = 1", r"unknown key thresholds\.http2\.max_p90_ms;"),
            ("[thresholds.http2]\nmax_p99_ms = -1", r"thresholds\.http2\.max_p99_ms must be"),
            ("[thresholds.http3]\nmax_p99_ms = 1", r"unknown key thresholds\.http3;"),
            ("http2 = 1", r"thresholds\.http2 must be a table"),
            ("[thresholds.http2]\n" + RATIO, "reference_s is missing"),
        ],
    )
    def test_mistake_in_a_transports_thresholds_is_refused_by_name(self, lines: str, message: str):
        with pytest.raises(ScenarioError, match=message):
            parse("mine", PLAIN + lines)

    def test_what_is_not_toml_is_refused(self):
        with pytest.raises(ScenarioError, match="'mine' isn't TOML"):
            parse("mine", "users: 4")

    def test_thresholds_that_are_no_table_are_refused(self):
        with pytest.raises(ScenarioError, match="thresholds must be a table"):
            parse("mine", "thresholds = 4")


class TestUsersAt:
    @pytest.mark.parametrize(
        ("elapsed_s", "users"),
        [
            (0.0, 2),
            (3.9, 2),
            (4.0, 2),
            (5.9, 2),
            (6.0, 8),
            (7.9, 8),
            (8.0, 1),
            (9.9, 1),
            (10.0, None),
            (99, None),
        ],
    )
    def test_steps_share_the_duration_after_the_warmup(self, elapsed_s: float, users: int | None):
        assert users_at(elapsed_s, steps=(2, 8, 1), warmup_s=4.0, duration_s=6.0) == users

    def test_one_step_is_constant(self):
        run = [users_at(tenth / 10, steps=(5,), warmup_s=1.0, duration_s=2.0) for tenth in range(31)]
        assert run == [5] * 30 + [None]

    def test_no_step_is_left_out_whatever_the_rounding(self):
        steps = tuple(range(1, 8))
        run = {users_at(tick / 100, steps, warmup_s=0.0, duration_s=0.7) for tick in range(71)}
        assert run == {*steps, None}


THRESHOLDS = Thresholds(
    min_requests_per_s=100,
    max_p99_ms=250,
    max_error_rate=0.01,
    min_rate_ratio_to_reference=0.5,
    max_p99_ratio_to_reference=3.0,
    p99_allowance_ms=10,
)
REFERENCE = Measured(requests=9000, failures=0, answered_per_s=300.0, p99_ms=40.0)
GOOD = Measured(requests=6000, failures=60, answered_per_s=150.0, p99_ms=130.0)


def missed(measured: Measured, *references: Measured, thresholds: Thresholds = THRESHOLDS) -> list[str]:
    return [check.threshold for check in judge(thresholds, measured, references) if not check.ok]


class TestJudge:
    def test_passes_on_every_threshold_exactly_met(self):
        assert missed(GOOD, REFERENCE) == []
        assert len(judge(THRESHOLDS, GOOD, [REFERENCE])) == 5

    @pytest.mark.parametrize(
        ("worse", "reference", "threshold"),
        [
            ({"answered_per_s": 99.0}, {"answered_per_s": 150.0}, "requests/s >= 100"),
            ({"p99_ms": 251.0}, {"p99_ms": 100.0}, "p99 <= 250 ms"),
            ({"failures": 61}, {}, "error rate <= 0.01"),
            ({"answered_per_s": 149.0}, {}, "requests/s >= 0.5 x the reference's"),
            ({"p99_ms": 131.0}, {}, "p99 <= 3 x the reference's + 10 ms"),
        ],
    )
    def test_fails_on_each_threshold_missed(self, worse: dict, reference: dict, threshold: str):
        assert missed(replace(GOOD, **worse), replace(REFERENCE, **reference)) == [threshold]

    def test_references_count_with_their_mean_rate_and_worst_p99(self):
        slow = replace(REFERENCE, answered_per_s=100.0, p99_ms=20.0)
        half_of_the_mean = replace(GOOD, answered_per_s=100.0)
        assert missed(half_of_the_mean, REFERENCE, slow) == []
        assert missed(half_of_the_mean, REFERENCE) == ["requests/s >= 0.5 x the reference's"]
        assert missed(GOOD, slow) == ["p99 <= 3 x the reference's + 10 ms"]

    def test_fails_when_a_ratio_has_no_reference(self):
        assert missed(GOOD) == ["the reference answers every request"]

    def test_fails_when_the_reference_had_errors(self):
        assert missed(GOOD, replace(REFERENCE, failures=1)) == ["the reference answers every request"]

    def test_needs_no_reference_without_ratios(self):
        assert missed(GOOD, thresholds=Thresholds(100, 250, 0.01)) == []

    def test_table_says_what_was_asked_what_came_and_which_was_missed(self):
        lines = table(judge(THRESHOLDS, replace(GOOD, p99_ms=300.0), [REFERENCE])).splitlines()
        assert [line.split()[-1] for line in lines] == ["ok", "yes", "NO", "yes", "yes", "NO"]
        assert re.fullmatch(r"p99 <= 250 ms +300 ms +NO", lines[2])
        assert "300 ms (limit 130, reference 40)" in lines[5]


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
        assert read_measured(path) == GOOD
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


class TestPayloads:
    @pytest.mark.parametrize("rows", [1, 3, 64])
    def test_request_holds_the_rows_it_names(self, rows: int):
        request = pb.ModelInferRequest.FromString(infer_request("fraud", rows))
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        assert (request.model_name, tensor.name, tensor.datatype) == ("fraud", "features", "FP32")
        values = np.frombuffer(raw, np.float32).reshape(list(tensor.shape))
        assert values.shape == (rows, FEATURES)
        assert np.isfinite(values).all()
        assert len(np.unique(values)) > rows

    def test_same_seed_gives_the_same_request(self):
        assert infer_request("fraud", 2, seed=1) == infer_request("fraud", 2, seed=1)
        assert infer_request("fraud", 2, seed=1) != infer_request("fraud", 2, seed=2)

    def test_reference_answers_with_as_many_bytes_as_the_rows_scores_take(self):
        assert output_bytes(infer_response("fraud", 3)) == score_bytes(3) == 12

    def test_empty_reply_holds_no_output(self):
        assert output_bytes(b"") == 0


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
        modules = ["payloads", "reference", "run", "scenario", "shapes", "verdict"]
        code = f"import sys, {', '.join('loadtests.' + name for name in modules)}; "
        code += "sys.exit(' '.join({'gevent', 'locust', 'torch'} & sys.modules.keys()) or 0)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
