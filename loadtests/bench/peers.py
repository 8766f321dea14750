"""The peers: Triton and mosec, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from loadtests.bench.targets import Target


def targets(repository: Path, scratch: Path) -> dict[str, Target]:
    """Return the peers that can be installed here; says of the others why not."""
    raise SystemExit("peers are not measured yet")
