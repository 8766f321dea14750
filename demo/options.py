"""What the demonstrations' command lines have in common."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

__all__ = ["leave_in_order", "parser", "positive"]


def parser(program: str, description: str, output: Path, in_flight: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every demonstration has."""
    made = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--csv", type=Path, help="transactions to use (Time,V1..V28,Amount,Class)")
    made.add_argument("--rows", type=positive, default=40_000, help="how many to make up without --csv")
    made.add_argument("--seed", type=int, default=7, help="of transactions, split and training")
    made.add_argument("--in-flight", type=positive, default=in_flight, help="most concurrent calls")
    made.add_argument("--output", type=Path, default=output, help="directory for models, log and report")
    return made


def positive(text: str) -> int:
    """Return an option's whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def leave_in_order() -> None:
    """Have the signals that would end this process at once raise SystemExit: its server is stopped so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


def _leave(number: int, frame: object) -> None:
    del frame
    raise SystemExit(128 + number)
