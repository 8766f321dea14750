"""Load, swap and unload models while calls go on; memory, latency and loading must stay as they were.

    python -m loadtests.churn --cycles 1000

The exit status is 0 if all that is asked holds, 1 if something doesn't, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc

from loadtests.churn.measure import Wishes, measure
from loadtests.churn.report import report
from tensorferry.benchmark.generator import CannotConnect
from tensorferry.testing.process import ServerProcessError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; see the module for the exit status."""
    options = _parser().parse_args(arguments)
    flags = ["--transport", options.transport, "--log-level", "warning"]
    if options.processes > 1:
        flags += ["--processes", str(options.processes)]
    wishes = Wishes(
        options.cycles,
        options.rate,
        options.run_s,
        options.interval_ms / 1000,
        options.first_cycles,
        options.guests,
        flags,
        options.core,
        options.seed,
    )
    options.report.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            outcome = measure(wishes, Path(scratch), options.report / "server.log")
        except (CannotConnect, grpc.RpcError, ServerProcessError) as error:
            print(f"the run ended early: {error}", file=sys.stderr)
            return 2
    return 0 if report(outcome, options.cycles, options.report) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.churn", description=__doc__)
    add = parser.add_argument
    add("--cycles", type=int, default=1000)
    add("--rate", type=float, default=500.0, help="calls/s, half of them to the model that is swapped")
    add("--report", type=Path, default=Path("reports/churn"), help="directory for what is written")
    add("--run-s", type=float, default=10.0, help="length of one run of the generator")
    add("--interval-ms", type=float, default=0.0, help="the least time from one cycle to the next")
    add("--first-cycles", type=int, default=50, help="cycles that go before, and aren't measured")
    add("--guests", nargs="+", default=[], help="formats that are loaded and unloaded; all if not given")
    add("--transport", default="auto")
    add("--processes", type=int, default=1)
    add("--core", type=int, help="the CPU that the generator stays on")
    add("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
