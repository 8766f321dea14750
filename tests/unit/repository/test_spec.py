from __future__ import annotations

import pytest
from tests.unit.repository.conftest import BASE, INPUT, OUTPUT

from tensorferry.model import BatchingSpec, TensorSpec, WarmupSpec
from tensorferry.repository import DEFAULT_MAX_BATCH_SIZE
from tensorferry.tensors import DATATYPES

FP32 = DATATYPES["FP32"]


def test_configuration_becomes_a_specification(spec):
    found = spec(BASE)
    assert found.name == "fraud"
    assert found.version == 1
    assert found.path.parts[-3:] == ("fraud", "1", "model.pt")
    assert (found.platform, found.backend) == ("pytorch_libtorch", "pytorch")
    assert found.max_batch_size == 8
    assert found.inputs == (TensorSpec("x", FP32, (3, -1)),)
    assert found.outputs == (TensorSpec("y", DATATYPES["FP64"], (1,)),)
    assert found.devices == ("cpu",)
    assert found.intra_op_threads == 0
    assert found.warmups == ()
    assert not found.from_signature


def test_model_without_a_configuration_is_batched_and_takes_its_tensors_from_the_file(read):
    model = read()
    (found,) = model.versions
    assert found.from_signature
    assert found.inputs == found.outputs == ()
    assert found.max_batch_size == DEFAULT_MAX_BATCH_SIZE == 64
    assert found.batching == BatchingSpec(enabled=True)
    assert found.platform == "pytorch_libtorch"
    assert model.config.max_batch_size == 64
    assert model.config.HasField("dynamic_batching")


def test_served_configuration_has_its_defaults_filled_in(read):
    config = read(BASE).config
    assert config.name == "fraud"
    assert (config.platform, config.backend) == ("pytorch_libtorch", "pytorch")
    assert config.default_model_filename == "model.pt"
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("fraud_0", 1, group.KIND_CPU)
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    "line",
    ['name: "fraud"', 'name: ""', 'platform: "pytorch_libtorch"', 'backend: "pytorch"',
     'platform: "pytorch_libtorch" backend: "pytorch"'],
)  # fmt: skip
def test_name_platform_and_backend_may_be_given(spec, line):
    assert spec(BASE + line).name == "fraud"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('name: "fruad"', "the name is 'fruad', and the directory is 'fraud'"),
        ('platform: "onnx"', "the platform 'onnx' isn't supported"),
        ('backend: "tensorrt"', "the backend 'tensorrt' isn't supported"),
        (
            'platform: "pytorch_libtorch" backend: "python"',
            "the platform 'pytorch_libtorch' isn't one of the backend 'python'; remove one of the two",
        ),
        *(
            (f'default_model_filename: "{name}"', "default_model_filename is ")
            for name in ("../model.pt", "a/b.pt", "..", ".", "/etc/passwd", "a\\\\b.pt", "a\\000b")
        ),
        ("instance_group { count: -1 }", "instance_group 0 has count -1"),
        ("instance_group { kind: KIND_MODEL }", "instance_group 0 has a kind that isn't supported"),
        ("instance_group { kind: 9 }", "instance_group 0 has a kind that isn't supported"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "instance_group 0 is KIND_CPU and lists gpus"),
        ("instance_group { gpus: [ 0, -1 ] }", "instance_group 0 has GPU -1"),
        ("instance_group { gpus: [ 1, 1 ] }", "instance_group 0 has GPU 1 twice"),
        ("instance_group { count: 65 }", "instance_group asks for 65 worker streams in all, and 64 is"),
        ("instance_group { count: 33 gpus: [ 0, 1 ] }", "instance_group asks for 66 worker streams"),
        ("instance_group [ { count: 40 }, { count: 40 } ]", "instance_group asks for 80 worker streams"),
        ("instance_group { count: 2147483647 }", "instance_group asks for 2147483647 worker streams"),
        ("dynamic_batching { preferred_batch_size: [ 4, 9 ] }", "preferred_batch_size has 9; allowed is 1"),
        ("dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size has 0; allowed is 1 to max"),
    ],
)
def test_field_that_cannot_be_is_refused_at_its_line(refusal, line, expected):
    assert refusal(BASE + line).startswith(f"config.pbtxt:4: {expected}")


