from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.repository.conftest import BASE

from tensorferry.cli import main
from tensorferry.commands.models import Row, as_table
from tensorferry.repository.manifest import About
from tensorferry.repository.parcel import pack
from tensorferry.repository.publish import publish
from tensorferry.rollout import changes
from tensorferry.rollout.store import RolloutStore

CREATED = datetime(2030, 1, 31, 12, 30, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two published versions of ``fraud``, and a model that was copied there."""
    root = tmp_path / "models"
    (root / "copied" / "4").mkdir(parents=True)
    (root / "copied" / "4" / "model.onnx").write_bytes(b"x" * 2000)
    (tmp_path / "score.pt").write_bytes(b"model")
    for auc in (0.95, 0.96):
        about = About("fraud", CREATED, author="Ada", git_commit="5f0c1e2", metrics={"auc": auc})
        publish(pack(tmp_path / "score.pt", root / "fraud"), root, about)
    return root


def listed(root: Path, *flags: str) -> int:
    return main(["models", "--repository", str(root), *flags])


def rows(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, dict[str, object]]:
    listed(root, "--json", *flags)
    return {f"{row['model']}/{row['version']}": row for row in json.loads(capsys.readouterr().out)}


def label(root: Path, name: str, version: int) -> None:
    RolloutStore(root / "fraud").update(lambda rollout: changes.set_label(rollout, name, version, 1))


def test_table_is_aligned_and_has_what_was_published(root, capsys):
    assert listed(root) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "MODEL VERSION LABELS FORMAT SIZE DIGEST PUSHED (UTC) BY SERVED METRICS"
    assert " ".join(lines[0].split()) == head
    assert lines[1].split() == ["copied", "4", "-", "onnx", "2.0", "KiB", "-", "-", "-", "yes"]
    assert lines[2].split()[:6] == ["fraud", "1", "-", "pt", "5", "B"]
    assert lines[3].split()[-5:] == ["2030-01-31", "12:30", "Ada", "yes", "auc=0.96"]
    assert {line.index("Ada") for line in lines[2:]} == {lines[0].index("BY")}
    assert max(map(len, lines)) <= 100


def test_metrics_get_lines_of_their_own_where_the_table_is_narrow():
    row = Row("fraud", "1", metrics={f"metric_{number}": 0.123456 for number in range(5)})
    narrow, wide = as_table([row], 80).splitlines(), as_table([row], 200).splitlines()
    assert len(narrow) == 3
    assert narrow[2].startswith("    metric_0=0.123456 ")
    assert len(wide) == 2
    assert wide[1].endswith("metric_4=0.123456")


def test_what_others_wrote_into_a_manifest_does_not_write_to_the_terminal():
    row = Row("fraud", "1", author="Ada\x1b[2J", metrics={"a\nb": 1}, fault="\r")
    assert "\x1b" not in as_table([row], 100)
    assert len(as_table([row], 100).splitlines()) == 3


def test_json_has_everything(root, capsys):
    found = rows(root, capsys)["fraud/2"]
    assert found["digest"] == rows(root, capsys)["fraud/1"]["digest"]
    assert (found["pushed"], found["author"]) == ("2030-01-31T12:30:00Z", "Ada")
    assert (found["format"], found["size_bytes"], found["metrics"]) == ("model.pt", 5, {"auc": 0.96})
    assert (found["git_commit"], found["is_served"], found["labels"]) == ("5f0c1e2", True, [])


def test_served_is_what_the_version_policy_and_the_labels_say(root, capsys):
    assert [row["is_served"] for row in rows(root, capsys).values()] == [True, False, True]
    label(root, "stable", 1)
    found = rows(root, capsys)
    assert [row["is_served"] for row in found.values()] == [True, True, False]
    assert found["fraud/1"]["labels"] == ["stable"]
    label(root, "canary", 2)
    assert [row["is_served"] for row in rows(root, capsys).values()] == [True, True, True]


def test_states_of_the_server_take_the_place_of_served():
    row = Row("fraud", "1", state="UNAVAILABLE", reason="golden.npz: differs", is_served=True)
    head, line, reason = as_table([row, Row("fraud", "2", fault="x")], 100).splitlines()[:3]
    assert head.endswith("STATE")
    assert line.endswith("UNAVAILABLE")
    assert reason == "    golden.npz: differs"


def test_faults_are_shown_at_what_they_are_of(root, capsys):
    (root / "empty").mkdir()
    (root / "fraud" / "2" / "model.pt").unlink()
    (root / "copied" / "config.pbtxt").write_text(BASE + "nonsense: 1\n")
    found = rows(root, capsys)
    assert "has no version directory" in str(found["empty/"]["fault"])
    assert "no such file" in str(found["fraud/2"]["fault"])
    assert "config.pbtxt:4: " in str(found["copied/4"]["fault"])
    listed(root)
    assert "    " + str(found["fraud/2"]["fault"]) in capsys.readouterr().out.splitlines()


def test_state_file_that_cannot_be_read_is_a_fault_of_the_model(root, capsys):
    (root / "fraud" / "rollout.json").write_text("nonsense")
    assert "rollout.json" in str(rows(root, capsys)["fraud/2"]["fault"])


def test_verify_reads_every_file(root, capsys):
    assert listed(root, "--verify") == 0
    capsys.readouterr()
    assert len(str(rows(root, capsys, "--verify")["copied/4"]["digest"])) == 64
    (root / "fraud" / "1" / "model.pt").write_bytes(b"mOdel")
    assert listed(root) == 0
    assert listed(root, "--verify") == 1
    assert "model.pt: sha256 is" in capsys.readouterr().out


def test_manifest_that_is_none_is_a_fault(root, capsys):
    (root / "fraud" / "1" / "manifest.json").write_text("{}")
    assert "manifest.json: schema is missing" in str(rows(root, capsys)["fraud/1"]["fault"])


def test_empty_repository_says_how_to_publish(tmp_path, capsys):
    assert listed(tmp_path) == 0
    assert "tensorferry push" in capsys.readouterr().out


def test_repository_that_is_not_there_is_a_wrong_call(tmp_path, capsys):
    assert listed(tmp_path / "nowhere") == 2
    assert "no such directory" in capsys.readouterr().err


def test_server_that_does_not_answer_is_named(root, capsys):
    assert listed(root, "--server", "localhost:1") == 2
    assert "the server at localhost:1 gave no index: UNAVAILABLE" in capsys.readouterr().err
