"""The repository of a churn run, and the changes that are made to it.

``steady`` is never touched. ``swapped`` is replaced in every cycle, by one of three means in turn. The
guests, one for each format, are loaded and unloaded without ever being called.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tensorferry.testing.models import Mlp, save, save_onnx, save_program, write_mlp

__all__ = ["STEADY", "SWAPPED", "SWAPS", "Changes", "Swap", "guest_of", "write_repository"]

STEADY: Final = "steady"
SWAPPED: Final = "swapped"
#: The ways of replacing a model: another file in its place, another configuration that comes with
#: the request, a new version.
SWAPS: Final = ("file", "config", "version")

#: The guests of every cycle but the rare ones: small, larger than what is loaded in one piece, ONNX.
_OFTEN: Final = ("torchscript", "large", "onnx")
#: One cycle in so many has a guest that is slow to start: an exported program, or a process of its own.
_RARELY: Final = ("program", "python")
_RARE_EVERY: Final = 25

_VARIANTS: Final = 4
_LARGE_UNITS: Final = 1536
_CONFIG: Final = (
    "max_batch_size: {rows}\n"
    'input {{ name: "features" data_type: TYPE_FP32 dims: 30 }}\n'
    'output {{ name: "{output}" data_type: TYPE_FP32 dims: 1 }}\n'
    "dynamic_batching {{ }}\n"
)
_PYTHON: Final = """
class Model:
    def load(self, directory, device):
        pass

    def run(self, inputs):
        return {"OUTPUT__0": inputs["features"][:, :1]}
"""


class Variant(nn.Module):
    """An MLP whose every score has ``number`` added, so that an answer says whose it is."""

    def __init__(self, number: int, units: int = 64) -> None:
        super().__init__()
        self.number = float(number)
        self.hidden = nn.Linear(30, units)
        self.middle = nn.Linear(units, units)
        self.score = nn.Linear(units, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``features`` FP32 [rows, 30] to FP32 [rows, 1], between ``number`` and ``number`` + 1."""
        hidden = torch.relu(self.middle(torch.relu(self.hidden(features))))
        return torch.sigmoid(self.score(hidden)) * 0.98 + 0.01 + self.number


@dataclass(frozen=True, slots=True)
class Swap:
    """A replacement that is ready to be loaded, and how to tell that it is in force.

    ``config`` is what goes with the load request, None for nothing. ``version`` and ``variant`` are
    what answers afterwards; ``max_batch_size`` is what its configuration says.
    """

    kind: str
    config: str | None
    version: int
    variant: int
    max_batch_size: int


class Changes:
    """What is done to ``swapped`` on the disk. The only one who writes to it."""

    def __init__(self, root: Path, variants: Path) -> None:
        self._model = root / SWAPPED
        self._variants = variants
        self._version = max(int(each.name) for each in self._model.iterdir() if each.name.isdecimal())
        self._variant = 0

    def make(self, number: int) -> Swap:
        """Make the change of cycle ``number``."""
        kind = SWAPS[number % len(SWAPS)]
        config, max_batch_size = None, 64
        if kind == "config":
            max_batch_size = 32
            config = _override(max_batch_size)
        else:
            self._variant = (self._variant + 1) % _VARIANTS
            self._replace_file() if kind == "file" else self._publish()
        return Swap(kind, config, self._version, self._variant, max_batch_size)

    def _replace_file(self) -> None:
        target = self._model / str(self._version) / "model.pt"
        fresh = target.with_name(".fresh")
        shutil.copyfile(self._variants / f"{self._variant}.pt", fresh)
        os.replace(fresh, target)

    def _publish(self) -> None:
        """Put the next version in by renaming, and take the one before it away."""
        old = self._model / str(self._version)
        self._version += 1
        fresh = self._model / ".fresh"
        fresh.mkdir()
        shutil.copyfile(self._variants / f"{self._variant}.pt", fresh / "model.pt")
        fresh.rename(self._model / str(self._version))
        gone = old.rename(self._model / ".gone")
        shutil.rmtree(gone)


def guest_of(number: int, guests: Sequence[str]) -> str:
    """Return the guest of cycle ``number``: often a quick one, rarely one that is slow to start."""
    rare = [each for each in guests if each in _RARELY]
    often = [each for each in guests if each not in _RARELY]
    if rare and number % _RARE_EVERY == _RARE_EVERY - 1:
        return rare[number // _RARE_EVERY % len(rare)]
    return often[number % len(often)]


def write_repository(root: Path, variants: Path, only: Sequence[str] = ()) -> list[str]:
    """Write all models, and what ``swapped`` is replaced by; return the guests that can be had here.

    ``only`` names the guests that are wanted; all if it is empty.
    """
    write_mlp(root, STEADY)
    for number in range(_VARIANTS):
        save(Variant(number), variants / f"{number}.pt")
    (root / SWAPPED / "1").mkdir(parents=True)
    shutil.copyfile(variants / "0.pt", root / SWAPPED / "1" / "model.pt")
    (root / SWAPPED / "config.pbtxt").write_text(_CONFIG.format(output="score", rows=64), encoding="utf-8")
    wanted = [each for each in (*_OFTEN, *_RARELY) if not only or each in only]
    guests = [each for each in wanted if each != "onnx" or _has("onnxruntime", "onnx", "onnxscript")]
    for each in guests:
        _write_guest(root, each)
    return guests


def _write_guest(root: Path, guest: str) -> None:
    version = root / guest / "1"
    version.mkdir(parents=True)
    example = (torch.zeros(2, 30),)
    if guest == "torchscript":
        save(Mlp(), version / "model.pt")
    elif guest == "large":
        save(Variant(0, _LARGE_UNITS), version / "model.pt")
    elif guest == "onnx":
        save_onnx(Mlp(), version / "model.onnx", example)
    elif guest == "program":
        save_program(Mlp(), version / "model.pt2", example)
    else:
        (version / "model.py").write_text(_PYTHON, encoding="utf-8")
    # A large one is there to be read, not to be run: warming it up would take longer than all the rest.
    config = _CONFIG.format(output="OUTPUT__0", rows=4 if guest == "large" else 64)
    (root / guest / "config.pbtxt").write_text(config, encoding="utf-8")


def _override(max_batch_size: int) -> str:
    return json.dumps(
        {
            "max_batch_size": max_batch_size,
            "input": [{"name": "features", "data_type": "TYPE_FP32", "dims": [30]}],
            "output": [{"name": "score", "data_type": "TYPE_FP32", "dims": [1]}],
            "dynamic_batching": {},
        }
    )


def _has(*packages: str) -> bool:
    return all(importlib.util.find_spec(each) is not None for each in packages)
