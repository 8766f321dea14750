"""The models that the cases serve: two that are bound by their run, beside the fraud MLP of the bench."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from loadtests.bench import payload
from tensorferry.testing.models import write_model

__all__ = [
    "CNN_SHAPE",
    "MAX_ROWS",
    "OBJECTIVE_MS",
    "PRIORITIES",
    "WHOLE_BATCH_S",
    "Cnn",
    "Deep",
    "calibrated_depth",
    "write_cnn",
    "write_deep",
    "write_light",
]

MAX_ROWS: Final = 64
OBJECTIVE_MS: Final = 10.0
#: Of the deep model, on one thread: so that the objective leaves room for two, and some noise.
WHOLE_BATCH_S: Final = 0.0025
CNN_SHAPE: Final = (3, 64, 64)
PRIORITIES: Final = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"

_DEPTHS: Final = (4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64)
_TRIES: Final = 15
_ONE_THREAD: Final = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'


class Deep(nn.Module):
    """30 features to one score through ``depth`` turns of one layer of 256 units.

    The run is what takes time, and its weights (256 KiB) stay in a core's cache: a wide layer's
    come from a cache that is shared with whoever else is on the machine, and its time with them.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.first = nn.Linear(30, 256)
        self.again = nn.Linear(256, 256)
        self.score = nn.Linear(256, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``features`` FP32 [rows, 30] to FP32 [rows, 1]."""
        hidden = torch.relu(self.first(features))
        for _ in range(self.depth):
            hidden = torch.relu(self.again(hidden))
        scores: Tensor = self.score(hidden)
        return scores


class Cnn(nn.Module):
    """Images of 3 x 64 x 64 to ten classes: some 240 million operations a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels`` FP32 [rows, 3, 64, 64] to FP32 [rows, 10]."""
        classes: Tensor = self.layers(pixels)
        return classes


def calibrated_depth() -> int:
    """Return the depth with which 64 rows take nearest to ``WHOLE_BATCH_S`` here, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_DEPTHS, key=lambda depth: abs(_run_s(depth) - WHOLE_BATCH_S))
    finally:
        torch.set_num_threads(before)


def write_light(root: Path) -> None:
    """Write ``fraud`` as the bench has it, and ``fraud_single``, the same without ``dynamic_batching``."""
    payload.write_repository(root)
    config = payload.FRAUD_CONFIG.replace("dynamic_batching { }", "").replace('"fraud"', '"fraud_single"')
    (root / "fraud_single" / "1").mkdir(parents=True, exist_ok=True)
    (root / "fraud_single" / "config.pbtxt").write_text(config, encoding="utf-8")
    (root / "fraud_single" / "1" / "model.pt").write_bytes((root / "fraud" / "1" / "model.pt").read_bytes())


def write_deep(root: Path, depth: int) -> None:
    """Write the deep model three times: ``plain``, ``objective`` (10 ms, nothing else) and ``levels``."""
    torch.manual_seed(1)
    model = Deep(depth)
    objective = f'parameters {{ key: "latency_objective_ms" value {{ string_value: "{OBJECTIVE_MS:g}" }} }}\n'
    for name, options in (
        ("plain", "dynamic_batching { }\n"),
        ("objective", "dynamic_batching { }\n" + objective),
        ("levels", PRIORITIES + "\n"),
    ):
        config = (
            f"max_batch_size: {MAX_ROWS}\n"
            'input { name: "features" data_type: TYPE_FP32 dims: 30 }\n'
            'output { name: "score" data_type: TYPE_FP32 dims: 1 }\n'
        )
        write_model(root, name, model, config + _ONE_THREAD + options)


def write_cnn(root: Path, max_rows: int, threads: int) -> Path:
    """Write ``cnn`` for batches of up to ``max_rows`` on ``threads``; return the path of model.pt."""
    torch.manual_seed(2)
    config = (
        f"max_batch_size: {max_rows}\n"
        f'input {{ name: "pixels" data_type: TYPE_FP32 dims: {list(CNN_SHAPE)} }}\n'
        'output { name: "classes" data_type: TYPE_FP32 dims: 10 }\n'
        f'parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "{threads}" }} }}\n'
        "dynamic_batching { }\n"
    )
    return write_model(root, "cnn", Cnn(), config) / "1" / "model.pt"


def _run_s(depth: int) -> float:
    """Return the shortest time of a few runs: the others were disturbed."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch says at each step that TorchScript is deprecated
        model = torch.jit.script(Deep(depth).eval())
        rows = torch.randn(MAX_ROWS, 30)
        taken = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            model(rows)
            taken.append(time.perf_counter() - start)
    return min(taken)
