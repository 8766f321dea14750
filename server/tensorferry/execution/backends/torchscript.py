"""TorchScript models (``model.pt``).

How tensors meet the model's arguments, as in Triton's PyTorch backend:

* inputs, if every name is an argument of ``forward``: by name; if every name ends in ``__<n>``:
  by that index; otherwise in the configuration's order.
* outputs, if every name ends in ``__<n>``: by that index; for a model that returns a dict: by
  key; otherwise in the configuration's order.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch

from tensorferry.errors import ModelLoadError
from tensorferry.execution.backends.signature import input_order, positions
from tensorferry.execution.backends.torch_difference import check_tuning
from tensorferry.execution.backends.torch_load import load_module
from tensorferry.execution.backends.torch_sharing import Prepared, changed_by_script, prepared_once
from tensorferry.execution.backends.torch_tensors import (
    DTYPES,
    check_device,
    first_line,
    open_torch,
    refuse_foreign_datatypes,
)
from tensorferry.execution.backends.torch_tuning import place_of, tuned
from tensorferry.model import Model, ModelSpec, TensorSpec

__all__ = ["describe", "described_device", "open_model"]

# Without this the profiling executor compiles a plan for each new batch size, which costs up to
# 15 ms the first time a size is seen; a dynamic plan serves all sizes.
torch.jit.set_fusion_strategy([("DYNAMIC", 20)])


def open_model(spec: ModelSpec, device: str) -> Model:
    """Load ``spec.path`` onto ``device``, or share what another stream has loaded there.

    Raises:
        ModelLoadError: the file doesn't load, the device isn't there, the model's signature isn't what
            the configuration says, or its tuning spoils its answers.
    """
    check_device(f"model {spec.name!r} version {spec.version}", device)
    found = prepared_once(spec, device, _prepared)
    call = tuned(found.call, found.spec, place_of(device))
    return open_torch(call, found.spec, device, found.order, found.owned)


def describe() -> dict[str, object]:
    """Return what matters of torch itself: version, intra-op threads, CUDA, its devices and its allocator."""
    devices = range(torch.cuda.device_count())
    internals: Any = torch._C
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": [described_device(torch.cuda.get_device_properties(index)) for index in devices],
        # PYTORCH_ALLOC_CONF, or PYTORCH_CUDA_ALLOC_CONF as it was called before, as torch has read it.
        "cuda_allocator": internals._accelerator_getAllocatorSettings() or "torch's defaults",
    }


def described_device(properties: Any) -> str:  # noqa: ANN401 - torch has no public name for it
    """Say a device's name, memory and compute capability, from torch's device properties."""
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB, compute capability {capability})"


def _prepared(spec: ModelSpec, device: str) -> Prepared:
    """Load and check the model."""
    where = f"model {spec.name!r} version {spec.version}"
    place = place_of(device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript's deprecation, said once in the docs
            module = load_module(spec.path, place).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelLoadError(
            f"{where}: {spec.path} is not a TorchScript model that this torch"
            f" ({torch.__version__}) can load: {_reason(error)}"
        ) from error
    _check_signature(module, where)
    arguments = _arguments(module)
    if spec.from_signature:
        spec = _without_configuration(spec, len(arguments), _output_count(module), where)
    order = input_order(spec, arguments, where, "forward takes")
    _check_outputs(spec, _output_count(module), where)
    refuse_foreign_datatypes(spec, where, "a TorchScript model")
    changed = changed_by_script(module) if spec.tuning.shares_weights else ""
    check_tuning(module, module, spec, order, place)
    return Prepared(module, spec, order, [*module.parameters(), *module.buffers()], changed)


def _reason(error: Exception) -> str:
    """The first line of what torch says, less its advice for those who wrote the file with torch.save."""
    return first_line(error).partition(" This is an internal miniz error")[0]


def _check_signature(module: torch.jit.ScriptModule, where: str) -> None:
    if not hasattr(module, "forward"):
        raise ModelLoadError(f"{where}: the model has no method forward; export it from a module with one")
    arguments = _schema(module).arguments[1:]
    if not arguments:
        raise ModelLoadError(f"{where}: forward takes no inputs; a model that is served takes at least one")
    for argument in arguments:
        if argument.type.kind() != "TensorType":
            raise ModelLoadError(
                f"{where}: forward's argument {argument.name!r} is {argument.type.annotation_str}, and only"
                " tensors can be sent; fix it in the module before the export"
            )
    if _output_count(module) == 0:
        raise ModelLoadError(f"{where}: forward returns no tensors")


def _schema(module: torch.jit.ScriptModule) -> Any:  # noqa: ANN401 - torch has no name for the type
    return module.forward.schema  # type: ignore[attr-defined]


def _arguments(module: torch.jit.ScriptModule) -> list[str]:
    return [argument.name for argument in _schema(module).arguments[1:]]  # without self


def _output_count(module: torch.jit.ScriptModule) -> int | None:
    """Return how many tensors forward returns; None where the type doesn't say."""
    kind = _schema(module).returns[0].type
    if kind.kind() == "TensorType":
        return 1
    if kind.kind() == "TupleType":
        return len(kind.elements())
    return None


def _without_configuration(
    spec: ModelSpec, input_count: int, output_count: int | None, where: str
) -> ModelSpec:
    """Return ``spec`` with the tensors that the signature tells of: how many, and nothing else."""
    if output_count is None:
        raise ModelLoadError(
            f"{where}: the type that forward returns doesn't say how many outputs there are, and"
            " there is no configuration; write a config.pbtxt that names them"
        )
    return dataclasses.replace(
        spec,
        inputs=tuple(TensorSpec(f"INPUT__{index}") for index in range(input_count)),
        outputs=tuple(TensorSpec(f"OUTPUT__{index}") for index in range(output_count)),
        datatypes=frozenset(DTYPES),
    )


def _check_outputs(spec: ModelSpec, output_count: int | None, where: str) -> None:
    if output_count is not None and max(positions(spec.outputs)) >= output_count:
        raise ModelLoadError(
            f"{where}: forward returns {output_count} outputs, and the configuration names"
            f" {[each.name for each in spec.outputs]}"
        )
