from __future__ import annotations

import pytest
from google.protobuf import text_format
from tests.unit.repository.conftest import BASE, INPUT, OUTPUT

from tensorferry.model import BatchingSpec, QueuePolicy
from tensorferry.repository import read_model
from tensorferry.wire.model_config_pb2 import ModelConfig


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BASE, BatchingSpec(enabled=False)),
        (BASE + "dynamic_batching {}", BatchingSpec()),
        (BASE + "dynamic_batching { max_queue_delay_microseconds: 0 }", BatchingSpec(max_queue_delay_us=0)),
        (BASE + "dynamic_batching { max_queue_delay_microseconds: 7 }", BatchingSpec(max_queue_delay_us=7)),
        (
            BASE + "dynamic_batching { preferred_batch_size: [ 8, 4, 8 ] }",
            BatchingSpec(preferred_batch_sizes=(4, 8)),
        ),
        (
            BASE + "dynamic_batching { default_queue_policy {"
            " default_timeout_microseconds: 9 max_queue_size: 5 } }",
            BatchingSpec(queue_policy=QueuePolicy(default_timeout_us=9, max_queue_size=5)),
        ),
        (INPUT + OUTPUT, BatchingSpec(enabled=False)),
    ],
)
def test_batching(spec, config, expected):
    assert spec(config).batching == expected


def test_explicit_zero_delay_is_seen_in_yaml_too(spec):
    config = """
      max_batch_size: 8
      input: [{name: x, data_type: TYPE_FP32, dims: [3]}]
      output: [{name: y, data_type: TYPE_FP32, dims: [1]}]
      dynamic_batching: {max_queue_delay_microseconds: 0}
    """
    assert spec(config, "config.yaml").batching.max_queue_delay_us == 0


def test_commented_delay_is_not_a_delay(spec):
    config = BASE + "dynamic_batching { # max_queue_delay_microseconds: 0\n}"
    assert spec(config).batching.max_queue_delay_us is None


def test_dynamic_batching_without_a_batch_dimension_is_refused(refusal):
    message = refusal(INPUT + OUTPUT + "dynamic_batching {}")
    assert message.startswith("config.pbtxt:3: dynamic_batching needs a max_batch_size above 0")


def batching(*lines):
    """Return a configuration whose ``dynamic_batching`` holds ``lines``, from line 5 on."""
    return BASE + "dynamic_batching {\n" + "\n".join(lines) + "\n}"


#: The fields of a fraud model as Triton's users write them, in both formats.
TRITON_PBTXT = (
    BASE
    + """\
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 50000
    allow_timeout_override: true
    max_queue_size: 256
  }
  priority_queue_policy [
    {
      key: 1
      value { default_timeout_microseconds: 10000 allow_timeout_override: false }
    },
    {
      key: 3
      value: { timeout_action: DELAY, default_timeout_microseconds: 500, max_queue_size: 16 }
    }
  ]
}
response_cache { enable: true }
"""
)
TRITON_YAML = """\
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP32, dims: [3, -1]}]
output: [{name: y, data_type: TYPE_FP64, dims: [1]}]
dynamic_batching:
  preferred_batch_size: [4, 8]
  max_queue_delay_microseconds: 500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy:
    timeout_action: REJECT
    default_timeout_microseconds: 50000
    allow_timeout_override: true
    max_queue_size: 256
  priority_queue_policy:
    1: {default_timeout_microseconds: 10000, allow_timeout_override: false}
    "3": {timeout_action: DELAY, default_timeout_microseconds: 500, max_queue_size: 16}
response_cache: {enable: true}
"""


@pytest.mark.parametrize(
    ("config", "file"), [(TRITON_PBTXT, "config.pbtxt"), (TRITON_YAML, "config.yaml")], ids=["pbtxt", "yaml"]
)
def test_every_field_of_the_queue_policies_is_read_and_given_back(read, config, file):
    model = read(config, file)
    assert model.error is None
    (found,) = model.versions
    assert found.batching == BatchingSpec(
        preferred_batch_sizes=(4, 8),
        max_queue_delay_us=500,
        queue_policy=QueuePolicy(256, 50_000, "REJECT", allow_timeout_override=True),
        priority_levels=3,
        default_priority_level=2,
        priority_policies=(
            (1, QueuePolicy(0, 10_000, "REJECT", allow_timeout_override=False)),
            (3, QueuePolicy(16, 500, "DELAY", allow_timeout_override=True)),
        ),
    )
    assert found.response_cache
    served = model.config.dynamic_batching
    assert served == text_format.Parse(TRITON_PBTXT, ModelConfig()).dynamic_batching
    assert (served.priority_queue_policy[3].timeout_action, served.default_priority_level) == (1, 2)
    assert model.config.response_cache.enable


def test_response_cache_is_off_unless_it_is_asked_for(read, tmp_path):
    assert not read(BASE).versions[0].response_cache
    (tmp_path / "fraud" / "config.pbtxt").write_text(BASE + "response_cache {}")
    assert not read_model(tmp_path / "fraud").versions[0].response_cache


