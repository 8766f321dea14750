"""A model that runs only when it is told to, in whatever process it is served.

It waits for a word in a file that both sides have mapped into memory. So a test decides when a
batch ends, without a clock: it closes the gate, sends requests, sees what it wants to see, and
opens the gate. While it waits, a run keeps one core busy.

This module needs torch, so ``tensorferry.testing`` doesn't import it: import it by its own name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tensorferry.testing.models import BATCHING, write_model

__all__ = ["Gate", "Gated", "write_gated"]


class Gate:
    """The test's side: a file of two INT64, whether the gate is open and how many runs have begun.

    A new gate is open, so that the model's warm-up passes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._words: np.memmap[tuple[int], np.dtype[np.int64]] = np.memmap(
            path, dtype=np.int64, mode="w+", shape=(2,)
        )
        self.open()

    def open(self) -> None:
        """Let every run that waits, and those to come, go on."""
        self._words[0] = 1

    def close(self) -> None:
        """Hold the runs that begin from now on, and those under way."""
        self._words[0] = 0

    @property
    def entered(self) -> int:
        """Runs that have begun since the gate was made, those of the warm-up included."""
        return int(self._words[1])


class Gated(nn.Module):
    """Doubles its input once the gate in the file ``path`` is open."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.matrix = nn.Parameter(torch.full((128, 128), 1 / 128))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` FP32 [rows, 1] to FP32 [rows, 1]."""
        words = torch.from_file(self.path, shared=True, size=2, dtype=torch.int64)
        words[1] += 1
        product: Tensor = self.matrix
        turns = 0
        # Twenty turns even when the gate is open: a faster model would run on the server's loop
        # thread, and hold everything when the gate is closed. The index that changes keeps the
        # compiler from reading the word once for all turns.
        while turns < 20 or int(words[turns % 1].item()) == 0:
            product = product @ self.matrix
            turns += 1
        return x * 2.0 + product[0, 0] * 0.0


def write_gated(root: Path, name: str = "gated", max_batch_size: int = 4, options: str = BATCHING) -> Gate:
    """Write ``Gated``: input ``x``, output ``y``, both FP32 [1]; return its gate, a file beside the model's.

    Its one stream has one thread, and its batches have at most ``max_batch_size`` rows.
    """
    config = (
        f"max_batch_size: {max_batch_size}\n"
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
        'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'
    )
    directory = root / name
    directory.mkdir(parents=True)
    gate = Gate(directory / "gate")
    write_model(root, name, Gated(str(gate.path)), config + options)
    return gate
