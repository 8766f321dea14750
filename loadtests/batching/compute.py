"""The case of a model whose batch takes tens of milliseconds: what serving costs beside the bare loop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.batching.models import write_cnn
from loadtests.batching.servers import BOTH_CORES, Bench, ours, started
from loadtests.batching.verdict import Bound, Figure, Value, drift

__all__ = ["compute"]

_ROWS: Final = (16, 32, 64)
_THREADS: Final = (1, 2)
_SEARCH_S: Final = 0.7
#: Batches that are in flight: one runs, and the next is whole when it ends.
_BATCHES_OPEN: Final = 4
_CONNECTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class _Loop:
    rows: int
    threads: int
    rows_per_s: float


def compute(bench: Bench) -> list[Figure]:
    """Served rows/s against the bare loop's, by turns, at the loop's best batch size and thread count.

    The load takes a hundredth of a core, so that the model may have both, and so may the bare loop.
    """
    repository = bench.scratch / "compute"
    path = write_cnn(repository, max(_ROWS), 1)
    best = max(_bare(path, _ROWS, _THREADS, _SEARCH_S), key=lambda each: each.rows_per_s)
    run_ms = best.rows / best.rows_per_s * 1000
    print(
        f"    the bare loop is best at {best.rows} rows, {best.threads} threads: {run_ms:.0f} ms", flush=True
    )
    write_cnn(repository, best.rows, best.threads)
    ratios, bare_rates = [], []
    with started(ours(repository), BOTH_CORES) as server:
        message = server.messages("cnn")[0]
        streams = best.rows * _BATCHES_OPEN // _CONNECTIONS
        for _ in range(bench.rounds):
            before = _bare(path, [best.rows], [best.threads], bench.seconds / 2)[0].rows_per_s
            served = server.capacity(message, bench.seconds, streams)
            after = _bare(path, [best.rows], [best.threads], bench.seconds / 2)[0].rows_per_s
            bare = (before + after) / 2
            ratios.append(Value(served / bare, drift(before, after)))
            bare_rates.append(Value(bare))
    words = f"{best.rows} rows a batch, {best.threads} intra-op threads, {run_ms:.0f} ms"
    return [
        Figure("compute", "served rows/s / the bare loop's", "", tuple(ratios), Bound(0.95, is_most=False)),
        Figure("compute", f"the bare loop ({words})", "rows/s", tuple(bare_rates)),
    ]


def _bare(path: Path, rows: Sequence[int], threads: Sequence[int], seconds: float) -> list[_Loop]:
    command = ["taskset", "-c", BOTH_CORES.cores, sys.executable, "-m", "loadtests.batching.bare", str(path)]
    command += [
        "--rows",
        ",".join(map(str, rows)),
        "--threads",
        ",".join(map(str, threads)),
        "--seconds",
        f"{seconds:g}",
    ]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [_Loop(**each) for each in json.loads(said)]
