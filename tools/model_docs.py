"""The section of docs/configuration.md on a model's own configuration.

The fields come from the proto file, and one that has no description here ends the run with its
name; the parameters bring their own descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tensorferry.repository.parameters import PARAMETERS
from tensorferry.wire import model_config_pb2

__all__ = ["model_section"]

_HEAD: Final = """
## A model

`config.pbtxt`, or the same fields as YAML in `config.yaml`, lies in the model's directory. The fields have
Triton's names, numbers and meaning, except where this page says otherwise; `protos/model_config.proto` lists
them all. A field that isn't there is refused by name and line, and so is a value that can't be or that
contradicts another. The ModelConfig call returns what was written, with the defaults of the left-out
identity and instance fields filled in.

### Batching and queueing

Without `dynamic_batching` each request runs on its own. With it, and nothing else, requests are batched
without any setting: see the parameter `latency_objective_ms` below for the one worth making.

| field | unit | default | meaning |
|---|---|---|---|
"""

_PADDING_HEAD: Final = """
### Requests of unlike lengths

An input with `allow_ragged_batch: true` and exactly one -1 in `dims` is padded along that dimension to the
smallest of `ragged_buckets` (a parameter, below) that fits, so that requests of unlike lengths share a
batch. All such inputs of one request have the same length. The model learns the true lengths from the
input that `batch_input` names; an output that `batch_output` names is cut back to each request's own length,
and any other output is returned as the model made it. `batch_input` declares the lengths by itself: the
target is not listed in `input`, and callers don't send it.

| field | unit | default | meaning |
|---|---|---|---|
"""

_ENSEMBLE_HEAD: Final = """
### Ensembles

`platform: "ensemble"` with `ensemble_scheduling` makes a chain of other models: [ensembles](ensembles.md).
Such a configuration has `input`, `output`, `max_batch_size` and `version_policy` beside it, and nothing else
of this page; its version directories may be empty.

| field | unit | default | meaning |
|---|---|---|---|
"""

_INSTANCES: Final = """
### Instances and devices

| field | unit | default | meaning |
|---|---|---|---|
| `instance_group.count` | streams | `1` | worker streams: on each GPU of `gpus`, or in all on the CPU |
| `instance_group.kind` |  | `KIND_GPU` where `gpus` are given, else `KIND_CPU` | `KIND_CPU` or `KIND_GPU` |
| `instance_group.gpus` |  | the first GPU | GPUs by their number, as CUDA counts those that it sees |

Two defaults differ from Triton's. Without `instance_group` a model has one stream on the CPU; Triton puts one
on every GPU that it sees. `KIND_GPU` without `gpus` is GPU 0 alone; for Triton it is every GPU. To have them
all here, list them: `instance_group { kind: KIND_GPU gpus: [ 0, 1, 2, 3 ] }`. With `count: 2` each of the
four then has two streams. Several groups add up: `instance_group [ { gpus: 0 count: 2 }, { gpus: 1 } ]` has
two streams on GPU 0 and one on GPU 1.

How a model uses a GPU; on the CPU nothing of it has an effect:

| field | unit | default | meaning |
|---|---|---|---|
"""

_PARAMETERS_HEAD: Final = """
### Parameters

Tensorferry's own settings are entries of the `parameters` map, whose values are strings:

```
parameters { key: "latency_objective_ms" value { string_value: "10" } }
```

In YAML: `parameters: {latency_objective_ms: 10}`. An unknown key is refused.

| parameter | unit | default | meaning |
|---|---|---|---|
"""

_TAIL: Final = """
### What is refused because it contradicts itself

- `max_queue_delay_microseconds` longer than a `default_timeout_microseconds` that is in force, or not
  shorter than `latency_objective_ms`;
