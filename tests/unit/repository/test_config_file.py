from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.repository.conftest import write_model

from tensorferry.repository import MAX_CONFIG_BYTES, read_model

PBTXT = """\
# the fraud model
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 30 ] }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""

YAML = """\
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP32, dims: [30]}]
output:
  - name: "y"
    data_type: TYPE_FP32
    dims: [1]
"""


def test_pbtxt_and_yaml_say_the_same(tmp_path):
    directory = write_model(tmp_path, PBTXT)
    from_pbtxt = read_model(directory)
    (directory / "config.pbtxt").unlink()
    (directory / "config.yaml").write_text(YAML)
    from_yaml = read_model(directory)
    assert from_pbtxt.error is None
    assert from_pbtxt == from_yaml


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            'max_batch_size: 8\n\nmodel_transaction_policy { decoupled: true }\n',
            "config.pbtxt:3: Tensorferry doesn't support the field 'model_transaction_policy' in ModelConfig;"
            " remove it",
        ),
        ("max_batchsize: 8", "config.pbtxt:1: Tensorferry doesn't support the field 'max_batchsize' in"
         " ModelConfig; remove it; did you mean 'max_batch_size'?"),
        (
            "instance_group {\n  cuont: 2\n}",
            "config.pbtxt:2: Tensorferry doesn't support the field 'cuont' in ModelInstanceGroup;"
            " remove it; did you mean 'count'?",
        ),
        (
            'model_warmup {\n inputs {\n  key: "x"\n  value { input_data_file: "f" }\n }\n}',
            "config.pbtxt:4: Tensorferry doesn't support the field 'input_data_file' in Input; remove it",
        ),
        (
            "input {\n  data_type: TYPE_FP23\n}",
            "config.pbtxt:2: no such value as 'TYPE_FP23'; did you mean 'TYPE_FP32'?",
        ),
        (
            "instance_group { kind: ANY }",
            "config.pbtxt:1: no such value as 'ANY'; one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL",
        ),
        (
            'name: "fraud"\nmax_batch_size: "8"',
            "config.pbtxt:2: not in protobuf's text format, at column 17: Couldn't parse integer: \"8\"",
        ),
        ("input {\n", 'config.pbtxt:1: not in protobuf\'s text format, at column 7: Expected "}".'),
        ("max_batch_size: 0\nmax_batch_size: 8", "config.pbtxt:2: 'max_batch_size' is given twice; keep one"),
        (
            'parameters { key: "A" value { string_value: "1" } }\n'
            'parameters { key: "A" value { string_value: "2" } }',
            "config.pbtxt:2: 'A' is given twice; keep one",
        ),
        ('name: "\\ud800"', "config.pbtxt:1: not in protobuf's text format, at column 7: "),
    ],
)  # fmt: skip
def test_bad_pbtxt_is_refused_with_line_and_reason(refusal, config, expected):
    assert refusal(config).startswith(expected)


def test_enum_number_that_no_message_can_hold_is_refused(refusal):
    message = refusal("input { data_type: 99999999999 }")
    assert message.startswith("config.pbtxt: not in protobuf's text format: 'Value out of range")


def test_syntax_error_that_quotes_a_parser_message_is_still_a_syntax_error(refusal):
    line = 'max_batch_size: 1.5 # Message type "inference.Nothing" has no field named "x".'
    assert "Couldn't parse integer: 1.5" in refusal(line)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "max_batch_size: 8\nmodel_transaction_policy: {decoupled: true}",
            "config.yaml:2: Tensorferry doesn't support the field 'model_transaction_policy' in ModelConfig;"
            " remove it",
        ),
        (
            "input:\n- name: x\n  datatype: TYPE_FP32",
            "config.yaml:3: Tensorferry doesn't support the field 'datatype' in ModelInput; remove it;"
            " did you mean 'data_type'?",
        ),
        (
            "input:\n- data_type: fp32",
            "config.yaml:2: input[0].data_type has no such value as 'fp32'; did you mean 'TYPE_FP32'?",
        ),
        ("max_batch_size: 8\nmax_batch_size: 9", "config.yaml:2: 'max_batch_size' is given twice; keep one"),
        ("max_batch_size: many", "config.yaml:1: max_batch_size takes an integer from -2147483648 to"),
        ("max_batch_size: 2147483648", "config.yaml:1: max_batch_size takes an integer"),
        ("max_batch_size: 010", "config.yaml:1: max_batch_size takes an integer"),
        ("max_batch_size: '8'", "config.yaml:1: max_batch_size takes an integer from -2147483648 to"
         " 2147483647, not '8' in quotes"),
        ("max_batch_size: [8]", "config.yaml:1: max_batch_size takes a single value"),
        ("max_batch_size:", "config.yaml:1: max_batch_size takes an integer"),
        ("name:", "config.yaml:1: name has no value; give one, or remove the line"),
        ("input: {name: x}", "config.yaml:1: input takes a list: write [...] or lines that start with '-'"),
        ("input: [x]", "config.yaml:1: input[0] takes fields (key: value), not 'x'"),
        ("input:\n- name: x\n  dims: 30", "config.yaml:3: input[0].dims takes a list"),
        ("dynamic_batching: [1]", "config.yaml:1: dynamic_batching takes fields (key: value), not a list"),
        ("dynamic_batching: on", "config.yaml:1: dynamic_batching takes fields (key: value), not 'on'"),
        ("- name: x", "config.yaml:1: the file takes fields (key: value), not a list"),
        ("fraud", "config.yaml:1: the file takes fields (key: value), not 'fraud'"),
        ("? [a]\n: 1", "config.yaml:1: a key must be a plain name"),
        (
            "version_policy:\n  all: {}\n  latest: {}",
            "config.yaml:3: 'latest' and 'all' exclude each other; keep one",
        ),
        (
            "model_warmup:\n- inputs:\n    x: {zero_data: yes}",
            "config.yaml:3: model_warmup[0].inputs.x.zero_data takes true or false, not 'yes'",
        ),
        ("parameters:\n  INFERENCE_MODE:", "config.yaml:2: parameters.INFERENCE_MODE has no value"),
        ("name: a\ninput: [", "config.yaml:2: not YAML: while parsing a flow node, expected the node"),
        ("a: 1\n---\nb: 2", "config.yaml:2: not YAML: expected a single document"),
        ("name: a\nplatform: \x07", "config.yaml:2: not YAML: the character U+0007"),
        ('name: "\\ud800"', "config.yaml:1: '\\ud800' holds half of a surrogate pair"),
        ('name: "\\UFFFFFFFF"', "config.yaml: not YAML: "),
        ("input: " + "[" * 2000, "config.yaml: nested too deeply"),
    ],
)  # fmt: skip
def test_bad_yaml_is_refused_with_line_and_reason(refusal, config, expected):
    assert refusal(config, "config.yaml").startswith(expected)


def test_yaml_aliases_are_followed(read):
    model = read("input: [&x {name: x, data_type: TYPE_FP32, dims: [3]}]\noutput: [*x]", "config.yaml")
    assert model.error is None
    assert model.versions[0].outputs == model.versions[0].inputs


def test_yaml_that_aliases_blow_up_is_refused(refusal):
    # 4 KB that stand for a million values
    dims = f"output: [{{dims: &dims [{'1, ' * 1000}]}}]"
    inputs = f"input: [&tensor {{dims: *dims}}, {'*tensor, ' * 1000}]"
    assert "more than 50000 values" in refusal(f"{dims}\n{inputs}", "config.yaml")


def test_yaml_message_with_nothing_in_it_is_set(read):
    model = read(YAML + "dynamic_batching:\n", "config.yaml")
    assert model.error is None
    assert model.versions[0].batching.enabled


def test_byte_order_mark_is_passed_over(read):
    assert read("\ufeff" + PBTXT).error is None


def test_two_configurations_are_refused(tmp_path):
    directory = write_model(tmp_path, PBTXT)
    (directory / "config.yaml").write_text(YAML)
    assert "config.pbtxt and config.yaml are both there; keep one" in str(read_model(directory).error)


@pytest.mark.parametrize(("file", "right"), [("config.yml", "config.yaml"), ("config.txt", "config.pbtxt")])
def test_misnamed_configuration_is_not_passed_over(refusal, file, right):
    assert refusal(PBTXT, file).endswith(f"rename the file to {right}")


def test_directory_in_place_of_the_configuration_is_refused(tmp_path):
    directory = write_model(tmp_path)
    (directory / "config.pbtxt").mkdir()
    assert "config.pbtxt: not a plain file" in str(read_model(directory).error)


def test_pipe_in_place_of_the_configuration_is_refused_without_waiting(tmp_path):
    directory = write_model(tmp_path)
    os.mkfifo(directory / "config.pbtxt")
    assert "config.pbtxt: not a plain file" in str(read_model(directory).error)


def test_dangling_link_in_place_of_the_configuration_is_refused(tmp_path):
    directory = write_model(tmp_path)
    (directory / "config.yaml").symlink_to("nowhere")
    assert "config.yaml: can't be read: No such file" in str(read_model(directory).error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_configuration_without_permission_is_refused(tmp_path):
    directory = write_model(tmp_path, PBTXT)
    (directory / "config.pbtxt").chmod(0)
    assert "config.pbtxt: can't be read: Permission denied" in str(read_model(directory).error)


@pytest.mark.parametrize("file", ["config.pbtxt", "config.yaml"])
def test_configuration_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, file):
    directory = write_model(tmp_path)
    (directory / file).write_bytes(b"max_batch_size: 8\n# caf\xe9\n")
    assert f"{file}:2: not UTF-8 text" in str(read_model(directory).error)


@pytest.mark.parametrize(("extra_bytes", "is_refused"), [(0, False), (1, True)])
def test_configuration_larger_than_the_bound_is_refused(read, extra_bytes, is_refused):
    model = read(PBTXT + "#" * (MAX_CONFIG_BYTES - len(PBTXT) + extra_bytes))
    assert ("larger than 1048576 bytes" in str(model.error)) == is_refused
