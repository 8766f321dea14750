"""A writer of model directories. No test here loads a model, so the model's file is a few bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensorferry.repository import RepositoryModel, read_model

Read = Callable[..., RepositoryModel]


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
def refusal(read: Read) -> Callable[..., str]:
    """Write a model directory and return why it was refused, from ``config.pbtxt:`` on."""

    def refused(config: str | None = None, file: str = "config.pbtxt", versions: Sequence[int] = (1,)) -> str:
        model = read(config, file, versions)
        assert model.error is not None, "the model was accepted"
        assert model.versions == ()
        message = str(model.error)
        return message[message.index("/fraud") + len("/fraud") :].lstrip("/")

    return refused
