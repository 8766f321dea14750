"""Properties of the two file formats over configurations and bytes that nobody thought of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_encoding, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.repository.conftest import write_model

from tensorferry.repository import RepositoryModel, read_model
from tensorferry.repository.parameters import PARAMETERS
from tensorferry.repository.pbtxt import parse_pbtxt
from tensorferry.repository.yaml_file import parse_yaml
from tensorferry.tensors import DATATYPES
from tensorferry.wire.model_config_pb2 import ModelConfig

MAX_ROWS = 32
#: The least that a model's file may say.
SMALL = {
    "max_batch_size": MAX_ROWS,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
}
#: The fields whose values are enum names, which stand bare in protobuf's text.
ENUMS = ("data_type", "kind", "timeout_action")

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
datatypes = st.sampled_from([f"TYPE_{name}" for name in DATATYPES if name != "BYTES"])
dims = st.lists(st.sampled_from([-1, 1, 2, 3, 2**40]), min_size=1, max_size=4)


def tensors() -> st.SearchStrategy[list[dict[str, object]]]:
    one = st.fixed_dictionaries({"name": names, "data_type": datatypes, "dims": dims})
    return st.lists(one, min_size=1, max_size=3, unique_by=lambda tensor: tensor["name"])


groups = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"count": st.integers(0, 4), "kind": st.just("KIND_CPU"), "name": names}
    ),
    st.fixed_dictionaries(
        {"gpus": st.lists(st.integers(0, 7), max_size=3, unique=True)}, optional={"kind": st.just("KIND_GPU")}
    ),
)
#: Either is no timeout or longer than any delay below.
MAX_DELAY_US = 10_000
queue_policies = st.fixed_dictionaries(
    {},
    optional={
        "timeout_action": st.sampled_from(["REJECT", "DELAY"]),
        "default_timeout_microseconds": st.just(0) | st.integers(MAX_DELAY_US, 2**64 - 1),
        "allow_timeout_override": st.booleans(),
        "max_queue_size": st.integers(0, 2**32 - 1),
    },
)


@st.composite
def batchings(draw: st.DrawFn) -> dict[str, object]:
    """Return a valid ``dynamic_batching``."""
    batching = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "preferred_batch_size": st.lists(st.integers(1, MAX_ROWS), max_size=3),
                "max_queue_delay_microseconds": st.sampled_from([0, 1, MAX_DELAY_US]),
                "default_queue_policy": queue_policies,
                "preserve_ordering": st.just(False),
            },
        )
    )
    levels = draw(st.integers(0, 4))
    if levels:
        batching["priority_levels"] = levels
        batching["default_priority_level"] = draw(st.integers(1, levels))
        batching["priority_queue_policy"] = draw(
            st.dictionaries(st.integers(1, levels), queue_policies, min_size=1)
        )
    return batching


@st.composite
def paddings(draw: st.DrawFn, config: dict[str, object]) -> dict[str, object]:
    """Return ``config`` with its first input and perhaps its first output made ragged."""
    ragged = {**config["input"][0], "dims": draw(st.permutations([-1, 2])), "allow_ragged_batch": True}
    config = {**config, "input": [ragged, *config["input"][1:]]}
    buckets = sorted(draw(st.sets(st.integers(9, 99), min_size=1, max_size=4)))
    config["parameters"] = {
        **config.get("parameters", {}),
        "ragged_buckets": {"string_value": ",".join(map(str, buckets))},
    }
    if draw(st.booleans()):
        cut = {**config["output"][0], "dims": [3, -1]}
        config["output"] = [cut, *config["output"][1:]]
        config["batch_output"] = [{"target_name": [cut["name"]], "source_input": [ragged["name"]]}]
    target = draw(names.filter(lambda name: name not in [each["name"] for each in config["input"]]))
    if draw(st.booleans()):
        config["batch_input"] = [
            {
                "kind": "BATCH_ELEMENT_COUNT",
                "target_name": [target],
                "data_type": draw(st.sampled_from(["TYPE_INT32", "TYPE_INT64", "TYPE_FP32"])),
                "source_input": [ragged["name"]],
            }
        ]
    return config


policies = st.sampled_from(
    [{}, {"all": {}}, {"latest": {}}, {"latest": {"num_versions": 2}}, {"specific": {"versions": [3, 1]}}]
)


parameters = st.fixed_dictionaries(
    {"INTRA_OP_THREAD_COUNT": st.just({"string_value": "2"})},
    optional={
        "latency_objective_ms": st.floats(MAX_DELAY_US / 1000 + 1, 1e6).map(
            lambda ms: {"string_value": repr(ms)}
        ),
        "split_oversized": st.booleans().map(lambda splits: {"string_value": str(splits)}),
        "execution": st.sampled_from(["auto", "thread"]).map(lambda where: {"string_value": where}),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, object]:
    """Return a valid configuration as plain data, its keys in any order."""
    config: dict[str, object] = {
        "max_batch_size": MAX_ROWS,
        "input": draw(tensors()),
        "output": draw(tensors()),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.just("fraud"),
                    "backend": st.just("pytorch"),
                    "instance_group": st.lists(groups, max_size=3),
                    "dynamic_batching": batchings(),
                    "response_cache": st.fixed_dictionaries({}, optional={"enable": st.booleans()}),
                    "version_policy": policies,
                    "parameters": parameters,
                },
            )
        ),
    }
    if draw(st.booleans()):
        config = draw(paddings(config))
    if draw(st.booleans()):
        config["model_warmup"] = [draw(warmups(config["input"]))]
    return dict(draw(st.permutations(list(config.items()))))


@st.composite
def warmups(draw: st.DrawFn, inputs: list[dict[str, object]]) -> dict[str, object]:
    """Return a warm-up request that fits ``inputs``."""
    samples = {
        tensor["name"]: {
            "data_type": tensor["data_type"],
            "dims": [draw(st.integers(1, 9)) if dim == -1 else dim for dim in tensor["dims"]],
            draw(st.sampled_from(["zero_data", "random_data"])): True,
        }
        for tensor in inputs
    }
    return {"name": draw(names), "batch_size": draw(st.integers(1, MAX_ROWS)), "inputs": samples}


def as_pbtxt(message: dict[str, object]) -> Iterator[str]:
    """Write plain data in protobuf's text format, one field or bracket a line."""
    for name, value in message.items():
        if name in ("parameters", "inputs", "priority_queue_policy"):
            for key, inner in value.items():
                yield f"{name} {{"
                yield from ("value {", *as_pbtxt(inner), "}", f"key: {scalar(key)}")
                yield "}"
        elif isinstance(value, dict):
            yield from (f"{name} {{", *as_pbtxt(value), "}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from itertools.chain.from_iterable((f"{name} <", *as_pbtxt(item), ">") for item in value)
        elif isinstance(value, list):
            yield f"{name}: [{', '.join(map(scalar, value))}]  # a list"
        else:
            yield f"{name}: {value if name in ENUMS else scalar(value)}"


def scalar(value: object) -> str:
    if not isinstance(value, str):
        return str(value).lower()
    return '"' + text_encoding.CEscape(value.encode(), as_utf8=False) + '"'


@settings(deadline=None, max_examples=150)
@given(config=configs())
def test_valid_configuration_reads_the_same_from_pbtxt_and_yaml(tmp_path_factory, config):
    directory = write_model(tmp_path_factory.mktemp("root"), versions=(1, 2, 3))
    (directory / "config.pbtxt").write_text("\n".join(as_pbtxt(config)))
    from_pbtxt = read_model(directory)
    (directory / "config.pbtxt").unlink()
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    from_yaml = read_model(directory)
    assert from_pbtxt.error is None
    assert from_yaml == from_pbtxt
    assert from_yaml.versions
    _assert_given_back(from_yaml.config, config)


def _assert_given_back(served: ModelConfig, written: dict[str, object]) -> None:
    """Check that the ModelConfig call returns what the file says, defaults that were written included."""
    whole = text_format.Parse("\n".join(as_pbtxt(written)), ModelConfig())
    completed = {"name", "platform", "backend", "default_model_filename", "version_policy", "instance_group"}
    for field in ModelConfig.DESCRIPTOR.fields:
        if field.name not in completed:
            assert getattr(served, field.name) == getattr(whole, field.name), field.name


@settings(deadline=None, max_examples=150)
@given(config=configs())
def test_both_formats_place_the_same_fields(config):
    path = Path("config")
    from_pbtxt = parse_pbtxt("\n".join(as_pbtxt(config)), path)
    from_yaml = parse_yaml(yaml.safe_dump(config), path)
    # An empty list leaves no trace in protobuf's format when it holds messages.
    empty = {(name,) for name, value in config.items() if value == []}
    assert set(from_pbtxt.lines) - empty == set(from_yaml.lines) - empty


@settings(deadline=None, max_examples=300)
@given(
    levels=st.integers(0, 3),
    default=st.integers(0, 4),
    timeouts_us=st.dictionaries(st.integers(0, 4), st.integers(0, 4), max_size=4),
    default_timeout_us=st.integers(0, 4),
    delay_us=st.none() | st.integers(0, 4),
    objective_us=st.none() | st.integers(1, 4),
    ordered=st.booleans(),
)
def test_batching_is_taken_exactly_where_nothing_in_it_contradicts(
    tmp_path_factory, levels, default, timeouts_us, default_timeout_us, delay_us, objective_us, ordered
):
    batching = {
        "priority_levels": levels,
        "default_priority_level": default,
        "priority_queue_policy": {
            level: {"default_timeout_microseconds": us} for level, us in timeouts_us.items()
        },
        "default_queue_policy": {"default_timeout_microseconds": default_timeout_us},
        "preserve_ordering": ordered,
    }
    if delay_us is not None:
        batching["max_queue_delay_microseconds"] = delay_us
    config = {**SMALL, "dynamic_batching": batching}
    if objective_us is not None:
        config["parameters"] = {"latency_objective_ms": {"string_value": f"{objective_us / 1000}"}}
    # A request of a level that has no policy of its own is under the default one.
    waits_us = [timeouts_us.get(level, default_timeout_us) for level in range(1, levels + 1)]
    expected = (
        (1 <= default <= levels if levels else default == 0)
        and all(1 <= level <= levels for level in timeouts_us)
        and not (ordered and levels > 1)
        and not any(0 < us < (delay_us or 0) for us in waits_us or [default_timeout_us])
        and not (delay_us and objective_us and delay_us >= objective_us)
    )
    directory = write_model(tmp_path_factory.mktemp("root"), "\n".join(as_pbtxt(config)))
    model = read_model(directory)
    assert (model.error is None) is expected, model.error
    assert expected or ".pbtxt:" in str(model.error), "an error names a line"


@settings(deadline=None, max_examples=200)
@given(buckets=st.lists(st.integers(-1, 6), max_size=4), longest=st.none() | st.integers(0, 6))
def test_buckets_are_taken_exactly_where_they_ascend_and_cover_the_longest(
    tmp_path_factory, buckets, longest
):
    config = {**SMALL, "parameters": {"ragged_buckets": {"string_value": ",".join(map(str, buckets))}}}
    config["input"] = [{**SMALL["input"][0], "dims": [-1], "allow_ragged_batch": True}]
    if longest is not None:
        config["parameters"]["ragged_max_length"] = {"string_value": str(longest)}
    expected = bool(buckets) and buckets == sorted(set(buckets)) and buckets[0] > 0
    expected = expected and (longest is None or 1 <= longest <= buckets[-1])
    model = read_model(write_model(tmp_path_factory.mktemp("root"), yaml.safe_dump(config), "config.yaml"))
    assert (model.error is None) is expected, model.error
    if expected:
        assert model.versions[0].padding.buckets == tuple(buckets)


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(sorted(PARAMETERS)),
    text=st.text(max_size=12) | st.floats().map(repr),
    ragged=st.booleans(),
)
def test_no_value_of_a_parameter_raises_or_leaves_a_specification_that_cannot_be(
    tmp_path_factory, name, text, ragged
):
    inputs = [{**SMALL["input"][0], "dims": [-1], "allow_ragged_batch": ragged}]
    given_parameters = {"ragged_buckets": {"string_value": "8"}} if ragged else {}
    config = {**SMALL, "input": inputs, "parameters": {**given_parameters, name: {"string_value": text}}}
    model = read_model(write_model(tmp_path_factory.mktemp("root"), "\n".join(as_pbtxt(config))))
    if model.error is not None:
        assert f"the parameter {name} is " in str(model.error)
        return
    (spec,) = model.versions
    assert 0 <= spec.batching.latency_objective_ms < math.inf
    assert spec.execution in ("auto", "inline", "thread")
    assert (spec.padding is not None) is ragged
    if spec.padding is not None:
        assert spec.padding.buckets
        assert math.isfinite(spec.padding.pad_value)


