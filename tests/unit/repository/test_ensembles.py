"""``ensemble_scheduling``: what becomes of it, and what is refused with its line."""

from __future__ import annotations

import pytest
from tests.unit.repository.conftest import write_model

from tensorferry.model import EnsembleStep
from tensorferry.repository import read_model

HEAD = """platform: "ensemble"
max_batch_size: 8
input { name: "raw" data_type: TYPE_FP32 dims: 3 }
output { name: "score" data_type: TYPE_FP32 dims: 1 }
"""
SCALE = """  step { model_name: "scaler"
    input_map { key: "x" value: "raw" }
    output_map { key: "y" value: "scaled" } }
"""
MODEL = """  step { model_name: "mlp" model_version: 2
    input_map { key: "features" value: "scaled" }
    output_map { key: "score" value: "score" } }
"""

SCALE_STEP = EnsembleStep("scaler", "", (("x", "raw"),), (("y", "scaled"),))
MODEL_STEP = EnsembleStep("mlp", "2", (("features", "scaled"),), (("score", "score"),))


def ensemble(*steps: str, head: str = HEAD) -> str:
    """Steps begin on line 6 of the file."""
    return head + "ensemble_scheduling {\n" + "".join(steps) + "}\n"


def step(model: str, reads: dict[str, str], writes: dict[str, str], more: str = "") -> str:
    maps = [
        f'    {field} {{ key: "{key}" value: "{value}" }}\n'
        for field, names in (("input_map", reads), ("output_map", writes))
        for key, value in names.items()
    ]
    return f'  step {{ model_name: "{model}" {more}\n' + "".join(maps) + "  }\n"


def names(found) -> list[str]:
    return [each.model for each in found.steps]


def test_steps_become_the_specifications(spec):
    found = spec(ensemble(SCALE, MODEL))
    assert found.steps == (SCALE_STEP, MODEL_STEP)
    assert (found.platform, found.backend, found.max_batch_size) == ("ensemble", "", 8)
    assert found.devices == ()
    assert not found.from_signature


def test_yaml_gives_the_same(spec):
    text = """
max_batch_size: 8
input: [{name: raw, data_type: TYPE_FP32, dims: [3]}]
output: [{name: score, data_type: TYPE_FP32, dims: [1]}]
ensemble_scheduling:
  step:
    - {model_name: scaler, model_version: -1, input_map: {x: raw}, output_map: {y: scaled}}
    - {model_name: mlp, model_version: 2, input_map: {features: scaled}, output_map: {score: score}}
"""
    assert spec(text, "config.yaml").steps == (SCALE_STEP, MODEL_STEP)


def test_served_configuration_has_the_steps_and_no_instances(read):
    config = read(ensemble(SCALE, MODEL)).config
    assert config.platform == "ensemble"
    assert len(config.instance_group) == 0
    assert [each.model_name for each in config.ensemble_scheduling.step] == ["scaler", "mlp"]


def test_a_model_has_no_steps(spec):
    text = (
        "input { name: 'x' data_type: TYPE_FP32 dims: 1 } output { name: 'y' data_type: TYPE_FP32 dims: 1 }"
    )
    assert spec(text).steps == ()


def test_a_version_directory_may_be_empty(tmp_path):
    directory = write_model(tmp_path, ensemble(SCALE, MODEL), versions=())
    assert "no version directory" in str(read_model(directory).error)
    (directory / "1").mkdir()
    (found,) = read_model(directory).versions
    assert found.path == directory / "1"


def test_steps_run_in_the_order_of_their_tensors(spec):
    assert spec(ensemble(MODEL, SCALE)).steps == (SCALE_STEP, MODEL_STEP)


def test_branches_run_before_the_step_that_joins_them_and_else_as_written(spec):
    found = spec(
        ensemble(
            step("join", {"a": "p", "b": "q"}, {"y": "score"}),
            step("right", {"x": "shared"}, {"y": "q"}),
            step("left", {"x": "shared"}, {"y": "p"}),
            step("first", {"x": "raw"}, {"y": "shared"}),
        )
    )
    assert names(found) == ["first", "right", "left", "join"]


def test_a_tensor_may_be_read_twice_and_be_an_output_too(spec):
    head = HEAD + 'output { name: "mid" data_type: TYPE_FP32 dims: 3 }\n'
    found = spec(
        ensemble(
            step("a", {"x": "raw", "z": "raw"}, {"y": "mid"}),
            step("b", {"x": "mid", "z": "raw"}, {"y": "score"}),
            head=head,
        )
    )
    assert found.steps[0].inputs == (("x", "raw"), ("z", "raw"))
    assert [each.name for each in found.outputs] == ["score", "mid"]


def test_a_model_may_be_several_steps(spec):
    found = spec(ensemble(step("a", {"x": "raw"}, {"y": "mid"}), step("a", {"x": "mid"}, {"y": "score"})))
    assert names(found) == ["a", "a"]


@pytest.mark.parametrize("version", ["", "model_version: -1"])
def test_the_latest_version_is_no_version(spec, version):
    assert spec(ensemble(step("a", {"x": "raw"}, {"y": "score"}, version))).steps[0].version == ""


