"""``tensorferry check``: it looks at what would be served, with all that serving looks at."""

from __future__ import annotations

import pytest

from tensorferry import cli
from tensorferry.checking import check_repository
from tensorferry.testing.models import Identity, write_identity, write_model


def check(root):
    return {
        model.name: ([each.spec.version for each in model.versions], model.faults)
        for model in check_repository(root)
    }


def push(root, file, *flags):
    command = ["push", str(file), "--name", "echo", "--repository", str(root)]
    assert cli.main([*command, "--git-commit", "", "--author", "", *flags]) == 0


@pytest.fixture
def root(tmp_path):
    """A repository with versions 1 and 2 of ``echo``, both published."""
    directory = write_identity(tmp_path / "made", "echo")
    root = tmp_path / "models"
    root.mkdir()
    push(root, directory / "1" / "model.pt", "--config", str(directory / "config.pbtxt"))
    push(root, directory / "1" / "model.pt")
    return root


def test_without_a_rollout_the_policys_version_is_looked_at(root):
    assert check(root) == {"echo": ([2], ())}


def test_with_stable_its_version_and_those_of_other_labels_are(root, tmp_path):
    push(root, tmp_path / "made" / "echo" / "1" / "model.pt", "--label", "stable")
    push(root, tmp_path / "made" / "echo" / "1" / "model.pt")
    assert check(root) == {"echo": ([3], ())}
    push(root, tmp_path / "made" / "echo" / "1" / "model.pt", "--label", "canary")
    assert check(root) == {"echo": ([3, 5], ())}


def test_file_that_differs_from_its_manifest_is_a_fault(root):
    write_model(root, "echo", Identity(), None, version=2)  # another file in its place
    with (root / "echo" / "2" / "model.pt").open("ab") as file:
        file.write(b"x")
    versions, faults = check(root)["echo"]
    assert versions == [2]
    assert len(faults) == 1
    assert "manifest.json says" in faults[0]


def test_rollout_file_that_is_wrong_is_a_fault_and_the_versions_are_looked_at_all_the_same(root):
    (root / "echo" / "rollout.json").write_text('{"labels": {"stable" "1"}}', encoding="utf-8")
    versions, faults = check(root)["echo"]
    assert versions == [2]
    assert len(faults) == 1
    assert str(root / "echo" / "rollout.json") in faults[0]


def test_label_on_a_version_that_is_gone_is_a_fault(root):
    (root / "echo" / "rollout.json").write_text('{"labels": {"stable": "7"}}', encoding="utf-8")
    faults = check(root)["echo"][1]
    assert any("version 7" in fault for fault in faults)
