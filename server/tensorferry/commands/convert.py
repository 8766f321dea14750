"""``tensorferry convert``: which formats a model can take, and the model in one of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensorferry.converting import Verdict

__all__ = ["add_flags", "lines_of", "run"]

_FORMATS: Final = ("torchscript", "pt2", "aoti", "onnx")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the model: .pt, .pt2 or .onnx")
    parser.add_argument(
        "--to", choices=_FORMATS, help="write the model in this format (default: only try all)"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="the file to write (default: beside FILE)")
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="sample inputs by name, rows first")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=DATATYPE:DIMS",
        help="an input that the file doesn't describe, such as features=FP32:-1,30 (-1: rows); repeatable",
    )
    parser.add_argument(
        "--rtol", type=float, help="relative difference that still agrees (default: by datatype)"
    )
    parser.add_argument(
        "--atol", type=float, help="absolute difference that still agrees (default: by datatype)"
    )
    parser.add_argument("--force", action="store_true", help="write the file though the outputs don't agree")


def run(parsed: argparse.Namespace) -> int:
    """Try a model in other formats, or write it in one; its outputs are compared with the original's."""
    from tensorferry import converting
    from tensorferry.converting.agreement import Tolerance

    source = converting.load_source(parsed.file)
    arrays = converting.read_npz(parsed.inputs) if parsed.inputs else None
    shapes = converting.shapes_of(source, [converting.parse_shape(text) for text in parsed.shape], arrays)
    tolerance = None
    if parsed.rtol is not None or parsed.atol is not None:
        tolerance = Tolerance(parsed.rtol or 0.0, parsed.atol or 0.0)
        if not (tolerance.relative >= 0.0 and tolerance.absolute >= 0.0):
            raise converting.ConversionError("--rtol and --atol must be 0 or more")
    if parsed.to is None:
        verdicts = [
            converting.verdict_on(source, name, shapes, arrays, tolerance) for name in converting.NAMES
        ]
        print("\n".join(lines_of(verdicts)))
        return 0
    out: Path = parsed.out or parsed.file.with_suffix(converting.SUFFIXES[parsed.to])
    if out.exists() and out.samefile(parsed.file):
        raise converting.ConversionError(f"{out}: is the model itself; name another file with --out")
    # Beside the target, so that it is renamed into place: nobody sees half a file.
    partial = out.with_name(f".{out.stem}.{os.getpid()}{converting.SUFFIXES[parsed.to]}")
    try:
        verdict = converting.verdict_on(source, parsed.to, shapes, arrays, tolerance, partial)
        print("\n".join(lines_of([verdict])))
        if verdict.reason or (not verdict.is_good and not parsed.force):
            print(f"{out}: not written" + ("" if verdict.reason else "; --force writes it all the same"))
            return 1
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{out}: written")
    return 0


def lines_of(verdicts: Iterable[Verdict]) -> list[str]:
    """Return a table: format, whether the model can take it, whether its outputs agree, and how closely."""
    rows = [("format", "possible", "agrees", "max abs", "max rel", "")]
    for each in verdicts:
        if each.reason or each.agreement is None:
            rows.append((each.name, "no", "-", "-", "-", each.reason))
        else:
            agreement = each.agreement
            numbers = (f"{agreement.max_abs:.2g}", f"{agreement.max_rel:.2g}")
            agrees = "no" if agreement.fault else "yes"
            rows.append((each.name, "yes", agrees, *numbers, agreement.fault))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in rows
    ]
