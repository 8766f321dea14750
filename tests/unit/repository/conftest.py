"""A writer of model directories. No test here loads a model, so the model's file is a few bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensorferry.model import ModelSpec
from tensorferry.repository import RepositoryModel, read_model

Read = Callable[..., RepositoryModel]

INPUT = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }\n'
OUTPUT = 'output { name: "y" data_type: TYPE_FP64 dims: 1 }\n'
#: One line each, so that what a test adds begins on line 4.
BASE = "max_batch_size: 8\n" + INPUT + OUTPUT


def write_model(
    root: Path, config: str | None = None, file: str = "config.pbtxt", versions: Sequence[int] = (1,)
) -> Path:
    """Write the model ``fraud`` under ``root`` and return its directory."""
    directory = root / "fraud"
    directory.mkdir()
    if config is not None:
        (directory / file).write_text(config, encoding="utf-8")
    for version in versions:
        (directory / str(version)).mkdir()
        (directory / str(version) / "model.pt").write_bytes(b"model")
    return directory


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a model directory and read it back."""

    def read_written(
        config: str | None = None, file: str = "config.pbtxt", versions: Sequence[int] = (1,)
    ) -> RepositoryModel:
        return read_model(write_model(tmp_path, config, file, versions))

    return read_written


@pytest.fixture
def spec(read: Read) -> Callable[..., ModelSpec]:
    """Read a configuration that must be accepted, and return its one version."""

    def accepted(config: str | None = None, file: str = "config.pbtxt") -> ModelSpec:
        model = read(config, file)
        assert model.error is None
        (version,) = model.versions
        return version

    return accepted


@pytest.fixture
def refusal(read: Read) -> Callable[..., str]:
    """Write a model directory and return why it was refused, from ``config.pbtxt:`` on."""

    def refused(config: str | None = None, file: str = "config.pbtxt", versions: Sequence[int] = (1,)) -> str:
        model = read(config, file, versions)
        assert model.error is not None, "the model was accepted"
        assert model.versions == ()
        message = str(model.error)
        return message[message.index("/fraud") + len("/fraud") :].lstrip("/")

    return refused