def test_negative_max_batch_size_is_refused(refusal):
    assert refusal(INPUT + OUTPUT + "max_batch_size: -1").startswith("config.pbtxt:3: max_batch_size is -1")


def test_other_model_file_name_is_looked_for(tmp_path, refusal):
    assert "1/scorer.pt: version 1 of the model has no such file" in refusal(
        BASE + 'default_model_filename: "scorer.pt"'
    )


# -- tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OUTPUT, "config.pbtxt: declares no input; add 'input'"),
        (INPUT, "config.pbtxt: declares no output; add 'output'"),
        ("", "config.pbtxt: declares no input"),
        (INPUT + OUTPUT + INPUT, "config.pbtxt:3: 'x' is the name of input 0 and of 1"),
        (INPUT + OUTPUT + OUTPUT, "config.pbtxt:3: 'y' is the name of output 0 and of 1"),
        (OUTPUT + "input {\n data_type: TYPE_FP32 dims: 1 }", "config.pbtxt:2: input 0 has no name"),
        (
            OUTPUT + 'input {\n name: "x"\n dims: 1 }',
            "config.pbtxt:2: the data_type of input 'x' is missing; give one",
        ),
        (
            OUTPUT + 'input {\n name: "x"\n data_type: TYPE_INVALID }',
            "config.pbtxt:4: the data_type of input 'x' is unknown or TYPE_INVALID; give one",
        ),
        (
            OUTPUT + 'input {\n name: "x"\n data_type: 99 }',
            "config.pbtxt:4: the data_type of input 'x' is unknown or TYPE_INVALID; give one",
        ),
        (
            INPUT + 'output {\n name: "y"\n data_type: TYPE_STRING dims: 1 }',
            "config.pbtxt:4: output 'y' is TYPE_STRING",
        ),
        (
            INPUT + 'output {\n name: "y"\n data_type: TYPE_FP32\n dims: [ 1,\n 0 ] }',
            "config.pbtxt:6: output 'y' has 0 in dims",
        ),
        (
            INPUT + 'output { name: "y" data_type: TYPE_FP32 dims: 1\n dims: -2 }',
            "config.pbtxt:3: output 'y' has -2 in dims",
        ),
        (
            OUTPUT + 'input { name: "x" data_type: TYPE_FP32 }',
            "config.pbtxt:2: input 'x' has no dims; add dims, such as [1], or set a max_batch_size above 0",
        ),
    ],
)
def test_tensor_that_cannot_be_is_refused_at_its_line(refusal, config, expected):
    assert refusal(config).startswith(expected)


def test_empty_dims_are_one_number_per_row(spec):
    assert spec(BASE + 'input { name: "amount" data_type: TYPE_FP32 }').inputs[1].dims == ()


def test_input_and_output_may_share_a_name(spec):
    assert spec(BASE + 'output { name: "x" data_type: TYPE_FP32 dims: 3 }').outputs[1].name == "x"


@pytest.mark.parametrize("name", [name for name in DATATYPES if name != "BYTES"])
def test_every_numeric_datatype_is_read(spec, name):
    config = BASE + f'input {{ name: "extra" data_type: TYPE_{name} dims: 1 }}'
    assert spec(config).inputs[1].datatype is DATATYPES[name]


# -- worker streams -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("instance_group {}", ("cpu",)),
        ("instance_group { count: 0 kind: KIND_CPU }", ("cpu",)),
        ("instance_group { count: 2 kind: KIND_CPU }", ("cpu", "cpu")),
        ("instance_group { kind: KIND_AUTO count: 2 }", ("cpu", "cpu")),
        ("instance_group { kind: KIND_AUTO gpus: 1 }", ("cuda:1",)),
        ("instance_group { kind: KIND_GPU }", ("cuda:0",)),
        ("instance_group { count: 2 gpus: [ 0, 3 ] }", ("cuda:0", "cuda:0", "cuda:3", "cuda:3")),
        ("instance_group [ { gpus: 0 }, { kind: KIND_CPU } ]", ("cuda:0", "cpu")),
        ("instance_group { count: 64 }", ("cpu",) * 64),
    ],
)  # fmt: skip
def test_instance_groups_name_a_device_for_each_stream(spec, groups, expected):
    assert spec(BASE + groups).devices == expected


