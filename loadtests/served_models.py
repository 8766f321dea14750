"""Makes the models of a scenario: ``python -m loadtests.served_models DIR`` with a JSON list on stdin.

A process of its own, because torch in the process that measures would take cores and memory from it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from loadtests.scenario import ServedModel

__all__ = ["OBJECTIVE", "write_models"]

FEATURES = 30
_WIDTH = 512
_TIMES = 192

#: A model's latency objective, as text for its configuration.
OBJECTIVE = 'parameters {{ key: "latency_objective_ms" value {{ string_value: "{:.3f}" }} }}'


def write_models(root: Path, models: Iterable[ServedModel], more: Mapping[str, str] | None = None) -> None:
    """Write ``models`` as a repository in ``root``, in place of what is there.

    ``more`` has text by model for the end of its configuration.

    Raises:
        subprocess.CalledProcessError: they couldn't be made; what torch said is on stderr.
    """
    more = more or {}
    wanted = [{**asdict(each), "config": f"{each.config}\n{more.get(each.name, '')}"} for each in models]
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-m", "loadtests.served_models", str(root)]
    subprocess.run(command, input=json.dumps(wanted), text=True, check=True)


def _write(root: Path, wanted: Iterable[Mapping[str, object]]) -> None:
    from torch import Tensor, nn

    from tensorferry.testing.models import Mlp, write_model

    class Tower(nn.Module):
        """Matrix products and nothing else: one or two milliseconds a row on one core.

        A single row is held up by reading the weights, a batch by the arithmetic: a row of a batch is
        cheaper than one alone, and batching has something to gain.
        """

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, _WIDTH)
            self.layer = nn.Linear(_WIDTH, _WIDTH)
            self.times = _TIMES
            self.score = nn.Linear(_WIDTH, 1)

        def forward(self, features: Tensor) -> Tensor:
            x: Tensor = self.first(features)
            for _ in range(self.times):
                x = self.layer(x).relu()
            score: Tensor = self.score(x)
            return score

    kinds = {"mlp": Mlp, "tower": Tower}
    for each in wanted:
        config = (
            f"max_batch_size: {each['max_batch_size']}\n"
            f'input {{ name: "features" data_type: TYPE_FP32 dims: {FEATURES} }}\n'
            'output { name: "score" data_type: TYPE_FP32 dims: 1 }\n'
            'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'
        )
        write_model(root, str(each["name"]), kinds[str(each["kind"])](), config + str(each["config"]))


if __name__ == "__main__":
    _write(Path(sys.argv[1]), json.load(sys.stdin))
