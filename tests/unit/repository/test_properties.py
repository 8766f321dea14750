"""Properties of the two file formats over configurations and bytes that nobody thought of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.repository.conftest import write_model

from tensorferry.repository import RepositoryModel, read_model
from tensorferry.repository.pbtxt import parse_pbtxt
from tensorferry.repository.yaml_file import parse_yaml
from tensorferry.tensors import DATATYPES

MAX_ROWS = 32
#: A word that stands for itself in protobuf's text: enum names and true or false.
BARE = ("TYPE_", "KIND_")

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
batching = st.fixed_dictionaries(
    {},
    optional={
        "preferred_batch_size": st.lists(st.integers(1, MAX_ROWS), max_size=3),
        "max_queue_delay_microseconds": st.sampled_from([0, 1, 2**64 - 1]),
        "default_queue_policy": st.fixed_dictionaries(
            {},
            optional={
                "default_timeout_microseconds": st.integers(0, 2**64 - 1),
                "max_queue_size": st.integers(0, 2**32 - 1),
            },
        ),
    },
)
policies = st.sampled_from(
    [{}, {"all": {}}, {"latest": {}}, {"latest": {"num_versions": 2}}, {"specific": {"versions": [3, 1]}}]
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
                    "dynamic_batching": batching,
                    "version_policy": policies,
                    "parameters": st.just({"INTRA_OP_THREAD_COUNT": {"string_value": "2"}}),
                },
            )
        ),
    }
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
        if name in ("parameters", "inputs"):
            for key, inner in value.items():
                yield f"{name} {{"
                yield from ("value {", *as_pbtxt(inner), "}", f"key: {scalar(key)}")
                yield "}"
        elif isinstance(value, dict):
            yield from (f"{name} {{", *as_pbtxt(value), "}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from itertools.chain.from_iterable((f"{name} <", *as_pbtxt(item), ">") for item in value)
        elif isinstance(value, list):
            yield f"{name}: [{', '.join(map(str, value))}]  # a list"
        else:
            yield f"{name}: {scalar(value)}"


def scalar(value: object) -> str:
    if not isinstance(value, str):
        return str(value).lower()
    if value.startswith(BARE):
        return value
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


@settings(deadline=None, max_examples=150)
@given(config=configs())
def test_both_formats_place_the_same_fields(config):
    path = Path("config")
    from_pbtxt = parse_pbtxt("\n".join(as_pbtxt(config)), path)
    from_yaml = parse_yaml(yaml.safe_dump(config), path)
    # An empty list leaves no trace in protobuf's format when it holds messages.
    empty = {(name,) for name, value in config.items() if value == []}
    assert set(from_pbtxt.lines) - empty == set(from_yaml.lines) - empty


#: Pieces of both formats, so that what is put together gets past the first character.
PIECES = st.sampled_from(
    [
        *("input", "name", "dims", "max_batch_size", "parameters", "version_policy", "all", "latest"),
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
