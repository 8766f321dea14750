"""``tensorferry rollout report`` and ``feedback``."""

from __future__ import annotations

import io
import json
import math

import pytest
from tests.unit.commands.rollout_server import RolloutService, serving

from tensorferry import cli
from tensorferry.commands.rollout_report import as_text
from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, Guards
from tensorferry.wire import rollout_pb2 as pb

BOUNDS = (0.1, 0.5)


def arm(version: int, counts=(80, 15, 5), bounds=BOUNDS, **more) -> pb.Arm:
    histogram = pb.Histogram(bounds=bounds, counts=counts)
    figures = {"requests": 100, "latency_p50_ms": 1.25, "latency_p99_ms": 4.5, "score_mean": 0.0312}
    return pb.Arm(version=version, scores=histogram, **{**figures, **more})


def report_of(*arms: pb.Arm) -> pb.RolloutReportResponse:
    return pb.RolloutReportResponse(model_name="fraud", arms=arms)


def canary():
    rollout = changes.set_label(EMPTY, "stable", 3, 0)
    return changes.start_canary(rollout, "4", (), 0, 0.0, Guards(), 0)


def test_each_arm_has_a_line_with_its_role():
    text = as_text(report_of(arm(3, share=0.99, errors=2), arm(4, share=0.01, not_finite=7)), canary())
    assert text.splitlines()[2:5] == [
        "VERSION  ROLE    SHARE  REQUESTS  ERRORS  NOT FINITE  P50 ms  P99 ms  SCORE MEAN",
        "      3  stable   99 %       100       2           0    1.25     4.5      0.0312",
        "      4  canary    1 %       100       0           7    1.25     4.5      0.0312",
    ]


def test_scores_stand_side_by_side_as_parts_of_each_arms_own():
    text = as_text(report_of(arm(3), arm(4, counts=(0, 4, 0))), canary())
    lines = text[text.index("scores") :].splitlines()
    assert lines[0].split() == ["scores", "version", "3", "version", "4"]
    assert [line.replace("#", "").split() for line in lines[1:]] == [
        ["below", "0.1", "80.0", "%", "0.0", "%"],
        ["0.1", "to", "0.5", "15.0", "%", "100.0", "%"],
        ["0.5", "and", "above", "5.0", "%", "0.0", "%"],
    ]
    bars = [line.count("#") for line in lines[1:]]
    assert bars[1] > bars[0] > bars[2] > 0


def test_scores_with_other_bounds_stand_below():
    text = as_text(report_of(arm(3), arm(4, bounds=(1.0, 9.0))), canary())
    assert text.count("scores ") == 2


def test_what_is_rare_is_still_to_be_seen():
    text = as_text(report_of(arm(3, counts=(100_000, 0, 1))), canary())
    assert text.splitlines()[-1].endswith("0.0 % .")


def test_labels_have_an_auc_with_its_interval_or_the_reason_why_not():
    interval = pb.Interval(value=0.961, low=0.953, high=0.969)
    text = as_text(report_of(arm(3, labelled=2000, auc=interval), arm(4, labelled=5)), canary())
    assert "      3        2000  0.9610   0.9530 to 0.9690" in text
    assert "      4           5       -  needs both labels" in text
    assert "AUC" not in as_text(report_of(arm(3), arm(4)), canary())


def test_a_shadow_has_its_differences_and_what_was_dropped():
    differences = pb.Histogram(bounds=(0.001,), counts=(9, 1))
    shadow = arm(5, is_shadow=True, compared=75, dropped=25, score_differences=differences)
    text = as_text(report_of(arm(3, share=1.0), shadow), canary())
    assert "shadow version 5: 75 compared, 25 dropped (25 % of the copies)" in text
    assert "|difference|" in text


def test_an_arm_without_answers_has_no_figures():
    text = as_text(report_of(pb.Arm(version=4, share=0.01)), canary())
    assert text.splitlines()[-1].split() == ["4", "canary", "1", "%", "0", "0", "0", "-", "-", "-"]
    slow = as_text(report_of(arm(4, latency_p99_ms=math.inf)), canary())
    assert "none in time" in slow


