"""Measure the batcher against its targets, in one run: ratios, medians of the rounds, a verdict for each.

Two cores are needed: on one runs the server or its model, on the other the load, as the table says
for every case. The exit status is 0 if every target is met, 1 if one is missed, a figure
has no verdict or a case failed, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loadtests.batching import compute, heavy, light, sweeps
from loadtests.batching.servers import BOTH_CORES, LAYOUTS, LOAD_CORE, ONE_CORE, Bench
from loadtests.batching.verdict import Figure, markdown
from loadtests.bench import load

CASES: Final[dict[str, Callable[[Bench], list[Figure]]]] = {
    "idle": light.idle,
    "half": light.half,
    "overload": heavy.overload,
    "compute": compute.compute,
    "priorities": heavy.priorities,
    "fairness": heavy.fairness,
    "plots": sweeps.plots,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; see the module for the exit status."""
    options = _options(arguments)
    load.require_h2load()
    if len(os.sched_getaffinity(0)) < 2:
        print(
            "this needs two cores, 0 and 1: the load on the server's core would measure itself",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    cores = os.sched_getaffinity(0)
    # What is started here inherits it, unless it is put elsewhere.
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        with tempfile.TemporaryDirectory() as scratch:
            figures, failures = _measured(options, Path(scratch))
    finally:
        os.sched_setaffinity(0, cores)
    return _finish(figures, failures, options)


def _measured(options: argparse.Namespace, scratch: Path) -> tuple[list[Figure], list[str]]:
    """Run the cases; return what they measured, and which failed and why: the others carry on."""
    bench = Bench(
        scratch=scratch,
        out=options.out,
        rounds=options.rounds,
        seconds=options.seconds,
        heavy=LAYOUTS[options.layout],
        rows=options.rows,
        install_peers=options.peers,
    )
    figures: list[Figure] = []
    failures: list[str] = []
    for name in options.cases:
        began = time.monotonic()
        print(name, flush=True)
        try:
            figures += CASES[name](bench)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failures.append(f"{name} failed: {error}")
        print(f"    took {time.monotonic() - began:.0f} s", flush=True)
    return figures, failures


def _finish(figures: Sequence[Figure], failures: Sequence[str], options: argparse.Namespace) -> int:
    layout = LAYOUTS[options.layout]
    lines = [
        markdown(figures),
        "",
        f"{options.rounds} rounds, {options.seconds:g} s a run; ratios are taken within a round.",
        f"idle, half: {ONE_CORE.says}; compute: {BOTH_CORES.says};",
        f"overload, priorities, fairness: {layout.says}, {options.rows} rows a call of the deep model.",
        *failures,
    ]
    text = "\n".join(lines)
    print(f"\n{text}")
    document = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "layout": layout.says,
        "rows": options.rows,
        "failures": failures,
        "figures": [each.to_dict() for each in figures],
    }
    (options.out / "batching.json").write_text(
        json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8"
    )
    (options.out / "batching.md").write_text(text + "\n", "utf-8")
    return 0 if not failures and all(each.holds for each in figures if each.bound) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.batching", description=__doc__)
    add = parser.add_argument
    add("--cases", type=_cases, default=list(CASES), help=f"comma-separated: {', '.join(CASES)}")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=3.0, help="of each run")
    add("--layout", choices=list(LAYOUTS), default="one", help="of overload, priorities, fairness")
    add(
        "--rows",
        type=int,
        default=16,
        help="of a call in those: with more, fewer calls for the same run",
    )
    add("--peers", action="store_true", help="install Triton where it isn't, in .cache/peers")
    add("--out", type=Path, default=Path("reports/batching"))
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds < 1:
        parser.error("a run takes at least one round, and one second")
    return options


def _cases(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CASES]:
        raise argparse.ArgumentTypeError(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
