"""``tensorferry check``: what is wrong with a repository, and which formats its models could take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tensorferry.checking import CheckedVersion, check_repository
from tensorferry.commands.convert import lines_of
from tensorferry.execution.backends.signature import input_order
from tensorferry.model import ModelSpec

if TYPE_CHECKING:
    from tensorferry.converting import Shape, Source

__all__ = ["add_flags", "run"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the model repository")
    parser.add_argument(
        "--formats",
        action="store_true",
        help="also try every version in the other formats, and compare its outputs (up to a minute for each)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Validate what would be served: configuration, checksums, a load, a run at every batch size."""
    broken = 0
    for model in check_repository(parsed.directory):
        if model.faults:
            broken += 1
            print(f"{model.name}: not servable")
            for fault in model.faults:
                print(f"  {fault}")
        else:
            print(f"{model.name}: ok")
        for version in model.versions:
            print(f"  version {version.spec.version}: {version.spec.platform}")
            if parsed.formats:
                print("\n".join(f"    {line}" for line in _formats_of(version)))
    return 1 if broken else 0


def _formats_of(version: CheckedVersion) -> list[str]:
    spec = version.spec
    if version.fault or spec.platform in ("python", "ensemble"):
        return [
            "not tried: "
            + ("it can't be served" if version.fault else f"{spec.platform} has no other format")
        ]
    from tensorferry import converting

    try:
        source = converting.load_source(spec.path)
        shapes = _shapes(spec, source)
        return lines_of(converting.verdict_on(source, name, shapes) for name in converting.NAMES)
    except converting.ConversionError as error:
        return [f"not tried: {error}"]


def _shapes(spec: ModelSpec, source: Source) -> tuple[Shape, ...]:
    from tensorferry import converting
    from tensorferry.converting.samples import shapes_of_spec

    if spec.from_signature:
        return converting.shapes_of(source)
    names = [each.name for each in source.signature.inputs]
    order = input_order(spec, names, str(spec.path), "the model takes")
    return shapes_of_spec(source, spec, order) or converting.shapes_of(source)