def test_without_arms_it_says_what_would_make_some():
    assert as_text(report_of(), EMPTY) == "fraud: nothing to report without a canary, split or shadow"


def test_no_line_of_a_report_is_wider_than_100_columns():
    rollout = canary()
    for label in ("a" * 60, "b" * 60):
        rollout = changes.set_label(rollout, label, 4, 0)
    large = {"requests": 10**12, "errors": 10**9, "latency_p99_ms": 123456.7}
    arms = [arm(version, share=0.123456, **large) for version in (3, 4, 5, 6, 7)]
    for shown in (arms[:1], arms[:4], arms):
        assert max(map(len, as_text(report_of(*shown), rollout).splitlines())) <= 100


@pytest.fixture
def service():
    return RolloutService()


@pytest.fixture
def call(service, capsys):
    with serving(service) as address:

        def call(*arguments: str) -> tuple[int, str, str]:
            status = cli.main([*arguments, "--server", address])
            printed = capsys.readouterr()
            return status, printed.out, printed.err

        yield call


def test_the_report_command_prints_text_or_json(call, service):
    service.rollout = canary()
    service.report = report_of(arm(3, share=0.99), arm(4, share=0.01))
    assert "stable" in call("rollout", "report", "fraud")[1]
    values = json.loads(call("rollout", "report", "fraud", "--json")[1])
    assert [each["version"] for each in values["arms"]] == ["3", "4"]
    assert values["arms"][0]["errors"] == "0"


# -- feedback


def feedback_file(tmp_path, text: str, encoding: str = "utf-8") -> str:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding=encoding)
    return str(path)


def test_labels_are_sent_in_chunks_and_matches_are_counted(call, service, tmp_path):
    rows = [f"{'known' if number % 2 else 'lost'}-{number},{number % 2}" for number in range(12_000)]
    path = feedback_file(tmp_path, "\n".join(["key,label", *rows]))
    status, out, _ = call("feedback", path, "--name", "fraud")
    assert (status, out) == (
        0,
        "6000 of 12000 labels matched; 6000 belong to no request that is remembered\n",
    )
    assert [len(request.labels) for request in service.requests] == [5000, 5000, 2000]
    sent = [(label.key, label.value) for request in service.requests for label in request.labels]
    assert sent[:2] == [("lost-0", 0), ("known-1", 1)]
    assert len(set(sent)) == 12_000


def test_columns_may_be_in_any_order_among_others(call, service, tmp_path):
    path = feedback_file(tmp_path, 'label,amount,key\r\n1,"1,50",known-ä\r\n\r\n0,2,known-b\r\n', "utf-8-sig")
    assert json.loads(call("feedback", path, "--name", "fraud", "--json")[1]) == {"labels": 2, "matched": 2}
    assert [(label.key, label.value) for label in service.requests[0].labels] == [
        ("known-ä", 1),
        ("known-b", 0),
    ]


def test_labels_may_come_from_standard_input(call, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("key,label\nknown,1\n"))
    assert call("feedback", "-", "--name", "fraud")[1] == "1 of 1 labels matched\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: the first line has to name the columns key and label"),
        ("id,label\na,1\n", ":1: the first line has to name"),
        ("key,label\na,1\nb,2\n", ":3: label '2'; it must be 0 or 1"),
        ("key,label\na,1\nb\n", ":3: 1 of 2 columns"),
        ("key,label\n,1\n", ":2: the key is empty"),
    ],
)
def test_a_file_with_a_fault_is_not_sent_at_all(call, service, tmp_path, text, said):
    status, _, err = call("feedback", feedback_file(tmp_path, text), "--name", "fraud")
    assert status == 2
    assert f"labels.csv{said}" in err
    assert service.requests == []


def test_a_file_that_is_not_there_is_said(call):
    status, _, err = call("feedback", "/nowhere.csv", "--name", "fraud")
    assert status == 2
    assert "No such file" in err


def test_a_model_that_is_not_there_is_said(call, tmp_path):
    status, _, err = call("feedback", feedback_file(tmp_path, "key,label\na,1\n"), "--name", "frd")
    assert (status, err) == (1, "tensorferry: no model 'frd'\n")
