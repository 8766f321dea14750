"""The bare loop: a TorchScript model run over and over, in a process of its own, with nothing around it.

Run as ``python -m loadtests.batching.bare MODEL --rows 8,16 --threads 1,2 --seconds 1``; prints
JSON: [{"rows": 8, "threads": 1, "rows_per_s": 800.0}, ...].
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Final

import torch

from loadtests.batching.models import CNN_SHAPE

__all__ = ["main"]

_WARM_UP_RUNS: Final = 5

# torch leaves it without annotations.
_load: Final[Callable[..., torch.jit.ScriptModule]] = torch.jit.load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every combination, and print what it did."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.batching.bare", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", required=True, help="batch sizes, comma-separated")
    parser.add_argument("--threads", required=True, help="intra-op threads, comma-separated")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each combination")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _load(options.model).eval()
    measured = [
        {"rows": rows, "threads": threads, "rows_per_s": _rate(model, rows, threads, options.seconds)}
        for threads in map(int, options.threads.split(","))
        for rows in map(int, options.rows.split(","))
    ]
    print(json.dumps(measured))
    return 0


def _rate(model: torch.jit.ScriptModule, rows: int, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    batch = torch.randn(rows, *CNN_SHAPE)
    with torch.inference_mode():
        for _ in range(_WARM_UP_RUNS):
            model(batch)
        runs, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds:
            model(batch)
            runs += 1
    return runs * rows / taken


if __name__ == "__main__":
    raise SystemExit(main())