@pytest.mark.parametrize(
    ("written", "allowed"),
    [("", True), ("allow_timeout_override: true", True), ("allow_timeout_override: false", False)],
)
def test_only_a_written_false_forbids_a_request_to_shorten_its_timeout(spec, written, allowed):
    found = spec(
        batching(
            f"default_queue_policy {{ {written} }}",
            "priority_levels: 1 default_priority_level: 1",
            f"priority_queue_policy {{ key: 1 value {{ {written} }} }}",
        )
    ).batching
    assert found.queue_policy.allow_timeout_override is allowed
    assert found.priority_policies == ((1, QueuePolicy(allow_timeout_override=allowed)),)


def test_a_yaml_false_forbids_it_too(spec):
    config = TRITON_YAML.replace("allow_timeout_override: true", "allow_timeout_override: false")
    assert not spec(config, "config.yaml").batching.queue_policy.allow_timeout_override


@pytest.mark.parametrize("key", ["key: 8", "key: 0x8", "key: 010", "value {} key: 8"])
def test_level_of_a_policy_may_be_written_as_protobuf_takes_it(spec, key):
    value = "" if "value" in key else "value { allow_timeout_override: false }"
    found = spec(
        batching("priority_levels: 8 default_priority_level: 8", f"priority_queue_policy {{ {value} {key} }}")
    )
    assert found.batching.priority_policies == ((8, QueuePolicy(allow_timeout_override=not value)),)


@pytest.mark.parametrize(
    "lines",
    [
        ["preserve_ordering: true"],
        ["preserve_ordering: true priority_levels: 1 default_priority_level: 1"],
        ["preserve_ordering: false priority_levels: 2 default_priority_level: 1"],
    ],
)
def test_order_may_be_preserved_where_nothing_contradicts_it(spec, lines):
    assert spec(batching(*lines)).batching.preserve_ordering is ("true" in lines[0])


@pytest.mark.parametrize(
    ("lines", "line", "expected"),
    [
        (["priority_levels: 2"], 5, "default_priority_level is missing; with priority_levels 2 it must be 1"),
        (
            ["priority_levels: 2", "default_priority_level: 0"],
            6,
            "default_priority_level is 0; with priority_levels 2 it must be 1 to 2",
        ),
        (["priority_levels: 2", "default_priority_level: 3"], 6, "default_priority_level is 3; with"),
        (["", "default_priority_level: 1"], 6, "default_priority_level is 1, and there are no priority_lev"),
        (
            ["priority_levels: 1001 default_priority_level: 1"],
            5,
            "priority_levels is 1001, and 1000 is the most",
        ),
        (["priority_levels: 18446744073709551615"], 5, "priority_levels is 18446744073709551615, and 1000"),
        (
            ["priority_levels: 2 default_priority_level: 1", "priority_queue_policy { key: 3 value {} }"],
            6,
            "priority_queue_policy is given for level 3, and the levels are 1 to 2",
        ),
        (
            ["priority_levels: 2 default_priority_level: 1", "priority_queue_policy { value {} }"],
            6,
            "priority_queue_policy is given for level 0, and the levels are 1 to 2",
        ),
        (["", "priority_queue_policy { key: 1 }"], 6, "priority_queue_policy is given for level 1, and"),
        (
            ["priority_levels: 2 default_priority_level: 1", "preserve_ordering: true"],
            6,
            "preserve_ordering contradicts priority_levels 2",
        ),
        (
            ["default_queue_policy { timeout_action: DELAY }", "preserve_ordering: true"],
            6,
            "preserve_ordering contradicts timeout_action DELAY",
        ),
        (
            ["default_queue_policy {", "timeout_action: 7 }"],
            6,
            "timeout_action is 7, which doesn't exist; use REJECT or DELAY",
        ),
        (
            ["default_queue_policy {", "timeout_action: WAIT }"],
            6,
            "no such value as 'WAIT'; one of REJECT, DELAY",
        ),
        (["", "eager_batching: true"], 6, "Tensorferry doesn't support the field 'eager_batching' in Model"),
        (
            ["priority_queue_policy {", "key: 1", "value {", "max_queue_sise: 1 } }"],
            8,
            "Tensorferry doesn't support the field 'max_queue_sise' in ModelQueuePolicy; remove it;"
            " did you mean 'max_queue_size'?",
        ),
        (
            ["priority_levels: 1 default_priority_level: 1", "priority_queue_policy { key: 1 }",
             "priority_queue_policy { key: 0x1 }"],
            7,
            "'1' is given twice; keep one",
        ),
    ],
)  # fmt: skip
def test_policy_that_cannot_be_is_refused_at_its_line(refusal, lines, line, expected):
    assert refusal(batching(*lines)).startswith(f"config.pbtxt:{line}: {expected}")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "one",
            "a key of dynamic_batching.priority_queue_policy must be an integer from 0 to 18446744073709",
        ),
        ("-1", "a key of dynamic_batching.priority_queue_policy must be an integer from 0 to"),
        ("18446744073709551616", "a key of dynamic_batching.priority_queue_policy must be an integer from 0"),
        ("01", "a key of dynamic_batching.priority_queue_policy must be an integer from 0"),
        ("~", "a key of dynamic_batching.priority_queue_policy must be an integer from 0"),
        ("[1]", "a key must be a plain name"),
        ("0", "priority_queue_policy is given for level 0, and there are no priority_levels"),
    ],
)
def test_yaml_level_that_is_no_level_is_refused_at_its_line(refusal, key, expected):
    config = BASE_YAML + f"dynamic_batching:\n  priority_queue_policy:\n    ? {key}\n    : {{}}"
    assert refusal(config, "config.yaml").startswith(f"config.yaml:6: {expected}")