@given(level=st.integers(0, 2**64 - 1), write=st.sampled_from(["{}", "0x{:x}", "0X{:X}", "0{:o}"]))
def test_key_of_a_map_is_the_same_number_in_each_of_protobufs_notations(level, write):
    text = f"dynamic_batching {{\npriority_queue_policy {{ key: {write.format(level)} }} }}"
    source = parse_pbtxt(text, Path("config.pbtxt"))
    assert list(source.config.dynamic_batching.priority_queue_policy) == [level]
    assert source.sets("dynamic_batching", "priority_queue_policy", level)


#: Pieces of both formats, so that what is put together gets past the first character.
PIECES = st.sampled_from(
    [
        *("input", "name", "dims", "max_batch_size", "parameters", "version_policy", "all", "latest"),
        *("dynamic_batching", "priority_queue_policy", "batch_input", "target_name", "allow_ragged_batch"),
        *("inputs", "key", "value", "model_warmup", "data_type", "TYPE_FP32", "null", "1", "-1", "1e9", "0x"),
        *(
            ":",
            " ",
            "\n",
            "\n  ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            "<",
            ">",
            ",",
            ";",
            '"',
            "'",
            "#",
            "|",
            "? ",
            "~",
        ),
        *("\\", "\\x", "\\u", "\\ud800", "\\U0011ffff", "é", "\0", "\ufeff", "\x85", "9" * 5000),
        *("&a", "*a", "!!int", "!!binary", "!<", "---", "%YAML 1.9", "%TAG ! %", "<<", "="),
    ]
)
contents = st.one_of(
    st.binary(max_size=60), st.lists(PIECES, max_size=25).map(lambda parts: "".join(parts).encode())
)


@pytest.mark.parametrize("file", ["config.pbtxt", "config.yaml"])
@settings(deadline=None, max_examples=400)
@given(content=contents)
def test_no_content_of_a_configuration_raises(tmp_path_factory, file, content):
    directory = write_model(tmp_path_factory.mktemp("root"))
    (directory / file).write_bytes(content)
    model = read_model(directory)
    assert isinstance(model, RepositoryModel)
    assert (model.error is None) == bool(model.versions)
    assert model.error is None or "\n" not in str(model.error)
