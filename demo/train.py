"""Train a small fraud model, and put it into a model repository as TorchScript.

The model takes raw features and scales them itself, so whoever calls it needs to know nothing
but their order. Rules for this file: the demo's only one that imports torch; the same data and
seed give the same model on the same machine; no ``from __future__ import annotations``, because
TorchScript reads the annotations of the model's attributes and can't make sense of strings.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from demo.transactions import FEATURES, Transactions

__all__ = ["CONFIG", "MODEL_NAME", "FraudModel", "export", "offline_scores", "save", "scores_of", "train"]

MODEL_NAME: Final = "fraud"

BATCH_ROWS: Final = 512
# Frauds are about one in a hundred. Drawn as they come, a batch would hold five and teach little.
FRAUDS_IN_BATCH: Final = BATCH_ROWS // 4

#: Also a valid configuration for Triton.
CONFIG: Final = """\
name: "fraud"
platform: "pytorch_libtorch"
max_batch_size: 64
input [
  {
    name: "features"
    data_type: TYPE_FP32
    dims: [ 30 ]
  }
]
output [
  {
    name: "score"
    data_type: TYPE_FP32
    dims: [ 1 ]
  }
]
instance_group [
  {
    count: 1
    kind: KIND_CPU
  }
]
dynamic_batching { }
"""


class FraudModel(nn.Module):
    """Raw features, float32 (rows, 30), to the score of fraud, float32 (rows, 1), between 0 and 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.hidden = nn.Linear(len(FEATURES), hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Score each row."""
        return torch.sigmoid(self.logits(features))

    @torch.jit.export
    def logits(self, features: Tensor) -> Tensor:
        """Return what the sigmoid is applied to, which is what training wants."""
        # Amounts run into the thousands; clamped, a single one can't drown the other features.
        scaled = torch.clamp((features - self.mean) * self.scale, -8.0, 8.0)
        return self.out(torch.relu(self.hidden(scaled)))  # type: ignore[no-any-return]


def train(
    transactions: Transactions,
    seed: int,
    steps: int = 400,
    on_step: Callable[[int], object] = lambda step: None,
) -> FraudModel:
    """Train on all of ``transactions``; ``on_step`` is called with the number of steps done."""
    with _deterministic(seed):
        features = torch.from_numpy(transactions.features)
        mean, deviation = features.mean(dim=0), features.std(dim=0)
        model = FraudModel(mean, 1.0 / torch.clamp(deviation, min=1e-6))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
        loss_of = nn.BCEWithLogitsLoss()
        rng = np.random.default_rng(seed)
        for step in range(1, steps + 1):
            rows, labels = _draw(rng, transactions.is_fraud)
            optimizer.zero_grad()
            loss_of(model.logits(features[rows]), labels).backward()
            optimizer.step()
            schedule.step()
            on_step(step)
    return model.eval().requires_grad_(False)  # it only answers from now on


def export(model: FraudModel, repository: Path) -> Path:
    """Write the model as version 1 of ``fraud`` into ``repository`` and return its file."""
    path = repository / MODEL_NAME / "1" / "model.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    (repository / MODEL_NAME / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    save(model, path)
    return path


def save(model: FraudModel, path: Path) -> None:
    """Write the model to ``path`` as TorchScript."""
    with _torchscript():
        torch.jit.script(model).save(str(path))  # type: ignore[no-untyped-call]


def scores_of(model: FraudModel, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run the model as it was trained, before any export: float32 (rows, 30) to float32 (rows, 1)."""
    with torch.inference_mode():
        scores: npt.NDArray[np.float32] = model(torch.from_numpy(features)).numpy()
    return scores


def offline_scores(path: Path, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Load an exported model and run it without a server: float32 (rows, 30) to float32 (rows,)."""
    with _torchscript():
        model = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        scores: npt.NDArray[np.float32] = model(torch.from_numpy(features)).numpy().reshape(-1)
    return scores


def _draw(rng: np.random.Generator, is_fraud: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Draw a batch's row numbers, frauds first, and its labels of shape (rows, 1)."""
    frauds = rng.choice(np.flatnonzero(is_fraud), FRAUDS_IN_BATCH)
    ordinary = rng.choice(np.flatnonzero(~is_fraud), BATCH_ROWS - FRAUDS_IN_BATCH)
    labels = torch.zeros(BATCH_ROWS, 1)
    labels[:FRAUDS_IN_BATCH] = 1.0
    return torch.from_numpy(np.concatenate((frauds, ordinary))), labels


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch, and use one thread: layers this small gain nothing from a second. Undone after."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _torchscript() -> Iterator[None]:
    """Silence what torch says at every use of TorchScript: that it is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        yield
