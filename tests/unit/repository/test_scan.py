from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.repository.conftest import BASE, write_model

from tensorferry.errors import ConfigurationError
from tensorferry.repository import read_model, scan

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""


def served(model):
    assert model.error is None
    return [spec.version for spec in model.versions]


def test_models_are_sorted_by_name_and_a_broken_one_takes_no_other_with_it(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.pt").touch()
    (tmp_path / "b" / "config.pbtxt").write_text("nonsense")
    models = scan(tmp_path)
    assert [(model.name, model.error is None) for model in models] == [("a", True), ("b", False), ("c", True)]


def test_hidden_directories_and_plain_files_are_passed_over(tmp_path):
    write_model(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").touch()
    assert [model.name for model in scan(tmp_path)] == ["fraud"]


def test_linked_model_directory_is_followed_under_the_name_of_the_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    directory = write_model(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "scorer").symlink_to(directory)
    (model,) = scan(tmp_path / "root")
    assert model.name == "scorer"
    assert model.versions[0].name == "scorer"
    assert model.versions[0].path.read_bytes() == b"model"


def test_dangling_link_is_a_model_with_an_error(tmp_path):
    (tmp_path / "fraud").symlink_to("nowhere")
    (model,) = scan(tmp_path)
    assert "can't be read: No such file" in str(model.error)


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda root: None, "no such directory"),
        (lambda root: root.touch(), "not a directory"),
        (lambda root: root.mkdir(), "holds no model"),
    ],
    ids=["missing", "file", "empty"],
)
def test_repository_that_cannot_be_scanned_raises(tmp_path, prepare, expected):
    root = tmp_path / "root"
    prepare(root)
    with pytest.raises(ConfigurationError, match=expected):
        scan(root)


def test_repository_with_hidden_directories_only_is_empty(tmp_path):
    (tmp_path / ".cache").mkdir()
    with pytest.raises(ConfigurationError, match="holds no model"):
        scan(tmp_path)


@pytest.mark.parametrize("name", [b"bell\x07", b"line\nbreak", b"latin\xe9"])
def test_name_that_cannot_be_printed_is_refused_and_shown_escaped(tmp_path, name):
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    (model,) = scan(tmp_path)
    assert "can't be printed; rename it" in str(model.error)
    assert str(model.error).isprintable()
    assert model.name.isprintable()
    assert model.config.name == model.name


def test_missing_model_directory_is_an_entry_with_an_error(tmp_path):
    assert "can't be read" in str(read_model(tmp_path / "nothing").error)


def test_model_directory_without_a_name_is_an_entry_with_an_error():
    assert "needs a name" in str(read_model(Path(".")).error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every directory")
def test_repository_without_permission_raises(tmp_path):
    tmp_path.chmod(0)
    with pytest.raises(ConfigurationError, match="can't be read: Permission denied"):
        scan(tmp_path)


# -- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [10]),
        ("version_policy {}", [10]),
        ("version_policy { latest {} }", [10]),
        ("version_policy { latest { num_versions: 2 } }", [9, 10]),
        ("version_policy { latest { num_versions: 7 } }", [2, 9, 10]),
        ("version_policy { all {} }", [2, 9, 10]),
        ("version_policy { specific { versions: [ 10, 2 ] } }", [2, 10]),
    ],
)
def test_version_policy_chooses_versions_by_number(read, policy, expected):
    model = read(policy + TENSORS, versions=(10, 9, 2))
    assert served(model) == expected
    assert model.available == (2, 9, 10)
    assert [spec.path.parent.name for spec in model.versions] == [str(version) for version in expected]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest {\n num_versions: 0 }", "config.pbtxt:2: num_versions is 0"),
        ("specific {}", "config.pbtxt:1: specific names no version"),
        ("specific {\n versions: [ 2,\n 3 ] }", "config.pbtxt:3: version 3 isn't there; there are 2, 9"),
        ("specific {\n versions: 2\n versions: 2 }", "config.pbtxt:3: version 2 is listed twice"),
    ],
)
def test_version_policy_that_cannot_be_followed_is_refused(refusal, policy, expected):
    assert refusal(f"version_policy {{ {policy} }} {TENSORS}", versions=(2, 9)).startswith(expected)


