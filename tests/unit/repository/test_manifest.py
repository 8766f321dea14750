from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.errors import ModelConfigError, ModelLoadError
from tensorferry.repository import manifest
from tensorferry.repository.manifest import About
from tensorferry.repository.versions import content_of

CREATED = datetime(2030, 1, 31, 12, 0, 5, tzinfo=UTC)
ABOUT = About(
    model="fraud",
    created=CREATED,
    author="Ada",
    git_commit="5f0c1e2",
    training_data="sha256:00ff",
    metrics={"auc": 0.96, "rows": 12},
    tags={"team": "risk"},
)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory of a Python model with a package, a golden file and a manifest."""
    directory = tmp_path / "fraud" / "1"
    (directory / "helpers").mkdir(parents=True)
    (directory / "model.py").write_text("import helpers.scale")
    (directory / "helpers" / "scale.py").write_text("factor = 2")
    (directory / "golden.json").write_text("{}")
    manifest.write(directory, ABOUT)
    return directory


def broken(version: Path, **changes: object) -> str:
    """Change fields of the manifest (None removes one); return why it is refused, without the path."""
    path = version / manifest.FILENAME
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    with pytest.raises(ModelConfigError) as raised:
        manifest.read(version)
    assert str(raised.value).startswith(f"{path}: ")
    return str(raised.value).removeprefix(f"{path}: ")


def test_what_is_written_is_read_back(version):
    found = manifest.read(version)
    assert found is not None
    assert found.about == ABOUT
    assert list(found.files) == ["golden.json", "helpers/scale.py", "model.py"]
    assert found.files["golden.json"].size_bytes == 2
    assert found.files["golden.json"].sha256.startswith("44136fa355b3678a")
    manifest.verify(version)


def test_the_time_is_written_in_utc(tmp_path):
    manifest.write(tmp_path, replace(ABOUT, created=CREATED.astimezone(timezone(timedelta(hours=5)))))
    assert json.loads((tmp_path / manifest.FILENAME).read_text())["created"] == "2030-01-31T12:00:05Z"


def test_version_without_a_manifest_is_as_good_as_any(tmp_path):
    (tmp_path / "model.pt").touch()
    assert manifest.read(tmp_path) is None
    manifest.verify(tmp_path)


@pytest.mark.parametrize("name", [".hidden", "__pycache__/model.pyc", ".git/config"])
def test_hidden_files_and_what_running_leaves_behind_are_no_fault(version, name):
    (version / name).parent.mkdir(exist_ok=True)
    (version / name).touch()
    manifest.verify(version)


def test_changed_missing_and_extra_files_are_named(version):
    for change, name, what in (
        (lambda: (version / "model.py").write_text("import helpers.scalf"), "model.py", "sha256 is"),
        (lambda: (version / "model.py").write_text("import"), "model.py", "has 6 bytes, and manifest"),
        (lambda: (version / "helpers" / "more.py").touch(), "helpers/more.py", "not named in manifest.json"),
        (lambda: (version / "golden.json").unlink(), "golden.json", "named in manifest.json, and missing"),
    ):
        change()
        with pytest.raises(ModelLoadError, match=what) as raised:
            manifest.verify(version)
        assert str(raised.value).startswith(f"{version / name}: ")


def test_linked_directory_is_refused_since_its_files_are_not_looked_at(version, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (version / "package").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelConfigError, match="package: a linked directory"):
        manifest.verify(version)


def test_pipe_is_refused_and_not_waited_for(version):
    os.mkfifo(version / "pipe")
    with pytest.raises(ModelConfigError, match="pipe: not a plain file"):
        manifest.verify(version)
    (version / "pipe").unlink()
    (version / manifest.FILENAME).unlink()
    os.mkfifo(version / manifest.FILENAME)
    with pytest.raises(ModelConfigError, match="not a plain file"):
        manifest.read(version)


def test_unreadable_link_is_a_load_error(version):
    (version / "model.py").unlink()
    (version / "model.py").symlink_to("nowhere")
    with pytest.raises(ModelLoadError, match=r"model\.py: can't be read: No such file"):
        manifest.verify(version)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": 2}, "schema is 2, and this version of Tensorferry knows 1"),
        ({"schema": True}, "schema must be a whole number, and is 'True'"),
        ({"files": None}, "files is missing"),
        ({"author": 1}, "author must be a text"),
        ({"authors": ["Ada"]}, "the field 'authors' isn't one of a manifest; did you mean 'author'?"),
        ({"created": "yesterday"}, "created must be a time such as 2030-01-31T12:00:00Z"),
        ({"created": "2030-02-31T12:00:00Z"}, "created must be a time"),
        ({"created": "2030-01-31T12:00:00"}, "created must be a time"),
        ({"metrics": {"auc": "high"}}, "metrics.auc must be a number, and is 'high'"),
        ({"metrics": {"auc": 10**400}}, "metrics.auc must be a finite number"),
        ({"metrics": []}, "metrics must be an object"),
        ({"tags": {"team": 1}}, "tags.team must be a text"),
        ({"files": {"../x": {"sha256": "0" * 64, "size_bytes": 1}}}, "files must hold paths inside"),
        ({"files": {"/x": {"sha256": "0" * 64, "size_bytes": 1}}}, "files must hold paths inside"),
        ({"files": {"x": {"sha256": "0" * 63, "size_bytes": 1}}}, "must have a sha256 of 64 hexadecimal"),
        ({"files": {"x": {"sha256": "0" * 64, "size_bytes": -1}}}, "must have a size_bytes of 0 or more"),
        ({"files": {"x": {"sha256": "0" * 64}}}, "files.x must have sha256 and size_bytes alone"),
    ],
)
def test_fields_are_read_strictly(version, changes, expected):
    assert expected in broken(version, **changes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"schema": 1,\n}', ":2: not JSON"),
        (b'{"schema": 1, "schema": 1}', "'schema' is given twice"),
        (b'{"schema": NaN}', "holds NaN"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b" " * ((4 << 20) + 1), "larger than"),
    ],
)
def test_what_is_no_manifest_is_refused(version, content, expected):
    (version / manifest.FILENAME).write_bytes(content)
    with pytest.raises(ModelConfigError, match=expected):
        manifest.read(version)


@given(content=st.binary(max_size=200))
def test_any_bytes_end_as_a_manifest_or_as_its_error(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("version")
    (directory / manifest.FILENAME).write_bytes(content)
    with pytest.raises(ModelConfigError):
        manifest.read(directory)


def test_digest_is_that_of_the_content_wherever_it_lies(version, tmp_path):
    found = manifest.read(version)
    assert found is not None
    assert manifest.digest_of(version) == found.digest
    copied = version.rename(tmp_path / "copy")
    (copied / manifest.FILENAME).unlink()
    assert manifest.digest_of(copied) == found.digest
    (copied / "golden.json").rename(copied / "golden.npz")
    assert manifest.digest_of(copied) != found.digest


def test_an_existing_manifest_is_not_overwritten(version):
    with pytest.raises(FileExistsError):
        manifest.write(version, ABOUT)


def test_name_that_is_no_text_is_refused_and_still_has_a_fingerprint(tmp_path):
    (tmp_path / os.fsdecode(b"model\xff.pt")).touch()
    assert content_of(tmp_path)
    with pytest.raises(ModelConfigError, match="characters that can't be printed"):
        manifest.digest_of(tmp_path)


def test_linked_directory_changes_the_fingerprint(tmp_path):
    (tmp_path / "1").mkdir()
    before = content_of(tmp_path / "1")
    (tmp_path / "1" / "package").symlink_to(tmp_path)
    assert content_of(tmp_path / "1") != before
