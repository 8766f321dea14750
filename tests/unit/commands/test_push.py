from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tensorferry.cli import main
from tensorferry.repository import manifest
from tensorferry.rollout import changes
from tensorferry.rollout.state import Guards
from tensorferry.rollout.store import RolloutStore


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: no git repository, with a model's file and an empty model repository."""
    for name in ("GIT_DIR", "TENSORFERRY_MODEL_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.pt").write_bytes(b"model")
    (tmp_path / "models").mkdir()
    return tmp_path


def push(*arguments: str, file: str = "score.pt") -> int:
    return main(["push", file, "--name", "fraud", *arguments])


def about(root: Path, version: int = 1) -> manifest.About:
    found = manifest.read(root / "models" / "fraud" / str(version))
    assert found is not None
    return found.about


def test_what_was_published_and_what_comes_next_is_said(root, capsys):
    assert push() == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("published fraud version 1: 1 file, 5 bytes, ")
    assert second.startswith("next: a server loads it by")
    assert (root / "models" / "fraud" / "1" / "model.pt").read_bytes() == b"model"


def test_json_has_the_version_and_its_digest(root, capsys):
    assert push("--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    assert said["digest"] == manifest.digest_of(root / "models" / "fraud" / "1")


def test_flags_end_in_the_manifest(root):
    flags = ["--metric", "auc=0.96", "--metric", "ks=1", "--author", "Ada", "--tag", "team=risk=high"]
    assert push(*flags, "--git-commit", "5f0c1e2", "--training-data", "md5:00112233") == 0
    found = about(root)
    assert (found.author, found.git_commit, found.training_data) == ("Ada", "5f0c1e2", "md5:00112233")
    assert found.metrics == {"auc": 0.96, "ks": 1.0}
    assert found.tags == {"team": "risk=high"}


def test_training_data_that_is_a_file_is_hashed(root):
    (root / "data.csv").write_text("1,2")
    assert push("--training-data", "data.csv") == 0
    assert about(root).training_data == "sha256:" + hashlib.sha256(b"1,2").hexdigest()


def test_commit_and_author_are_those_of_the_working_directory(root):
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("config", "user.name", "Grace")
    git("config", "user.email", "grace@example.com")
    git("add", "score.pt")
    git("commit", "-q", "-m", "A model")
    assert push() == 0
    assert (about(root).git_commit, about(root).author) == (git("rev-parse", "HEAD"), "Grace")
    (root / "score.pt").write_bytes(b"changed")
    assert push() == 0
    assert about(root, 2).git_commit == git("rev-parse", "HEAD") + "-dirty"


def test_without_a_repository_there_is_no_commit(root):
    assert push() == 0
    assert about(root).git_commit == ""


def test_environment_names_the_model_repository(root, monkeypatch):
    (root / "others").mkdir()
    monkeypatch.setenv("TENSORFERRY_MODEL_REPOSITORY", str(root / "others"))
    assert push() == 0
    assert (root / "others" / "fraud" / "1").is_dir()
    assert push("--repository", str(root / "models")) == 0
    assert (root / "models" / "fraud" / "1").is_dir()


def test_stable_is_said_to_answer_and_other_labels_to_wait_for_traffic(root, capsys):
    assert push("--label", "stable") == 0
    assert "it answers whoever names no version or label" in capsys.readouterr().out
    assert push("--label", "canary") == 0
    assert "callers reach it by the label canary" in capsys.readouterr().out


def test_label_points_at_the_new_version(root, capsys):
    assert push("--label", "stable") == 0
    assert push("--label", "canary") == 0
    assert "labelled canary" in capsys.readouterr().out
    assert RolloutStore(root / "models" / "fraud").read().labels == {"stable": 1, "canary": 2}


def test_label_that_cannot_be_set_is_refused_before_anything_is_published(root, capsys):
    assert push("--label", "not a label") == 2
    assert "nothing was published" in capsys.readouterr().err
    assert list((root / "models").iterdir()) == []


def test_label_of_a_running_canary_is_refused_before_anything_is_published(root, capsys):
    for label in ("stable", "canary"):
        assert push("--label", label) == 0
    store = RolloutStore(root / "models" / "fraud")
    store.update(lambda rollout: changes.start_canary(rollout, "canary", (0.1, 1.0), 100, 0.0, Guards(), 1))
    assert push("--label", "canary") == 2
    assert "runs as a canary" in capsys.readouterr().err
    assert not (root / "models" / "fraud" / "3").exists()


def test_number_that_a_label_points_at_is_not_used_again(root):
    assert push() == 0
    assert push("--label", "stable") == 0
    (root / "models" / "fraud" / "2").rename(root / "removed")
    assert push() == 0
    assert (root / "models" / "fraud" / "3").is_dir()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--metric", "auc"], "--metric auc: must be a name and a value, with = between"),
        (["--metric", "auc=high"], "--metric auc=high: must be a number"),
        (["--metric", "auc=nan"], "--metric auc=nan: must be a number"),
        (["--metric", "auc=1", "--metric", "auc=2"], "--metric auc is given twice"),
        (["--tag", "=x"], "--tag =x: must be a name"),
        (["--training-data", "nowhere.csv"], "is neither a file nor a hash"),
        (["--repository", "nowhere"], "nowhere: no such directory"),
        (["--golden", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--config", "nowhere.pbtxt"], "nowhere.pbtxt: can't be read"),
        (["--replace-config"], "--replace-config needs --config"),
        (["--name", "../fraud"], "the model's name is '../fraud'"),
        (["--name", "a\0b"], "the model's name is"),
        (["--name", ".."], "the model's name is '..'"),
    ],
)
def test_wrong_call_publishes_nothing(root, capsys, flags, expected):
    assert push(*flags) == 2
    assert expected in capsys.readouterr().err
    assert sorted(path.name for path in root.rglob("*")) == ["models", "score.pt"]


def test_file_that_is_not_there_is_named(root, capsys):
    assert push(file="nowhere.pt") == 2
    assert "nowhere.pt: no such file" in capsys.readouterr().err