- `preserve_ordering` with more than one priority level;
- a default or a policy for a priority level that doesn't exist;
- `ragged_max_length` beyond the last of `ragged_buckets`, or a `model_warmup` request longer than that;
- `ragged_buckets`, `batch_input` or `batch_output` where no input says `allow_ragged_batch: true`, and that
  without `ragged_buckets`;
- `split_oversized` without a batch dimension; `execution: inline` with several streams or on a GPU;
- `optimization.cuda.graphs` and the parameter `cuda_graphs`, where one wants what the other forbids;
  `cuda_graphs: on` with a stream on the CPU;
- `autocast`, `memory_format: channels_last` or `ENABLE_WEIGHT_SHARING` for a model that isn't run by torch,
  operation by operation: ONNX, Python, and what AOTInductor has compiled.
"""

_POLICY: Final = "ModelQueuePolicy"
_STEP: Final = "ModelEnsembling.Step"
_CUDA: Final = "ModelOptimizationPolicy.Cuda"
_PINNED: Final = "ModelOptimizationPolicy.PinnedMemoryBuffer"

#: (unit, default, meaning) of each field, by message and field.
_FIELDS: Final[dict[tuple[str, str], tuple[str, str, str]]] = {
    ("ModelDynamicBatching", "preferred_batch_size"): (
        "rows",
        "none",
        "batch sizes to prefer when a batch leaves; 1 to `max_batch_size`",
    ),
    ("ModelDynamicBatching", "max_queue_delay_microseconds"): (
        "µs",
        "as the policy sees fit",
        "how long a request may wait for company; a number is obeyed literally, also 0",
    ),
    ("ModelDynamicBatching", "preserve_ordering"): (
        "",
        "`false`",
        "replies leave in the order in which the requests came; not with more than one priority level",
    ),
    ("ModelDynamicBatching", "priority_levels"): (
        "levels",
        "`0`: no priorities",
        "levels of priority, 1 the highest; at most 1000",
    ),
    ("ModelDynamicBatching", "default_priority_level"): (
        "level",
        "required with `priority_levels`",
        "level of a request that names none; 1 to `priority_levels`",
    ),
    ("ModelDynamicBatching", "default_queue_policy"): (
        "",
        "the defaults below",
        "policy of requests whose level has none of its own",
    ),
    ("ModelDynamicBatching", "priority_queue_policy"): (
        "",
        "none",
        "policy by level, in place of the default policy as a whole",
    ),
    (_CUDA, "graphs"): (
        "",
        "as the parameter `cuda_graphs` says; Triton: `false`",
        "`false`, written out, captures no CUDA graphs; `true` is what happens anyway",
    ),
    (_CUDA, "busy_wait_events"): (
        "",
        "`false`",
        "the thread that waits for a batch spins instead of sleeping: some tens of µs sooner, for a core",
    ),
    (_CUDA, "output_copy_stream"): (
        "",
        "`true`; Triton: `false`",
        "taken for Triton's sake, without effect: outputs are always copied on a stream of their own",
    ),
    (_PINNED, "enable"): (
        "",
        "`true`",
        "copies go over pinned memory; `false` is refused for a model on a GPU, whose copies would hold"
        " everything up without",
    ),
    (_POLICY, "timeout_action"): (
        "",
        "`REJECT`",
        "a request whose timeout comes while it waits: `REJECT` refuses it, `DELAY` runs it when no"
        " other waits",
    ),
    (_POLICY, "default_timeout_microseconds"): (
        "µs",
        "`0`: none",
        "how long a request may wait, from receipt; the call's own deadline holds where it is nearer",
    ),
    (_POLICY, "allow_timeout_override"): (
        "",
        "`true`; Triton: `false`",
        "whether a request's own `timeout` may shorten the default (it never lengthens it); only a written"
        " `false` forbids it",
    ),
    (_POLICY, "max_queue_size"): (
        "requests",
        "`0`: the server's `max_queue_size`",
        "requests that may wait; more are refused",
    ),
    ("ModelResponseCache", "enable"): (
        "",
        "`false`",
        "answer a request that was answered before from memory, without running the model",
    ),
    ("BatchInput", "kind"): (
        "",
        "`BATCH_ELEMENT_COUNT`",
        "the only kind that is supported: each row's own length in the variable dimension (Triton counts"
        " all the request's elements)",
    ),
    ("BatchInput", "target_name"): (
        "",
        "required",
        "the model's input that takes the lengths, dims [1]; one",
    ),
    ("BatchInput", "data_type"): ("", "required", "`TYPE_INT32`, `TYPE_INT64` or `TYPE_FP32`"),
    ("BatchInput", "source_input"): ("", "required", "a ragged input; one"),
    ("BatchOutput", "target_name"): (
        "",
        "required",
        "outputs to cut back, each with exactly one -1 in `dims`",
    ),
    ("BatchOutput", "kind"): ("", "`BATCH_SCATTER_WITH_INPUT_SHAPE`", "the only kind there is"),
    ("BatchOutput", "source_input"): ("", "required", "a ragged input; one"),
    ("ModelEnsembling", "step"): (
        "",
        "required",
        "the steps, in any order; they run in that of their tensors, one after the other",
    ),
    (_STEP, "model_name"): ("", "required", "the step's model, or another ensemble"),
    (_STEP, "model_version"): (
        "",
        "`-1`: as a request without a version",
        "the version to call, from 1 on",
    ),
    (_STEP, "input_map"): (
        "",
        "required",
        "name in the model to name in the ensemble, for each of the model's inputs",
    ),
    (_STEP, "output_map"): (
        "",
        "required",
        "name in the model to name in the ensemble, for the outputs that are wanted; others are dropped",
    ),
}

#: Message to how its fields are written: what stands before the field's name.
_BATCHING_MESSAGES: Final = {
    "ModelDynamicBatching": "dynamic_batching.",
    _POLICY: "<policy>.",
    "ModelResponseCache": "response_cache.",
}
_PADDING_MESSAGES: Final = {"BatchInput": "batch_input.", "BatchOutput": "batch_output."}
_DEVICE_MESSAGES: Final = {
    _CUDA: "optimization.cuda.",
    _PINNED: "optimization.{input,output}_pinned_memory.",
}
_ENSEMBLE_MESSAGES: Final = {
    "ModelEnsembling": "ensemble_scheduling.",
    _STEP: "ensemble_scheduling.step.",
}

_RAGGED_ROW: Final = (
    "| `input.allow_ragged_batch` |  | `false` | requests may differ in the one -1 of this input's `dims` |\n"
)


def model_section() -> str:
    """Return the section, to stand after the server's settings.

    Raises:
        KeyError: a field of the proto file has no description.
    """
    parameters = "".join(
        _row(name, each.unit, each.default, each.meaning) for name, each in PARAMETERS.items()
    )
    return (
        _HEAD
        + "".join(_rows(_BATCHING_MESSAGES))
        + _PADDING_HEAD
        + _RAGGED_ROW
        + "".join(_rows(_PADDING_MESSAGES))
        + _INSTANCES
        + "".join(_rows(_DEVICE_MESSAGES))
        + _ENSEMBLE_HEAD
        + "".join(_rows(_ENSEMBLE_MESSAGES))
        + _PARAMETERS_HEAD
        + parameters
        + _TAIL
    )


def _rows(messages: dict[str, str]) -> Iterator[str]:
    for message, prefix in messages.items():
        name, *inner = message.split(".")
        descriptor = model_config_pb2.DESCRIPTOR.message_types_by_name[name]
        for each in inner:
            descriptor = descriptor.nested_types_by_name[each]
        for field in descriptor.fields:
            yield _row(f"{prefix}{field.name}", *_FIELDS[message, field.name])


def _row(name: str, unit: str, default: str, meaning: str) -> str:
    return f"| `{name}` | {unit} | {default} | {meaning} |\n"
