"""What a model is tried with: tensors of zeros and of random numbers, at several batch sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from tensorferry.converting.source import ConversionError, Source
from tensorferry.execution.backends.torch_tensors import DTYPE_NAMES, DTYPES
from tensorferry.model import ModelSpec

__all__ = ["ROWS", "Sample", "Shape", "parse_shape", "read_npz", "samples_of", "shapes_of", "shapes_of_spec"]

#: Batch sizes that are tried, in rows: one, which programs are often wrongly special for, odd, and many.
ROWS: Final = (1, 2, 7, 64)
#: The size of a dimension, other than the first, that may be any.
_FREE: Final = 8

_SHAPE: Final = re.compile(r"(?P<name>[^=]+)=(?P<datatype>[A-Z0-9]+):(?P<dims>-?\d+(,-?\d+)*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shape:
    """An input's name, datatype and shape; -1 is any size, and as the first, the rows of a batch."""

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension counts rows."""
        return self.dims[:1] == (-1,)


@dataclass(frozen=True, slots=True)
class Sample:
    """Tensors in the model's order, and a word for what they are."""

    label: str
    tensors: tuple[torch.Tensor, ...]


def parse_shape(text: str) -> Shape:
    """Read ``name=FP32:-1,30``.

    Raises:
        ConversionError: the text is something else.
    """
    match = _SHAPE.fullmatch(text)
    datatype = match["datatype"] if match else ""
    dims = tuple(int(dim) for dim in match["dims"].split(",")) if match else ()
    if match is None or datatype not in DTYPES or any(dim == 0 or dim < -1 for dim in dims):
        raise ConversionError(
            f"--shape {text!r} can't be read; write it as name=DATATYPE:dims, such as features=FP32:-1,30,"
            f" with a datatype of {', '.join(DTYPES)} and -1 for the rows of a batch"
        )
    return Shape(match["name"], datatype, dims)


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """Read one array for each input, by name.

    Raises:
        ConversionError: the file isn't .npz, or holds what torch has no datatype for.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name].copy()) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: not a .npz file of tensors, one for each input: {error}") from error


def shapes_of(
    source: Source, given: Sequence[Shape] = (), arrays: dict[str, torch.Tensor] | None = None
) -> tuple[Shape, ...]:
    """Return the shape of every input, in the model's order: as given, as the arrays', or as the file says.

    Arrays are taken for batches: their first dimension counts rows.

    Raises:
        ConversionError: an input's shape isn't known, or one is given that the model doesn't have.
    """
    known = {each.name: each for each in given}
    for name, array in (arrays or {}).items():
        known[name] = Shape(name, DTYPE_NAMES[array.dtype], (-1, *array.shape[1:]))
    names = [each.name for each in source.signature.inputs]
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise ConversionError(f"{source.path}: there is no input {unknown[0]!r}; the model takes {names}")
    shapes = []
    for each in source.signature.inputs:
        if each.name in known:
            shapes.append(known[each.name])
        elif each.shape is not None and each.datatype in DTYPES:
            shapes.append(Shape(each.name, each.datatype, each.shape))
        else:
            raise ConversionError(
                f"{source.path}: the file doesn't say the shape of input {each.name!r}; say it with"
                f" --shape {each.name}=FP32:-1,30 (its datatype; -1 for rows; its dims) or with --inputs"
            )
    return tuple(shapes)


def shapes_of_spec(source: Source, spec: ModelSpec, order: Sequence[int]) -> tuple[Shape, ...]:
    """Return the shapes that a configuration gives the file's inputs; () if it leaves any open.

    ``order`` holds, for each of the file's inputs, the index of the configuration's.
    """
    shapes = []
    for own, index in zip(source.signature.inputs, order, strict=True):
        tensor = spec.model_inputs[index]
        if tensor.datatype is None or tensor.dims is None:
            return ()
        rows = (-1,) if spec.has_batch_dimension else ()
        shapes.append(Shape(own.name, tensor.datatype.name, (*rows, *tensor.dims)))
    return tuple(shapes)


def samples_of(
    shapes: Sequence[Shape], arrays: dict[str, torch.Tensor] | None = None, max_rows: int = 0
) -> list[Sample]:
    """Return zeros and random numbers at every batch size, and the given arrays: whole, and one row."""
    samples = []
    rows_tried = [rows for rows in ROWS if not max_rows or rows <= max_rows]
    if not any(each.is_batched for each in shapes):
        rows_tried = [1]
    for rows in rows_tried:
        for label, is_random in (("zeros", False), ("random", True)):
            tensors = tuple(_tensor(each, rows, is_random) for each in shapes)
            samples.append(Sample(f"{label} x{rows}", tensors))
    if arrays:
        whole = tuple(arrays[each.name] for each in shapes if each.name in arrays)
        if len(whole) == len(shapes):
            samples.append(Sample("given", whole))
            samples.append(Sample("given, first row", tuple(each[:1] for each in whole)))
    return samples


def _tensor(shape: Shape, rows: int, is_random: bool) -> torch.Tensor:
    batch = (rows,) if shape.is_batched else shape.dims[:1]
    sizes = (*batch, *(_FREE if dim == -1 else dim for dim in shape.dims[1:]))
    dtype = DTYPES[shape.datatype]
    if not is_random:
        return torch.zeros(sizes, dtype=dtype)
    generator = torch.Generator().manual_seed(rows)
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    # Small whole numbers: they may be indices into a table.
    return torch.randint(0, 2, sizes, generator=generator).to(dtype)
