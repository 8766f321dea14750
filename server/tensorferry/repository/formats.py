"""The formats that a model's file may have: Triton's names for them, and the file's usual name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorferry.repository.source import ConfigSource, quoted, suggestion

__all__ = ["ENSEMBLE", "FORMATS", "Format", "check_format", "configured_format", "format_in"]


@dataclass(frozen=True, slots=True)
class Format:
    """A format. ``filename`` is the model's file in a version directory; "" where there is none."""

    platform: str
    backend: str
    filename: str


ENSEMBLE: Final = Format("ensemble", "", "")

#: The first is what a model without configuration is taken for when its directory holds several.
FORMATS: Final = (
    Format("pytorch_libtorch", "pytorch", "model.pt"),
    Format("torch_aoti", "pytorch", "model.pt2"),
    Format("onnxruntime_onnx", "onnxruntime", "model.onnx"),
    Format("python", "python", "model.py"),
    ENSEMBLE,
)


def check_format(source: ConfigSource) -> None:
    """Check ``platform`` and ``backend``.

    Raises:
        ModelConfigError: one that isn't supported, or two that contradict each other.
    """
    platform, backend = source.config.platform, source.config.backend
    for field, value, known in (
        ("platform", platform, [each.platform for each in FORMATS]),
        ("backend", backend, sorted({each.backend for each in FORMATS if each.backend})),
    ):
        if value and value not in known:
            what = f"the {field} {quoted(value)} isn't supported; use one of {', '.join(known)}, or remove it"
            raise source.error(what + suggestion(value, known), field)
    if (
        platform
        and backend
        and not any((each.platform, each.backend) == (platform, backend) for each in FORMATS)
    ):
        what = f"the platform {quoted(platform)} isn't one of the backend {quoted(backend)}"
        raise source.error(f"{what}; remove one of the two", "backend")
    if source.config.HasField("ensemble_scheduling") and platform not in ("", ENSEMBLE.platform):
        what = f"ensemble_scheduling is for the platform 'ensemble', and this is {quoted(platform)}"
        raise source.error(f"{what}; remove one of the two", "platform")


def configured_format(source: ConfigSource) -> Format | None:
    """Return the format that a checked configuration states; None if each version's own file says it."""
    config = source.config
    if config.platform == ENSEMBLE.platform or config.HasField("ensemble_scheduling"):
        return ENSEMBLE
    for each in FORMATS:
        if config.platform and each.platform == config.platform:
            return each
    of_backend = [each for each in FORMATS if config.backend and each.backend == config.backend]
    suffix = os.path.splitext(config.default_model_filename)[1]
    by_suffix = [each for each in of_backend or FORMATS if suffix and each.filename.endswith(suffix)]
    matching = [each for each in by_suffix if os.path.splitext(each.filename)[1] == suffix]
    if matching:
        return matching[0]
    if len(of_backend) == 1 or (of_backend and config.default_model_filename):
        return of_backend[0]
    if config.default_model_filename:
        return FORMATS[0]
    return None


def format_in(directory: Path, among: Sequence[Format] = FORMATS) -> Format:
    """Return the format of the file that a version directory holds; the first of all if it holds none."""
    for each in among:
        if each.filename and os.path.lexists(directory / each.filename):
            return each
    return FORMATS[0]
