"""Prove that the committed wire code is what ``protos/`` generates, and that it loads under protobuf 6 and 7.

The other protobuf (the one that isn't installed in this environment) goes into ``.cache``.
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import protos

WIRE = protos.ROOT / "server" / protos.PACKAGE
#: One of each major version; the exact ones keep the check repeatable.
PROTOBUF_VERSIONS = ("6.31.1", "7.35.1")
PROBE = (
    "import google.protobuf as p;"
    "from tensorferry.wire import open_inference_pb2 as pb;"
    "m = pb.ModelInferRequest(model_name='m', raw_input_contents=[b'x']);"
    "assert pb.ModelInferRequest.FromString(m.SerializeToString()) == m;"
    "print('wire code loads under protobuf', p.__version__)"
)


def stale() -> list[str]:
    """Return the names of committed files that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as scratch:
        protos.generate(Path(scratch))
        return [
            path.name
            for path in sorted(Path(scratch).iterdir())
            if not (WIRE / path.name).exists() or not filecmp.cmp(path, WIRE / path.name, shallow=False)
        ]


def loads_under(version: str) -> bool:
    """Load the wire code in a process that sees this protobuf before the installed one."""
    target = protos.ROOT / ".cache" / f"protobuf-{version}"
    if not target.exists() and metadata.version("protobuf") != version:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "--no-deps", "--target", str(target), f"protobuf=={version}"], check=True)
    path = f"{target}:{protos.ROOT / 'server'}"
    return subprocess.run([sys.executable, "-c", PROBE], env={"PYTHONPATH": path}).returncode == 0


def main() -> int:
    """Return 0 if all is well."""
    names = stale()
    if names:
        print(f"stale: {', '.join(names)}; run `make protos` and commit what it changes")
    failed = [version for version in PROTOBUF_VERSIONS if not loads_under(version)]
    for version in failed:
        print(f"the wire code doesn't load under protobuf {version}; its message is above")
    return 1 if names or failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
