"""The kept inputs: one file for each target, one input in base64 on each line."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

DIRECTORY = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """Return a target's inputs."""
    path = DIRECTORY / f"{target}.b64"
    return [base64.b64decode(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def save(target: str, inputs: Iterable[bytes]) -> None:
    """Replace a target's inputs, the shortest first."""
    DIRECTORY.mkdir(exist_ok=True)
    ordered = sorted(set(inputs), key=lambda each: (len(each), each))
    (DIRECTORY / f"{target}.b64").write_text(
        "".join(base64.b64encode(each).decode() + "\n" for each in ordered)
    )