# -- warm-up ------------------------------------------------------------------------------------


def warmup(
    inputs='key: "x" value { data_type: TYPE_FP32 dims: [ 3, 5 ] zero_data: true }', more="batch_size: 2"
):
    return f'{BASE}model_warmup {{ name: "w" {more}\n inputs {{ {inputs} }}\n}}'


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (warmup(), WarmupSpec("w", 2, 1, ((TensorSpec("x", FP32, (3, 5)), False),))),
        (warmup(more=""), WarmupSpec("w", 1, 1, ((TensorSpec("x", FP32, (3, 5)), False),))),
        (warmup(more="count: 0"), WarmupSpec("w", 1, 1, ((TensorSpec("x", FP32, (3, 5)), False),))),
        (
            warmup('key: "x" value { data_type: TYPE_FP32 dims: [ 3, 1 ] random_data: true }', "count: 9"),
            WarmupSpec("w", 1, 9, ((TensorSpec("x", FP32, (3, 1)), True),)),
        ),
        (
            warmup(more="batch_size: 0").replace("max_batch_size: 8", ""),
            WarmupSpec("w", 1, 1, ((TensorSpec("x", FP32, (3, 5)), False),)),
        ),
    ],
)
def test_warmup_request_is_read(spec, config, expected):
    assert spec(config).warmups == (expected,)


def test_warmup_inputs_are_in_the_models_order(spec):
    more = 'input { name: "a" data_type: TYPE_INT8 dims: 1 }'
    sample = ' inputs { key: "a" value { data_type: TYPE_INT8 dims: 1 zero_data: true } }'
    (found,) = spec(warmup(more="batch_size: 1" + sample) + more).warmups
    assert [tensor.name for tensor, _ in found.inputs] == ["x", "a"]


VALUE = 'key: "x" value { data_type: TYPE_FP32 %s zero_data: true }'


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (warmup(more="batch_size: 9"), "4: warm-up 'w' has batch_size 9; allowed is 1 to max_batch_size 8"),
        (warmup(more="batch_size: 0"), "4: warm-up 'w' has batch_size 0; allowed is 1 to max_batch_size 8"),
        (
            warmup().replace("max_batch_size: 8", ""),
            "4: warm-up 'w' has batch_size 2; allowed is 1, as max_batch_size is 0",
        ),
        (warmup('key: "z"'), "5: warm-up 'w' has 'z', which is no input of the model; it takes 'x'"),
        (
            warmup() + 'input { name: "extra" data_type: TYPE_INT8 dims: 1 }',
            "5: warm-up 'w' lacks the input 'extra'",
        ),
        (
            warmup('key: "x" value { data_type: TYPE_FP16 dims: [ 3, 1 ] zero_data: true }'),
            "5: 'x' of warm-up 'w' is FP16, and the model's input is FP32",
        ),
        (warmup('key: "x" value { zero_data: true }'), "5: the data_type of 'x' of warm-up 'w' is missing"),
        (warmup(VALUE % "dims: [ 3, -1 ]"), "5: 'x' of warm-up 'w' has dims [3, -1]; each must be 1 or more"),
        (
            warmup(VALUE % "dims: [ 4, 1 ]"),
            "5: 'x' of warm-up 'w' has dims [4, 1], and the model's input has",
        ),
        (warmup(VALUE % "dims: 3"), "5: 'x' of warm-up 'w' has dims [3], and the model's input has [3, -1]"),
        (
            warmup('key: "x" value { data_type: TYPE_FP32 dims: [ 3, 1 ] }'),
            "5: 'x' of warm-up 'w' doesn't say what to send",
        ),
    ],
)
def test_warmup_request_that_the_model_would_refuse_is_refused_at_its_line(refusal, config, expected):
    assert refusal(config).startswith(f"config.pbtxt:{expected}")
