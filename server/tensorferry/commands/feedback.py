"""``tensorferry feedback``: labels that became known later, back to the versions that gave the scores."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from tensorferry.commands.rollout_client import CallFailed, add_server_flags, connected
from tensorferry.errors import ConfigurationError

__all__ = ["add_flags", "run"]

#: Labels in one message: some hundred kilobytes, far from any limit on messages.
_CHUNK: Final = 5_000


def add_flags(parser: argparse.ArgumentParser, server: str) -> None:
    """Declare the command's arguments; ``server`` is the one that is asked unless told otherwise."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="CSV with the columns key and label; - for standard input"
    )
    parser.add_argument("--name", required=True, help="the model's name")
    add_server_flags(parser, server)


def run(parsed: argparse.Namespace) -> int:
    """Send labels (CSV columns key, label): the key is the request's split_key or id, the label 0 or 1.

    They are what `tensorferry rollout report` computes each version's AUC from.
    """
    from tensorferry.wire import rollout_pb2 as pb

    labels = _read(parsed.file)
    matched = 0
    try:
        with connected(parsed) as server:
            for start in range(0, len(labels), _CHUNK):
                chunk = [pb.Label(key=key, value=value) for key, value in labels[start : start + _CHUNK]]
                matched += server.feedback(pb.RolloutFeedbackRequest(model_name=parsed.name, labels=chunk))
    except CallFailed as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps({"labels": len(labels), "matched": matched}))
    else:
        unknown = f"; {len(labels) - matched} belong to no request that is remembered"
        print(f"{matched} of {len(labels)} labels matched{unknown if matched < len(labels) else ''}")
    return 0


def _read(path: Path) -> list[tuple[str, int]]:
    """Read a whole file before anything is sent: one that is wrong at its end changes nothing."""
    if str(path) == "-":
        return list(_labels(sys.stdin, "standard input"))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_labels(file, str(path)))
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}; correct the path") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: isn't UTF-8 text; give a CSV file") from None


def _labels(file: TextIO, name: str) -> Iterator[tuple[str, int]]:
    rows = csv.reader(file)
    try:
        head = [column.strip() for column in next(rows, [])]
        if "key" not in head or "label" not in head:
            raise ConfigurationError(f"{name}:1: the first line has to name the columns key and label")
        key_at, label_at = head.index("key"), head.index("label")
        for row in rows:
            if not row:
                continue
            if len(row) <= max(key_at, label_at):
                raise ConfigurationError(f"{name}:{rows.line_num}: {len(row)} of {len(head)} columns")
            key, label = row[key_at].strip(), row[label_at].strip()
            if not key or label not in ("0", "1"):
                what = f"label {label!r}; it must be 0 or 1" if key else "the key is empty"
                raise ConfigurationError(f"{name}:{rows.line_num}: {what}")
            yield key, int(label)
    except csv.Error as error:
        raise ConfigurationError(f"{name}:{rows.line_num}: {error}") from None