def test_available_versions_are_known_where_the_configuration_is_broken(read):
    model = read("nonsense", versions=(1, 3))
    assert model.error is not None
    assert model.available == (1, 3)


@pytest.mark.parametrize("name", ["0", "01", "-1", "+1", "1a", "v1", "1.0", "٣", "1" * 19, ".1"])
def test_directory_that_is_no_version_is_passed_over(tmp_path, name):
    directory = write_model(tmp_path)
    (directory / name).mkdir()
    assert read_model(directory).available == (1,)


def test_plain_file_with_a_version_number_is_passed_over(tmp_path):
    directory = write_model(tmp_path)
    (directory / "2").touch()
    assert read_model(directory).available == (1,)


def test_model_without_a_version_is_refused(refusal):
    assert "has no version directory; put the model's file into 1/model.pt" in refusal(TENSORS, versions=())


def test_served_version_without_its_file_is_refused(tmp_path):
    directory = write_model(tmp_path)
    (directory / "2").mkdir()
    model = read_model(directory)
    assert re.search(r"fraud/2/model\.pt: version 2 of the model has no such file", str(model.error))
    assert model.versions == ()


def test_version_that_is_not_served_needs_no_file(tmp_path):
    directory = write_model(tmp_path, versions=(2,))
    (directory / "1").mkdir()
    assert served(read_model(directory)) == [2]


def test_directory_in_place_of_the_models_file_is_refused(tmp_path):
    directory = write_model(tmp_path, versions=())
    (directory / "1" / "model.pt").mkdir(parents=True)
    assert "1/model.pt: is a directory" in str(read_model(directory).error)


@pytest.mark.parametrize(
    ("filename", "platform", "backend"),
    [
        ("model.pt", "pytorch_libtorch", "pytorch"),
        ("model.pt2", "torch_aoti", "pytorch"),
        ("model.onnx", "onnxruntime_onnx", "onnxruntime"),
        ("model.py", "python", "python"),
    ],
)
def test_without_configuration_each_versions_file_says_its_format(tmp_path, filename, platform, backend):
    directory = write_model(tmp_path, versions=())
    (directory / "1").mkdir()
    (directory / "1" / filename).write_bytes(b"model")
    model = read_model(directory)
    assert model.error is None
    (found,) = model.versions
    assert (found.platform, found.backend, found.path.name) == (platform, backend, filename)
    assert model.config.platform == platform


def test_versions_may_have_different_formats(tmp_path):
    config = BASE + "version_policy { all { } }"
    directory = write_model(tmp_path, config, versions=(1,))
    (directory / "2").mkdir()
    (directory / "2" / "model.onnx").write_bytes(b"model")
    model = read_model(directory)
    assert model.error is None
    assert [each.platform for each in model.versions] == ["pytorch_libtorch", "onnxruntime_onnx"]


def test_format_that_the_configuration_states_holds_for_every_version(tmp_path):
    directory = write_model(tmp_path, BASE + 'platform: "onnxruntime_onnx" version_policy { all { } }')
    assert "1/model.onnx: version 1 of the model has no such file" in str(read_model(directory).error)


def test_version_with_a_fault_leaves_the_others_as_they_are(tmp_path):
    directory = write_model(tmp_path, BASE + "version_policy { all { } }", versions=(1, 3))
    (directory / "2").mkdir()
    model = read_model(directory)
    assert model.error is None
    assert served(model) == [1, 3]
    assert list(model.faults) == [2]
    assert "version 2 of the model has no such file" in str(model.faults[2])


def test_scanning_does_not_import_torch():
    code = "import sys, tensorferry.repository; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_with_path()).returncode == 0


def _with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
