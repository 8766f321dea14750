"""The rollout's demonstration without its server: what is sent and written down, verdict, README."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo import rollout
from demo.callers import FRAUD_SHARE, Answers, card, traffic
from demo.drive import infer_request
from demo.transactions import generate
from demo.verdict import Arm, Verdict, render

from tensorferry.wire import open_inference_pb2 as pb

README = Path(__file__).parents[2] / "README.md"

GOOD = Verdict(
    calls=12_345,
    failures={},
    answered_by_bad=102,
    answered_by_bad_afterwards=0,
    is_rolled_back=True,
    reason="score shift: 0.51",
    arms=[Arm(1, 9_876, (0.953, 0.947, 0.959)), Arm(2, 102, (0.357, 0.246, 0.486))],
)


def answers(rows: list[int], versions: list[int], at_s: list[float]) -> Answers:
    return Answers(np.array(rows), np.array(versions), np.array(at_s), {})


class TestReadme:
    def test_shows_the_commands_that_are_run_in_their_order(self):
        shown = re.findall(r"^ *\$ (tensorferry .*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
        wanted = [rollout.PUSH, f"{rollout.SERVE} &", rollout.PUSH_NEXT, rollout.CANARY, rollout.REPORT]
        assert shown == wanted


class TestTraffic:
    @pytest.mark.parametrize("made_up", [True, False])
    def test_holds_frauds_enough_for_a_hundred_answers_to_be_judged_by(self, made_up):
        test = generate(3_000, seed=1)
        sent = traffic(test, 5_000, seed=1, made_up=made_up)
        assert sent.features.shape == (5_000, 30)
        assert sent.features.dtype == np.float32
        assert sent.frauds / len(sent) == pytest.approx(FRAUD_SHARE, abs=0.03)

    def test_of_a_file_holds_its_transactions_with_their_labels(self):
        test = generate(3_000, seed=1)
        known = {
            (row.tobytes(), bool(fraud)) for row, fraud in zip(test.features, test.is_fraud, strict=True)
        }
        sent = traffic(test, 500, seed=1, made_up=False)
        assert {
            (row.tobytes(), bool(fraud)) for row, fraud in zip(sent.features, sent.is_fraud, strict=True)
        } <= known

    def test_made_up_is_of_none_of_the_transactions_that_were_trained_on(self):
        test = generate(3_000, seed=1)
        sent = traffic(test, 3_000, seed=1, made_up=True)
        assert not {row.tobytes() for row in sent.features} & {row.tobytes() for row in test.features}

    def test_request_names_its_card(self):
        request = pb.ModelInferRequest.FromString(infer_request(np.zeros(30, np.float32), card(17)))
        assert request.parameters["split_key"].string_param == "card-000017"

    def test_request_without_a_card_has_no_parameter(self):
        request = pb.ModelInferRequest.FromString(infer_request(np.zeros(30, np.float32)))
        assert not request.parameters


class TestMislabelled:
    def test_calls_fraud_what_is_none(self):
        made = generate(500, seed=1)
        wrong = rollout.mislabelled(made)
        assert wrong.frauds == len(made) - made.frauds
        assert not (wrong.is_fraud & made.is_fraud).any()
        assert np.array_equal(wrong.features, made.features)


class TestAnswers:
    def test_are_counted_by_version(self):
        assert answers([0, 1, 2], [1, 2, 1], [1.0, 2.0, 3.0]).by(1) == 2

    def test_are_counted_from_an_instant_on(self):
        given = answers([0, 1, 2, 3], [2, 2, 1, 2], [1.0, 2.0, 3.0, 3.0])
        assert given.by_after(2, 2.0) == 1
        assert given.by_after(2, 3.0) == 0

    def test_calls_are_those_with_and_without_an_answer(self):
        given = replace(answers([0, 1], [1, 1], [1.0, 2.0]), failures={"UNAVAILABLE: gone": 3})
        assert (given.calls, given.failed) == (5, 3)

    def test_labels_of_what_was_answered_are_written_once_for_each_card(self, tmp_path):
        sent = generate(500, seed=1)
        fraud = int(np.flatnonzero(sent.is_fraud)[0])
        ordinary = int(np.flatnonzero(~sent.is_fraud)[0])
        path = tmp_path / "labels.csv"
        rollout.write_labels(path, answers([fraud, ordinary, fraud], [1, 1, 2], [1.0, 2.0, 3.0]), sent)
        with path.open(newline="", encoding="utf-8") as file:
            labels = {line["key"]: line["label"] for line in csv.DictReader(file)}
        assert labels == {card(fraud): "1", card(ordinary): "0"}


class TestVerdict:
    def test_has_no_problems_where_all_is_as_it_should_be(self):
        assert GOOD.problems == []
        assert "passed" in render(GOOD)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"failures": {"UNAVAILABLE: gone": 2}}, "2 calls failed: UNAVAILABLE: gone"),
            ({"is_rolled_back": False}, "the bad version wasn't taken back"),
            ({"reason": ""}, "without a reason"),
            ({"answered_by_bad": 0}, "answered nobody"),
            ({"answered_by_bad_afterwards": 1}, "1 calls were answered by it after the rollback"),
            ({"arms": [GOOD.arms[0], Arm(2, 3, None)]}, "1 versions have an AUC"),
        ],
    )
    def test_names_what_is_wrong(self, change, problem):
        verdict = replace(GOOD, **change)
        assert len(verdict.problems) == 1
        assert problem in verdict.problems[0]
        text = render(verdict)
        assert problem in text
        assert "FAILED" in text

    def test_shows_each_versions_auc_with_its_interval(self):
        assert "0.357, 95 % interval 0.246 to 0.486, 102 labels" in render(GOOD)

    def test_says_why_there_is_no_auc(self):
        text = render(replace(GOOD, arms=[Arm(2, 3, None)]))
        assert "unknown: 3 labels, and both kinds are needed" in text

    def test_stays_within_a_hundred_columns(self):
        text = render(replace(GOOD, reason="score shift: " + "very far " * 30))
        assert max(map(len, text.splitlines())) <= 100
