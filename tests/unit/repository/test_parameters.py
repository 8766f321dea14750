from __future__ import annotations

import pytest
from tests.unit.repository.conftest import BASE

from tensorferry.repository.parameters import PARAMETERS


def parameter(name, value):
    return f'{BASE}parameters {{ key: "{name}"\n value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(("value", "expected"), [("1", 1), (" 8 ", 8), ("1024", 1024)])
def test_intra_op_thread_count_is_read(spec, value, expected):
    assert spec(parameter("INTRA_OP_THREAD_COUNT", value)).intra_op_threads == expected


@pytest.mark.parametrize("value", ["true", "True"])
def test_inference_mode_may_be_confirmed(spec, value):
    assert spec(parameter("INFERENCE_MODE", value)).name == "fraud"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("INTRA_OP_THREAD_COUNT", value, f"the parameter INTRA_OP_THREAD_COUNT is {value!r}; it must")
            for value in ("0", "-1", "two", "1.5", "", "1025", "9" * 30, "٣")
        ),
        ("INFERENCE_MODE", "false", "the parameter INFERENCE_MODE is 'false'; it must be \"true\""),
        ("EXECUTION_ENV_PATH", "env.tar", "Tensorferry doesn't know the parameter 'EXECUTION_ENV_PATH'"),
        ("intra_op_threads_count", "1", "Tensorferry doesn't know the parameter 'intra_op_threads_count';"
         " remove it; did you mean 'INTRA_OP_THREAD_COUNT'?"),
        ("", "1", "Tensorferry doesn't know the parameter ''"),
    ],
)  # fmt: skip
def test_parameter_that_is_not_known_or_not_taken_is_refused_at_its_line(refusal, name, value, expected):
    assert refusal(parameter(name, value)).startswith(f"config.pbtxt:4: {expected}")


@pytest.mark.parametrize("value", ["2", "'2'", "{string_value: '2'}"])
def test_yaml_parameter_may_be_a_bare_scalar(spec, value):
    config = f"""
      max_batch_size: 8
      input: [{{name: x, data_type: TYPE_FP32, dims: [3]}}]
      output: [{{name: y, data_type: TYPE_FP32, dims: [1]}}]
      parameters: {{INTRA_OP_THREAD_COUNT: {value}, INFERENCE_MODE: true}}
    """
    assert spec(config, "config.yaml").intra_op_threads == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10", 10.0),
        (" 2.5 ", 2.5),
        ("0.001", 0.001),
        ("1e1", 10.0),
        ("+7", 7.0),
        (".5", 0.5),
        ("3600000", 3.6e6),
    ],
)
@pytest.mark.parametrize("more", ["", "dynamic_batching {}"], ids=["alone", "batched"])
def test_latency_objective_is_read_with_and_without_batching(spec, value, expected, more):
    found = spec(parameter("latency_objective_ms", value) + more).batching
    assert found.latency_objective_ms == expected
    assert found.enabled is bool(more)


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-0.0",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1e-9",
        "3600001",
        "ten",
        "",
        "1_0",
        "0x1",
        "1,5",
        "٣",
        "1 0",
    ],
)
def test_latency_objective_that_is_none_is_refused_at_its_line(refusal, value):
    message = refusal(parameter("latency_objective_ms", value))
    assert message.startswith(
        f"config.pbtxt:4: the parameter latency_objective_ms is {value!r}; it must be a"
    )
    assert message.endswith("a number of milliseconds from 0.001 to 3600000")


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("True", True), ("false", False)])
def test_split_oversized_is_read(spec, value, expected):
    assert spec(parameter("split_oversized", value)).batching.split_oversized is expected


@pytest.mark.parametrize("value", ["yes", "1", "", "truefalse"])
def test_split_oversized_that_is_neither_is_refused_at_its_line(refusal, value):
    message = refusal(parameter("split_oversized", value))
    assert (
        message == f'config.pbtxt:4: the parameter split_oversized is {value!r}; it must be "true" or "false"'
    )


def test_split_oversized_without_a_batch_dimension_is_refused(refusal):
    message = refusal(parameter("split_oversized", "true").replace("max_batch_size: 8", ""))
    assert message.startswith("config.pbtxt:4: the parameter split_oversized is 'true'; it must be \"false\"")
    assert "max_batch_size is 0" in message


def test_not_splitting_is_said_without_a_batch_dimension_too(spec):
    config = parameter("split_oversized", "false").replace("max_batch_size: 8", "")
    assert not spec(config).batching.split_oversized


@pytest.mark.parametrize("value", ["auto", "inline", "thread"])
def test_execution_is_read(spec, value):
    assert spec(parameter("execution", value)).execution == value


def test_execution_is_measured_and_requests_are_not_split_unless_somebody_says_so(spec):
    found = spec(BASE)
    assert found.execution == "auto"
    assert not found.batching.split_oversized
    assert found.batching.latency_objective_ms == 0


@pytest.mark.parametrize(
    ("value", "groups", "expected"),
    [
        ("fast", "", '"auto", "inline" or "thread"'),
        ("Inline", "", '"auto", "inline" or "thread"'),
        ("", "", '"auto", "inline" or "thread"'),
        ("inline", "instance_group { count: 2 }", '"auto" or "thread", as instance_group asks for 2 worker'),
        ("inline", "instance_group [ {}, { gpus: 0 } ]", '"auto" or "thread", as instance_group asks for 2'),
        (
            "inline",
            "instance_group { gpus: 1 }",
            '"auto" or "thread", as instance_group puts the model on cuda:1',
        ),
        ("inline", "instance_group { kind: KIND_GPU }", '"auto" or "thread", as instance_group puts the'),
    ],
)
def test_execution_that_cannot_be_is_refused_at_its_line(refusal, value, groups, expected):
    message = refusal(parameter("execution", value) + groups)
    assert message.startswith(f"config.pbtxt:4: the parameter execution is {value!r}; it must be {expected}")


@pytest.mark.parametrize("value", ["auto", "thread"])
def test_other_executions_take_any_streams(spec, value):
    assert spec(parameter("execution", value) + "instance_group { gpus: [ 0, 1 ] }").execution == value


@pytest.mark.parametrize("name", ["ragged_buckets", "ragged_max_length", "ragged_pad_value"])
def test_parameter_of_padding_is_refused_where_nothing_is_padded(refusal, name):
    message = refusal(parameter(name, "16"))
    assert message.startswith(
        f"config.pbtxt:4: the parameter {name} is '16'; it must be left out, as no input"
    )


def test_every_parameter_says_what_it_does():
    for name, each in PARAMETERS.items():
        assert each.meaning, name
        assert each.default, name
        assert "|" not in each.meaning + each.default + each.unit, name
        assert "\n" not in each.meaning, name


def test_yaml_parameters_of_every_kind_may_be_bare_scalars(spec):
    config = """
      max_batch_size: 8
      input: [{name: x, data_type: TYPE_FP32, dims: [-1], allow_ragged_batch: true}]
      output: [{name: y, data_type: TYPE_FP32, dims: [1]}]
      parameters:
        latency_objective_ms: 10
        split_oversized: true
        execution: inline
        ragged_buckets: 16,32
        ragged_max_length: 32
        ragged_pad_value: -0.5
    """
    found = spec(config, "config.yaml")
    assert (found.batching.latency_objective_ms, found.batching.split_oversized) == (10, True)
    assert found.execution == "inline"
    assert found.padding is not None
    assert (found.padding.buckets, found.padding.pad_value) == ((16, 32), -0.5)
