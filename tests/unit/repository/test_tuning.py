"""The parameters and the ``optimization`` message that say how a model runs on its device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.repository.conftest import BASE

from tensorferry.device import Tuning

GPU = "instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }\n"


def parameter(name, value):
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


def in_yaml(text):
    return f"""
      max_batch_size: 8
      input: [{{name: x, data_type: TYPE_FP32, dims: [3]}}]
      output: [{{name: y, data_type: TYPE_FP32, dims: [1]}}]
      {text}
    """


def test_a_model_is_not_tuned_unless_somebody_says_so(spec):
    found = spec(BASE).tuning
    assert found == Tuning()
    assert (found.autocast, found.channels_last, found.shares_weights) == ("", False, False)
    assert (found.cuda_graphs, found.busy_wait, found.staging_slots) == ("auto", False, 3)


GOOD = [
    ("autocast", "fp16", Tuning(autocast="FP16")),
    ("autocast", "bf16", Tuning(autocast="BF16")),
    ("autocast", "off", Tuning()),
    ("autocast", " bf16 ", Tuning(autocast="BF16")),
    ("memory_format", "channels_last", Tuning(channels_last=True)),
    ("memory_format", "contiguous", Tuning()),
    ("cuda_graphs", "auto", Tuning()),
    ("cuda_graphs", "off", Tuning(cuda_graphs="off")),
    ("staging_slots", "1", Tuning(staging_slots=1)),
    ("staging_slots", "8", Tuning(staging_slots=8)),
    ("ENABLE_WEIGHT_SHARING", "true", Tuning(shares_weights=True)),
    ("ENABLE_WEIGHT_SHARING", "1", Tuning(shares_weights=True)),
    ("ENABLE_WEIGHT_SHARING", "false", Tuning()),
]


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
@pytest.mark.parametrize("group", ["", GPU], ids=["cpu", "gpus"])
def test_a_tuning_parameter_is_read_on_every_device(spec, name, value, expected, group):
    assert spec(BASE + parameter(name, value) + group).tuning == expected


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_a_tuning_parameter_is_read_from_yaml_without_quotes(spec, name, value, expected):
    assert spec(in_yaml(f"parameters: {{{name}: {value}}}"), "config.yaml").tuning == expected


def test_graphs_may_be_insisted_on_for_a_model_on_gpus(spec):
    assert spec(BASE + parameter("cuda_graphs", "on") + GPU).tuning.cuda_graphs == "on"


def test_graphs_may_be_insisted_on_in_yaml_where_on_is_a_word(read):
    text = "instance_group: [{kind: KIND_GPU}]\n      parameters: {cuda_graphs: on}"
    (version,) = read(in_yaml(text), "config.yaml").versions
    assert version.tuning.cuda_graphs == "on"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[("autocast", value, '"fp16", "bf16" or "off"') for value in ("FP16", "half", "", "true")],
        *[("memory_format", value, '"channels_last" or "contiguous"') for value in ("nhwc", "", "NCHW")],
        *[("cuda_graphs", value, '"auto", "on" or "off"') for value in ("true", "", "ON", "1")],
        *[("staging_slots", value, "an integer from 1 to 8") for value in ("0", "9", "-1", "", "1.0", "٣")],
        *[("ENABLE_WEIGHT_SHARING", value, '"true" or "false"') for value in ("yes", "", "2")],
    ],
)  # fmt: skip
def test_a_tuning_parameter_that_cannot_be_is_refused_at_its_line(refusal, name, value, expected):
    message = refusal(BASE + parameter(name, value))
    assert message == f"config.pbtxt:4: the parameter {name} is {value!r}; it must be {expected}"


@pytest.mark.parametrize(
    "group",
    ["", "instance_group { count: 2 }\n", "instance_group [ { kind: KIND_GPU }, { kind: KIND_CPU } ]\n"],
)
def test_graphs_cannot_be_insisted_on_where_a_stream_is_on_the_cpu(refusal, group):
    message = refusal(BASE + parameter("cuda_graphs", "on") + group)
    assert message.startswith(
        'config.pbtxt:4: the parameter cuda_graphs is \'on\'; it must be "auto" or "off"'
    )
    assert message.endswith("put it on GPUs alone (kind: KIND_GPU)")


# -- formats that torch doesn't run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("autocast", "fp16"), ("memory_format", "channels_last"), ("ENABLE_WEIGHT_SHARING", "true")],
)
@pytest.mark.parametrize(
    ("format_", "says"),
    [
        ('backend: "onnxruntime"', "an ONNX model"),
        ('platform: "python"', "a Python model"),
        (
            'platform: "torch_aoti" ' + parameter("torch_export_mode", "aoti").strip(),
            "a program that torch_export_mode has compiled",
        ),
    ],
)
def test_a_format_that_torch_does_not_run_is_not_tuned(refusal, name, value, format_, says):
    message = refusal(f"{BASE}{format_}\n{parameter(name, value)}")
    assert message.startswith(
        f"config.pbtxt:5: the parameter {name} is {value}, which {says} can't have; remove it, or"
    )


@pytest.mark.parametrize("format_", ['backend: "onnxruntime"', 'platform: "python"'])
def test_graphs_cannot_be_insisted_on_for_a_format_that_is_never_captured(refusal, format_):
    message = refusal(BASE + format_ + "\n" + parameter("cuda_graphs", "on") + GPU)
    assert message.startswith("config.pbtxt:5: the parameter cuda_graphs is on, which ")


@pytest.mark.parametrize(
    "format_", ['backend: "onnxruntime"', 'platform: "python"', 'platform: "torch_aoti"']
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("autocast", "off"),
        ("memory_format", "contiguous"),
        ("ENABLE_WEIGHT_SHARING", "false"),
        ("cuda_graphs", "off"),
    ],
)
def test_any_format_may_say_that_it_is_not_tuned(spec, format_, name, value):
    file = 'default_model_filename: "model.pt"\n'  # the only one that there is
    found = spec(BASE + format_ + "\n" + file + parameter(name, value)).tuning
    assert replace(found, cuda_graphs="auto") == Tuning()


# -- Triton's optimization ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ }", Tuning()),
        ("{ cuda { } }", Tuning()),
        ("{ cuda { graphs: true } }", Tuning()),
        ("{ cuda { graphs: false } }", Tuning(cuda_graphs="off")),
        ("{ cuda { busy_wait_events: true } }", Tuning(busy_wait=True)),
        ("{ cuda { busy_wait_events: false } }", Tuning()),
        ("{ cuda { output_copy_stream: true } }", Tuning()),
        ("{ cuda { output_copy_stream: false } }", Tuning()),
        ("{ input_pinned_memory { enable: true } output_pinned_memory { enable: true } }", Tuning()),
        ("{ input_pinned_memory { } output_pinned_memory { } }", Tuning()),
    ],
)
@pytest.mark.parametrize("group", ["", GPU], ids=["cpu", "gpus"])
def test_optimization_is_read(spec, text, expected, group):
    assert spec(f"{BASE}optimization {text}\n{group}").tuning == expected


def test_optimization_is_read_from_yaml(spec):
    text = (
        "optimization: {cuda: {graphs: false, busy_wait_events: true}, input_pinned_memory: {enable: true}}"
    )
    assert spec(in_yaml(text), "config.yaml").tuning == Tuning(cuda_graphs="off", busy_wait=True)


@pytest.mark.parametrize(
    ("graphs", "given", "expected"), [("true", "auto", "auto"), ("true", "on", "on"), ("false", "off", "off")]
)
def test_graphs_and_their_parameter_may_agree(spec, graphs, given, expected):
    text = f"optimization {{ cuda {{ graphs: {graphs} }} }}\n" + parameter("cuda_graphs", given) + GPU
    assert spec(BASE + text).tuning.cuda_graphs == expected


@pytest.mark.parametrize(("graphs", "given"), [("true", "off"), ("false", "on"), ("false", "auto")])
def test_graphs_and_a_parameter_that_contradicts_them_are_refused_at_their_line(refusal, graphs, given):
    text = parameter("cuda_graphs", given) + f"optimization {{\n cuda {{\n graphs: {graphs} }} }}\n" + GPU
    expected = (
        f"config.pbtxt:7: optimization.cuda.graphs is {graphs}, and the parameter cuda_graphs is {given!r}"
    )
    assert refusal(BASE + text) == f"{expected}; remove one of the two"


@pytest.mark.parametrize("field", ["input_pinned_memory", "output_pinned_memory"])
def test_copies_on_a_gpu_go_over_pinned_memory(refusal, field):
    message = refusal(f"{BASE}optimization {{ {field} {{\n enable: false }} }}\n{GPU}")
    assert message.startswith(
        f"config.pbtxt:5: optimization.{field}.enable is false, and instance_group puts the"
    )
    assert message.endswith("remove it")


@pytest.mark.parametrize("field", ["input_pinned_memory", "output_pinned_memory"])
def test_pinned_memory_may_be_off_where_there_is_none(spec, field):
    assert spec(f"{BASE}optimization {{ {field} {{ enable: false }} }}\n").tuning == Tuning()


def test_an_ensemble_has_no_optimization_of_its_own(refusal):
    config = (
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
        'ensemble_scheduling { step { model_name: "m" input_map { key: "a" value: "x" }'
        ' output_map { key: "b" value: "y" } } }\noptimization { }\n'
    )
    assert refusal(config).startswith("config.pbtxt:4: optimization is set for an ensemble")


# -- where the streams are ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("instance_group { kind: KIND_GPU }", ("cuda:0",)),
        ("instance_group { kind: KIND_GPU count: 2 }", ("cuda:0", "cuda:0")),
        ("instance_group { gpus: [ 0, 2 ] count: 2 }", ("cuda:0", "cuda:0", "cuda:2", "cuda:2")),
        ("instance_group [ { gpus: 1 }, { count: 2 } ]", ("cuda:1", "cpu", "cpu")),
        ("instance_group [ { gpus: 1 }, { gpus: 1 } ]", ("cuda:1", "cuda:1")),
    ],
)
def test_each_gpu_of_a_group_gets_count_streams(spec, group, expected):
    assert spec(BASE + group).devices == expected
