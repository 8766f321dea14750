"""A configuration to a specification: every check that needs no look at the version directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tensorferry.model import ModelSpec
from tensorferry.repository.batching import batching_spec, check_times
from tensorferry.repository.ensembles import ensemble_steps, is_ensemble
from tensorferry.repository.formats import check_format, configured_format, format_in
from tensorferry.repository.instances import complete_groups, devices
from tensorferry.repository.padding import check_padding, padding_spec
from tensorferry.repository.parameters import apply_parameters
from tensorferry.repository.source import ConfigSource, quoted
from tensorferry.repository.tensor_specs import tensor_specs
from tensorferry.repository.tuning import apply_optimization
from tensorferry.repository.warmup import warmup_specs
from tensorferry.wire.model_config_pb2 import ModelConfig

__all__ = [
    "DEFAULT_MAX_BATCH_SIZE",
    "DEFAULT_MODEL_FILENAME",
    "build_spec",
    "complete_config",
    "without_config",
]

#: Rows in a batch of a model that has no configuration.
DEFAULT_MAX_BATCH_SIZE: Final = 64

#: A TorchScript model's file in a version directory, unless ``default_model_filename`` says otherwise.
DEFAULT_MODEL_FILENAME: Final = "model.pt"


def without_config(directory: Path) -> ConfigSource:
    """Return what stands for a configuration where there is none: batching on, tensors left to the model."""
    config = ModelConfig(max_batch_size=DEFAULT_MAX_BATCH_SIZE)
    config.dynamic_batching.SetInParent()
    return ConfigSource(directory, config, {}, is_file=False)


def complete_config(source: ConfigSource, name: str, newest: Path) -> ModelConfig:
    """Return the configuration as it is served: with every default that the file leaves out.

    ``newest`` is the directory of the newest version: its file says what the configuration doesn't.

    Raises:
        ModelConfigError: the name, platform, backend, file name, batch size or instance groups can't be.
    """
    _check_identity(source, name)
    _check_model_filename(source)
    if source.config.max_batch_size < 0:
        what = f"max_batch_size is {source.config.max_batch_size}; use 0 for no batch dimension"
        raise source.error(what, "max_batch_size")
    config = ModelConfig()
    config.CopyFrom(source.config)
    config.name = name
    own = configured_format(source) or format_in(newest)
    config.platform = own.platform
    config.backend = own.backend
    config.default_model_filename = source.config.default_model_filename or own.filename
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if not is_ensemble(source):
        del config.instance_group[:]
        config.instance_group.extend(complete_groups(source, name))
    return config


def build_spec(source: ConfigSource, config: ModelConfig) -> ModelSpec:
    """Return the specification that all versions share; ``version`` is 0 and ``path`` the model's directory.

    Args:
        source: The configuration as it was written.
        config: The same as ``complete_config`` has completed it.

    Raises:
        ModelConfigError: the first thing found that can't be.
    """
    steps = ensemble_steps(source, config.name)
    inputs = tensor_specs(source, "input") if source.is_file else ()
    outputs = tensor_specs(source, "output") if source.is_file else ()
    spec = ModelSpec(
        name=config.name,
        version=0,
        path=source.path.parent if source.is_file else source.path,
        platform=config.platform,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        batching=batching_spec(source),
        devices=devices(list(config.instance_group)),
        warmups=warmup_specs(source, inputs),
        from_signature=not source.is_file,
        response_cache=source.config.response_cache.enable,
        padding=padding_spec(source, inputs, outputs),
        steps=steps,
    )
    spec = apply_optimization(source, apply_parameters(source, spec))
    check_times(source, spec)
    check_padding(source, spec)
    return spec


def _check_identity(source: ConfigSource, name: str) -> None:
    config = source.config
    if config.name not in ("", name):
        what = f"the name is {quoted(config.name)}, and the directory is {quoted(name)}"
        raise source.error(f"{what}; make them equal, or remove the name", "name")
    check_format(source)


def _check_model_filename(source: ConfigSource) -> None:
    name = source.config.default_model_filename
    is_plain = os.path.basename(name) == name and name not in (".", "..") and "\\" not in name
    if not is_plain or not name.isprintable():
        what = f"default_model_filename is {quoted(name)}; it must be a plain file name"
        raise source.error(what, "default_model_filename")