def test_yaml_level_given_twice_is_refused(refusal):
    config = BASE_YAML + "dynamic_batching:\n  priority_queue_policy:\n    1: {}\n    '1': {}"
    assert refusal(config, "config.yaml").startswith("config.yaml:7: '1' is given twice; keep one")


def test_field_of_a_yaml_policy_is_named_with_its_level(refusal):
    config = BASE_YAML + "dynamic_batching:\n  priority_queue_policy:\n    1: {max_queue_size: many}"
    message = refusal(config, "config.yaml")
    assert message.startswith("config.yaml:6: dynamic_batching.priority_queue_policy[1].max_queue_size takes")


BASE_YAML = "\n".join(TRITON_YAML.splitlines()[:3]) + "\n"
LEVELS = "priority_levels: 2 default_priority_level: 2"


@pytest.mark.parametrize(
    "lines",
    [
        ["default_queue_policy { default_timeout_microseconds: 100 }"],
        ["default_queue_policy { default_timeout_microseconds: 100 timeout_action: DELAY }"],
        [LEVELS, "default_queue_policy { default_timeout_microseconds: 100 }"],
        [LEVELS, "priority_queue_policy { key: 2 value { default_timeout_microseconds: 100 } }"],
        [
            LEVELS,
            "default_queue_policy { default_timeout_microseconds: 100 }",
            "priority_queue_policy { key: 1 value { default_timeout_microseconds: 101 } }",
        ],
    ],
)
def test_delay_longer_than_a_timeout_is_refused_at_its_line(refusal, lines):
    message = refusal(batching("max_queue_delay_microseconds: 101", *lines))
    assert message.startswith(
        "config.pbtxt:5: max_queue_delay_microseconds is 101,"
        " longer than the default_timeout_microseconds 100 of "
    )


def test_refused_delay_names_the_policy_that_it_contradicts(refusal):
    policy = "priority_queue_policy { key: 2 value { default_timeout_microseconds: 100 } }"
    assert "of priority level 2:" in refusal(batching("max_queue_delay_microseconds: 101", LEVELS, policy))


@pytest.mark.parametrize(
    "lines",
    [
        ["max_queue_delay_microseconds: 100 default_queue_policy { default_timeout_microseconds: 100 }"],
        ["max_queue_delay_microseconds: 100 default_queue_policy { default_timeout_microseconds: 0 }"],
        ["max_queue_delay_microseconds: 0 default_queue_policy { default_timeout_microseconds: 1 }"],
        ["default_queue_policy { default_timeout_microseconds: 1 }"],
        # Each level has a policy of its own, so that the default one holds for nobody.
        [
            "max_queue_delay_microseconds: 100 priority_levels: 1 default_priority_level: 1",
            "default_queue_policy { default_timeout_microseconds: 1 } priority_queue_policy { key: 1 }",
        ],
    ],
)
def test_delay_within_the_timeouts_in_force_is_taken(spec, lines):
    assert spec(batching(*lines)).batching.enabled


def objective(value):
    return f'\nparameters {{ key: "latency_objective_ms" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(("delay_us", "value"), [(2000, "2"), (2001, "2"), (1, "0.001"), (2**64 - 1, "10")])
def test_delay_that_uses_up_the_objective_is_refused_at_its_line(refusal, delay_us, value):
    message = refusal(batching(f"max_queue_delay_microseconds: {delay_us}") + objective(value))
    assert message.startswith(f"config.pbtxt:5: max_queue_delay_microseconds is {delay_us}, and latency_obj")
    assert f"is {value} ms" in message


@pytest.mark.parametrize(("delay_us", "value"), [(1999, "2"), (0, "0.001")])
def test_delay_below_the_objective_is_taken(spec, delay_us, value):
    found = spec(batching(f"max_queue_delay_microseconds: {delay_us}") + objective(value)).batching
    assert (found.max_queue_delay_us, found.latency_objective_ms) == (delay_us, float(value))
