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
    "Wide",
    "calibrated_width",
    "write_cnn",
    "write_light",
    "write_wide",
]

MAX_ROWS: Final = 64
OBJECTIVE_MS: Final = 10.0
#: Of the wide model, on one thread: so that the objective leaves room for two.
WHOLE_BATCH_S: Final = 0.004
CNN_SHAPE: Final = (3, 32, 32)
PRIORITIES: Final = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"

_WIDTHS: Final = (384, 512, 640, 768, 1024, 1280, 1536, 1792, 2048, 2560)
_TRIES: Final = 15
_ONE_THREAD: Final = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'


class Wide(nn.Module):
    """30 features to one score over two hidden layers of ``width`` units: the run is what takes time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(30, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """``features`` FP32 [rows, 30] to FP32 [rows, 1]."""
        scores: Tensor = self.layers(features)
        return scores


class Cnn(nn.Module):
    """Images of 3 x 32 x 32 to ten classes: some 60 million operations a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels`` FP32 [rows, 3, 32, 32] to FP32 [rows, 10]."""
        classes: Tensor = self.layers(pixels)
        return classes


def calibrated_width() -> int:
    """Return the width with which 64 rows take nearest to 4 ms here, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_WIDTHS, key=lambda width: abs(_run_s(width) - WHOLE_BATCH_S))
    finally:
        torch.set_num_threads(before)


def write_light(root: Path) -> None:
    """Write ``fraud`` as the bench has it, and ``fraud_single``, the same without ``dynamic_batching``."""
    payload.write_repository(root)
    config = payload.FRAUD_CONFIG.replace("dynamic_batching { }", "").replace('"fraud"', '"fraud_single"')
    (root / "fraud_single" / "1").mkdir(parents=True, exist_ok=True)
    (root / "fraud_single" / "config.pbtxt").write_text(config, encoding="utf-8")
    (root / "fraud_single" / "1" / "model.pt").write_bytes((root / "fraud" / "1" / "model.pt").read_bytes())


def write_wide(root: Path, width: int) -> None:
    """Write the wide model three times: ``plain``, ``objective`` (10 ms, nothing else) and ``levels``."""
    torch.manual_seed(1)
    model = Wide(width)
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


def _run_s(width: int) -> float:
    """Return the shortest time of a few runs: the others were disturbed."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch says at each step that TorchScript is deprecated
        model = torch.jit.script(Wide(width).eval())
        rows = torch.randn(MAX_ROWS, 30)
        taken = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            model(rows)
            taken.append(time.perf_counter() - start)
    return min(taken)
