"""A Triton user's configuration: what is taken as it is, and what is refused, by name and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorferry.model import TensorSpec
from tensorferry.repository import read_model
from tensorferry.tensors import DATATYPES

#: The beginning of a configuration as Triton's users write it; what a test adds begins on line 20.
TRITON = """\
name: "fraud"
platform: "pytorch_libtorch"
max_batch_size: 16
input [
  {
    name: "INPUT__0"
    data_type: TYPE_FP32
    dims: [ 30 ]
  }
]
output [
  {
    name: "OUTPUT__0"
    data_type: TYPE_FP32
    dims: [ 1 ]
  }
]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
"""

#: Triton's switches for its PyTorch backend that ask for nothing that this server doesn't do anyway.
PYTORCH_SWITCHES = (
    "DISABLE_OPTIMIZED_EXECUTION",
    "ENABLE_JIT_EXECUTOR",
    "ENABLE_JIT_PROFILING",
    "ENABLE_NVFUSER",
    "ENABLE_TENSOR_FUSER",
)
#: Switches that mean something on a GPU alone.
GPU_SWITCHES = ("DISABLE_CUDNN", "ENABLE_CACHE_CLEANING")


def parameter(name: str, value: str) -> str:
    return f'parameters: {{\nkey: "{name}"\n  value: {{ string_value: "{value}" }}\n}}\n'


def unsupported(field: str, message: str) -> str:
    return f"config.pbtxt:20: Tensorferry doesn't support the field '{field}' in {message}; remove it"


# -- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        'platform: "pytorch_libtorch"',
        'backend: "pytorch"',
        'platform: "pytorch_libtorch" backend: "pytorch"',
    ],
)
def test_a_pytorch_model_is_taken_by_platform_and_by_backend(spec, lines):
    found = spec(TRITON.replace('platform: "pytorch_libtorch"', lines))
    assert (found.platform, found.backend) == ("pytorch_libtorch", "pytorch")
    assert found.inputs == (TensorSpec("INPUT__0", DATATYPES["FP32"], (30,)),)
    assert found.devices == ("cpu", "cpu")
    assert found.batching.preferred_batch_sizes == (4, 8)
    assert found.batching.max_queue_delay_us == 100


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [3]),
        ("version_policy: { latest: { num_versions: 2 } }", [2, 3]),
        ("version_policy: { all: { } }", [1, 2, 3]),
        ("version_policy: { specific: { versions: [ 1, 3 ] } }", [1, 3]),
    ],
    ids=["none", "latest", "all", "specific"],
)
def test_a_version_policy_serves_the_versions_that_triton_would_serve(read, policy, expected):
    model = read(TRITON + policy, versions=(1, 2, 3))
    assert model.error is None
    assert [version.version for version in model.versions] == expected


@pytest.mark.parametrize("value", ["true", "false", "TRUE", "1", "0"])
@pytest.mark.parametrize("name", PYTORCH_SWITCHES)
def test_a_switch_that_only_tunes_the_execution_is_taken_and_changes_nothing(spec, tmp_path, name, value):
    plain = spec(TRITON)
    (tmp_path / "fraud" / "config.pbtxt").write_text(TRITON + parameter(name, value), encoding="utf-8")
    model = read_model(tmp_path / "fraud")
    assert model.error is None
    assert model.versions == (plain,)
    assert model.config.parameters[name].string_value == value


@pytest.mark.parametrize("value", ["1", " 4 ", "1024"])
def test_the_count_of_threads_between_operations_is_taken(spec, value):
    assert spec(TRITON + parameter("INTER_OP_THREAD_COUNT", value)).intra_op_threads == 0


@pytest.mark.parametrize("name", GPU_SWITCHES)
@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_for_gpus_is_taken_for_a_model_on_the_cpu(spec, name, value):
    assert spec(TRITON + parameter(name, value)).devices == ("cpu", "cpu")


# -- what is refused ------------------------------------------------------------------------------

MODEL_FIELDS = [
    ("sequence_batching", "{ max_sequence_idle_microseconds: 5000000 }"),
    ("model_operations", '{ op_library_filename: "custom_ops.so" }'),
    ("model_transaction_policy", "{ decoupled: true }"),
    ("model_repository_agents", '{ agents { name: "checksum" } }'),
    ("cc_model_filenames", '{ key: "8.0" value: "model.sm80.pt" }'),
    ("metric_tags", '{ key: "team" value: "risk" }'),
    ("model_metrics", '{ metric_control { metric_identifier { family: "nv_inference_first" } } }'),
    ("runtime", '"libtriton_pytorch.so"'),
]


@pytest.mark.parametrize(("field", "value"), MODEL_FIELDS)
def test_a_feature_of_tritons_that_is_missing_is_refused_by_name_and_line(refusal, field, value):
    assert refusal(f"{TRITON}{field}: {value}").startswith(unsupported(field, "ModelConfig"))


OPTIMIZATION_FIELDS = [
    ("graph", "{ level: 1 }", "ModelOptimizationPolicy"),
    ("execution_accelerators", "{ }", "ModelOptimizationPolicy"),
    ("priority", "PRIORITY_MAX", "ModelOptimizationPolicy"),
    ("gather_kernel_buffer_threshold", "4", "ModelOptimizationPolicy"),
    ("eager_batching", "true", "ModelOptimizationPolicy"),
]


@pytest.mark.parametrize(("field", "value", "message"), OPTIMIZATION_FIELDS)
def test_a_missing_optimization_is_refused_by_name_and_line(refusal, field, value, message):
    assert refusal(f"{TRITON}optimization {{ {field}: {value} }}").startswith(unsupported(field, message))


def test_graphs_of_stated_shapes_are_refused_by_name_and_line(refusal):
    more = "optimization { cuda { graph_spec { batch_size: 4 } } }"
    assert refusal(TRITON + more).startswith(unsupported("graph_spec", "Cuda"))


INPUT_FIELDS = [
    ("format", "FORMAT_NCHW"),
    ("reshape", "{ shape: [ 5, 6 ] }"),
    ("is_shape_tensor", "true"),
    ("optional", "true"),
    ("is_non_linear_format_io", "true"),
]
OUTPUT_FIELDS = [
    ("reshape", "{ shape: [ ] }"),
    ("label_filename", '"labels.txt"'),
    ("is_shape_tensor", "true"),
    ("is_non_linear_format_io", "true"),
]


@pytest.mark.parametrize(("field", "value"), INPUT_FIELDS)
def test_a_missing_feature_of_an_input_is_refused_by_name_and_line(refusal, field, value):
    more = f'input {{ name: "INPUT__1" data_type: TYPE_FP32 dims: 1 {field}: {value} }}'
    assert refusal(TRITON + more).startswith(unsupported(field, "ModelInput"))


@pytest.mark.parametrize(("field", "value"), OUTPUT_FIELDS)
def test_a_missing_feature_of_an_output_is_refused_by_name_and_line(refusal, field, value):
    more = f'output {{ name: "OUTPUT__1" data_type: TYPE_FP32 dims: 1 {field}: {value} }}'
    assert refusal(TRITON + more).startswith(unsupported(field, "ModelOutput"))


GROUP_FIELDS = [
    ("rate_limiter", '{ resources [ { name: "memory" count: 4 } ] priority: 2 }'),
    ("host_policy", '"numa_0"'),
    ("profile", '"1"'),
    ("passive", "true"),
    ("secondary_devices", "{ kind: KIND_NVDLA device_id: 0 }"),
]


@pytest.mark.parametrize(("field", "value"), GROUP_FIELDS)
def test_a_missing_feature_of_an_instance_group_is_refused_by_name_and_line(refusal, field, value):
    more = f"instance_group {{ count: 1 kind: KIND_CPU {field}: {value} }}"
    assert refusal(TRITON + more).startswith(unsupported(field, "ModelInstanceGroup"))


NESTED = [
    (
        'model_warmup { name: "w" inputs { key: "INPUT__0" value {'
        ' data_type: TYPE_FP32 dims: 30 input_data_file: "first.bin" } } }',
        unsupported("input_data_file", "Input"),
    ),
    (
        'ensemble_scheduling { step { model_name: "scaler" model_namespace: "models_a" } }',
        unsupported("model_namespace", "Step"),
    ),
    ("instance_group { kind: KIND_MODEL }", "config.pbtxt:20: instance_group 1 has a kind that isn't"),
    (
        'input { name: "INPUT__1" data_type: TYPE_STRING dims: 1 }',
        "config.pbtxt:20: input 'INPUT__1' is TYPE_STRING, which no format takes here; use a numeric type",
    ),
    (
        'batch_input { kind: BATCH_ITEM_SHAPE target_name: "SHAPES" data_type: TYPE_FP32'
        ' source_input: "INPUT__0" }',
        "config.pbtxt:20: ",
    ),
]


@pytest.mark.parametrize(("lines", "expected"), NESTED)
def test_a_missing_feature_further_down_is_refused_by_name_and_line(refusal, lines, expected):
    assert refusal(TRITON + lines).startswith(expected)


@pytest.mark.parametrize(
    ("platform", "backend"),
    [
        ("tensorrt_plan", "tensorrt"),
        ("tensorflow_savedmodel", "tensorflow"),
        ("", "dali"),
        ("", "openvino"),
        ("", "vllm"),
    ],
)
def test_a_backend_that_is_missing_is_refused_by_name_and_line(refusal, platform, backend):
    given = f'platform: "{platform}"' if platform else f'backend: "{backend}"'
    what = f"the platform '{platform}'" if platform else f"the backend '{backend}'"
    found = refusal(TRITON.replace('platform: "pytorch_libtorch"', given))
    assert found.startswith(f"config.pbtxt:2: {what} isn't supported; ")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, "yes", 'it must be "true" or "false"') for name in PYTORCH_SWITCHES),
        *((name, "", 'it must be "true" or "false"') for name in PYTORCH_SWITCHES),
        *(
            ("INTER_OP_THREAD_COUNT", value, "it must be an integer from 1 to 1024")
            for value in ("0", "-1", "two")
        ),
        ("DISABLE_CUDNN", "2", 'it must be "true" or "false"'),
        ("INFERENCE_MODE", "false", 'it must be "true" (this server runs every model in inference mode)'),
    ],
)
def test_a_value_that_triton_would_not_take_is_refused_at_its_line(refusal, name, value, expected):
    told = refusal(TRITON + parameter(name, value))
    assert told.startswith(f"config.pbtxt:20: the parameter {name} is '{value}'; {expected}")


@pytest.mark.parametrize("name", GPU_SWITCHES)
def test_a_switch_for_gpus_is_refused_where_it_would_be_ignored(read, name):
    model = read(TRITON.replace("kind: KIND_CPU", "kind: KIND_GPU") + parameter(name, "true"))
    message = str(model.error)
    assert f"config.pbtxt:20: the parameter {name} is 'true'; it must be \"false\", or left out" in message


@pytest.mark.parametrize(
    "name", ["TORCH_COMPILE_OPTIONAL_PARAMETERS", "EXECUTION_ENV_PATH", "model_repository"]
)
def test_a_parameter_that_means_something_to_another_backend_is_refused_by_name_and_line(refusal, name):
    told = refusal(TRITON + parameter(name, "x"))
    assert told.startswith(f"config.pbtxt:20: Tensorferry doesn't know the parameter '{name}'; remove it")


def test_a_refusal_names_the_file_with_its_path(read, tmp_path: Path):
    model = read(TRITON + "sequence_batching { }")
    assert str(model.error).startswith(f"{tmp_path}/fraud/config.pbtxt:20: ")
