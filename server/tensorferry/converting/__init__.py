"""Conversion between formats, and whether a model gives the same answers in another one.

Rules for this package: it may import torch, onnx and onnxruntime, and only commands import it; a
server never does.
"""

from __future__ import annotations

from tensorferry.converting.formats import NAMES, SUFFIXES, Verdict, verdict_on, write
from tensorferry.converting.samples import Shape, parse_shape, read_npz, shapes_of
from tensorferry.converting.source import ConversionError, Source, load_source

__all__ = [
    "NAMES",
    "SUFFIXES",
    "ConversionError",
    "Shape",
    "Source",
    "Verdict",
    "load_source",
    "parse_shape",
    "read_npz",
    "shapes_of",
    "verdict_on",
    "write",
]