@pytest.mark.parametrize(
    ("steps", "line", "expected"),
    [
        ([], 5, "needs ensemble_scheduling with at least one step"),
        (["  step { }\n"], 6, "step 1 has no model_name"),
        ([step("fraud", {"x": "raw"}, {"y": "score"})], 6, "step 1 ('fraud') is the ensemble itself"),
        ([step("a", {}, {"y": "score"})], 6, "step 1 ('a') has no input_map; add input_map { key: "),
        ([step("a", {"x": "raw"}, {})], 6, "step 1 ('a') has no output_map"),
        ([step("a", {"x": ""}, {"y": "score"})], 7, "input_map of step 1 ('a') has an empty key or value"),
        ([step("a", {"x": "raw"}, {"": "score"})], 8, "output_map of step 1 ('a') has an empty key or value"),
        ([step("a", {"x": "raw"}, {"y": "score"}, "model_version: 0")], 6, "has model_version 0; use -1"),
        ([step("a", {"x": "raw"}, {"y": "score"}, "model_version: -2")], 6, "has model_version -2"),
        ([step("a", {"x": "raw"}, {"y": "score", "z": "score"})], 9, "'score', which step 1 writes too"),
        ([SCALE, SCALE, MODEL], 11, "step 2 ('scaler') writes 'scaled', which step 1 writes too"),
        ([step("a", {"x": "raw"}, {"y": "raw"})], 8, "writes 'raw', which is an input of the ensemble"),
        (
            [step("a", {"x": "rew"}, {"y": "score"})],
            7,
            "reads 'rew', which is no input of the ensemble and which no step writes; did you mean 'raw'?",
        ),
        ([step("a", {"x": "raw"}, {"y": "scores"})], 4, "no step writes the output 'score'; add it"),
        (
            [step("a", {"x": "raw"}, {"y": "score", "z": "spare"})],
            9,
            "'spare' is written and neither read nor an output of the ensemble; remove it from output_map",
        ),
        (
            [
                step("a", {"x": "raw", "z": "back"}, {"y": "mid"}),
                step("b", {"x": "mid"}, {"y": "back", "z": "score"}),
            ],
            7,
            "steps wait for each other: step 1 ('a') needs step 2 ('b') needs step 1 ('a')",
        ),
        (
            [SCALE, step("a", {"x": "scaled", "z": "own"}, {"y": "own", "s": "score"})],
            10,
            "steps wait for itself: step 2 ('a') needs step 2 ('a')",
        ),
        ([SCALE] * 65, 6, "ensemble_scheduling has 65 steps, and 64 is the most"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_are_refused_with_their_line(refusal, steps, line, expected):
    message = refusal(ensemble(*steps))
    assert message.startswith(f"config.pbtxt:{line}: "), message
    assert expected in message


def test_an_input_that_no_step_reads_is_refused(refusal):
    head = HEAD + 'input { name: "spare" data_type: TYPE_FP32 dims: 3 }\n'
    assert refusal(ensemble(SCALE, MODEL, head=head)).startswith(
        "config.pbtxt:5: no step reads the input 'spare'"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dynamic_batching { }", "dynamic_batching is set for an ensemble, which runs nothing itself"),
        ("instance_group { count: 2 }", "instance_group is set for an ensemble"),
        ("model_warmup { name: 'w' }", "model_warmup is set for an ensemble"),
        ("response_cache { enable: true }", "its answers would outlive a change of a step's model"),
        ("batch_input { }", "batch_input is set for an ensemble, which pads nothing"),
        ("batch_output { }", "batch_output is set for an ensemble, which pads nothing"),
        ('default_model_filename: "model.pt"', "default_model_filename is set for an ensemble"),
        (
            'parameters { key: "latency_objective_ms" value { string_value: "5" } }',
            "the parameter latency_objective_ms is set for an ensemble, and only a model has it",
        ),
    ],
)
def test_what_only_a_model_can_have_is_refused_and_the_models_are_named(refusal, line, expected):
    message = refusal(ensemble(SCALE, MODEL) + line)
    assert message.startswith("config.pbtxt:13: ")
    assert expected in message
    assert "the configuration of the step's model ('scaler', 'mlp')" in message


def test_a_ragged_input_is_refused(refusal):
    head = HEAD.replace("dims: 3", "dims: -1 allow_ragged_batch: true")
    message = refusal(ensemble(SCALE, MODEL, head=head))
    assert message.startswith("config.pbtxt:3: input 'raw' of an ensemble says allow_ragged_batch")


def test_a_backend_is_refused(refusal):
    text = ensemble(SCALE, MODEL).replace('platform: "ensemble"', 'backend: "pytorch"')
    assert "backend is set for an ensemble" in refusal(text)


def test_what_is_off_is_not_refused(spec):
    assert spec(ensemble(SCALE, MODEL) + "response_cache { enable: false }").steps


def test_steps_are_refused_where_the_platform_is_a_models(refusal):
    text = ensemble(SCALE, MODEL).replace('"ensemble"', '"pytorch_libtorch"')
    assert "ensemble_scheduling is for the platform 'ensemble'" in refusal(text)


def test_the_platform_alone_is_no_ensemble(refusal):
    assert refusal(HEAD).startswith("config.pbtxt:1: the platform 'ensemble' needs ensemble_scheduling")
