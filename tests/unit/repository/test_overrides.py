from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.repository.conftest import BASE, write_model

from tensorferry.errors import ConfigurationError, InvalidRequest, ModelConfigError
from tensorferry.repository import read_model
from tensorferry.repository.overrides import MAX_OVERRIDE_FILES, override_source, write_files

CONFIG = """{
  "max_batch_size": 4,
  "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
  "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}]
}"""


def parsed(text: str):
    return override_source("fraud", text, Path("/models/fraud"))


def refusal(text: str) -> str:
    with pytest.raises(ModelConfigError) as raised:
        parsed(text)
    where = "/models/fraud/<configuration of fraud in the load request>:"
    assert str(raised.value).startswith(where)
    return str(raised.value).removeprefix(where)


def test_configuration_stands_in_for_the_one_of_the_directory(tmp_path):
    directory = write_model(tmp_path, BASE, versions=(1, 2))
    changed = CONFIG.replace("4", '4, "version_policy": {"all": {}}')
    model = read_model(directory, override=override_source("fraud", changed, directory))
    assert model.error is None
    assert [spec.version for spec in model.versions] == [1, 2]
    assert model.versions[0].max_batch_size == 4
    assert model.versions[0].path == directory / "1" / "model.pt"


def test_what_the_server_says_of_a_model_is_taken_back(tmp_path):
    # As tritonclient returns it: protobuf's JSON has 64-bit integers in quotes.
    served = read_model(write_model(tmp_path, BASE + 'parameters { key: "1" value { string_value: "2" } }'))
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    text = json_format.MessageToJson(served.config, **options)
    assert '"-1"' in text
    assert parsed(text).config == served.config


def test_tabs_newlines_and_escapes_are_those_of_json():
    text = '{\t"name":\t"fr\\u0061ud",\r\n\t'
    text += '"default_model_filename": "\\ud83d\\ude00\\/\\"\\\\\\t123",\n\n"input":[]}'
    config = parsed(text).config
    assert config.name == "fraud"
    assert config.default_model_filename == '\U0001f600/"\\\t123'


@given(
    text=st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc",), exclude_characters="\x85\u2028\u2029")
    )
)
def test_any_text_in_a_field_comes_through_in_both_of_jsons_spellings(text):
    for ascii_only in (True, False):
        written = json.dumps({"default_model_filename": text}, ensure_ascii=ascii_only)
        assert parsed(written).config.default_model_filename == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n"max_batch_size": 4,\n"max_batchsize": 4\n}', "3: Tensorferry doesn't support the field"),
        ('{\n\n"max_batch_size": "many"\n}', "3: max_batch_size takes an integer"),
        ('{"max_batch_size": 4,\n}', "2: not JSON"),
        ("max_batch_size: 4", "1: not JSON"),
        ("[]", " not a JSON object"),
        ('{"max_batch_size": 4, "max_batch_size": 5}', "1: 'max_batch_size' is given twice"),
        ('{"max_batch_size": 4.5}', "1: max_batch_size takes an integer"),
        ('{"input": [' + "[" * 100_000 + "]" * 100_000 + "]}", " nested too deeply"),
        ('{"name": "' + "a" * (1 << 20) + '"}', " larger than"),
        ('{"name": "\\ud83d"}', "1: not YAML"),
        ("1" * 10_000, " not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_in_the_request(text, expected):
    assert refusal(text).startswith(expected)


@given(text=st.text())
def test_any_text_ends_as_a_configuration_or_as_its_error(text):
    for candidate in (
        text,
        json.dumps({text: text}),
        json.dumps({"parameters": {text: {"string_value": text}}}),
    ):
        with contextlib.suppress(ModelConfigError):
            parsed(candidate)


def test_files_make_up_a_model_directory(tmp_path):
    files = {"file:1/model.pt": b"one", "file:2/lib/a.py": b"two", "3/model.pt": b"three"}
    directory = write_files("fraud", files, CONFIG, tmp_path)
    assert directory.name == "fraud"
    assert directory.parent.parent == tmp_path
    assert (directory / "1" / "model.pt").read_bytes() == b"one"
    assert (directory / "2" / "lib" / "a.py").read_bytes() == b"two"
    model = read_model(directory, override=override_source("fraud", CONFIG, directory))
    assert [spec.path for spec in model.versions] == [directory / "3" / "model.pt"]


def test_two_requests_get_a_directory_each(tmp_path):
    first, second = (write_files("fraud", {"file:1/model.pt": b"x"}, CONFIG, tmp_path) for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "1/../../x", "1/./x", "1//x", "1/", ".", "..", ".hidden/x", "1/.x", "1\\x",
     "1/\0", "1/a\nb", "1/" + "a" * 1000],
)  # fmt: skip
def test_path_outside_the_directory_or_of_no_use_is_refused(tmp_path, path):
    with pytest.raises(InvalidRequest, match="names no file to load"):
        write_files("fraud", {f"file:{path}": b"x", "file:1/model.pt": b"x"}, CONFIG, tmp_path)
    assert os.listdir(tmp_path) == []


@given(path=st.text(st.sampled_from("./\\1a~\0 "), max_size=12))
def test_no_path_leaves_the_directory(tmp_path_factory, path):
    root = tmp_path_factory.mktemp("root")
    try:
        directory = write_files("fraud", {path: b"x", "file:1/model.pt": b"x"}, CONFIG, root / ".")
    except (InvalidRequest, ConfigurationError):
        assert os.listdir(root) == []
        return
    written = [file for file in root.rglob("*") if file.is_file()]
    assert len(written) in (1, 2)
    assert all(directory in file.parents for file in written)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".x"])
def test_model_name_that_is_no_directory_is_refused(tmp_path, name):
    with pytest.raises(InvalidRequest, match="the model's name is"):
        write_files(name, {"file:1/model.pt": b"x"}, CONFIG, tmp_path)


def test_files_need_a_configuration_a_version_and_a_bound(tmp_path):
    for files, config, expected in (
        ({"file:1/model.pt": b"x"}, None, "has files and no configuration; add the parameter 'config'"),
        ({"file:1/model.pt": b"x"}, "", "has files and no configuration"),
        ({"file:model.pt": b"x"}, CONFIG, "hold no version; name them such as file:1/model.pt"),
        ({"file:1": b"x", "file:1/model.pt": b"x"}, CONFIG, "'1' is a file in the request, and a directory"),
        ({f"file:1/{n}": b"" for n in range(MAX_OVERRIDE_FILES + 1)}, CONFIG, "and 1000 is the most"),
    ):
        with pytest.raises(InvalidRequest, match=expected):
            write_files("fraud", files, config, tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigurationError, match="can't be written: File name too long"):
        write_files("fraud", {"file:1/" + "a" * 300: b"x"}, CONFIG, tmp_path)
    assert os.listdir(tmp_path) == []
