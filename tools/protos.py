"""Generate the wire code from ``protos/`` into a directory (default: the package).

Two things the plain compiler doesn't do:

* The messages go into a descriptor pool of our own (``wire/_pool.py``). Triton's client
  registers the same full names in the default pool, and one process may use both.
* The first line says where the file came from.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("tensorferry/wire")
DEFAULT_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
OWN_POOL_IMPORT = "from tensorferry.wire import _pool as _descriptor_pool\n"
HEADER = "# Generated from protos/ by `make protos`; don't edit.\n"


def generate(target: Path) -> None:
    """Write the generated modules into ``target`` (the ``wire`` package's directory)."""
    well_known = str(resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-I{PACKAGE}={ROOT / 'protos'}",
            f"-I{well_known}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *(str(path) for path in sorted((ROOT / "protos").glob("*.proto"))),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed; its message is above")
        for path in sorted((Path(scratch) / PACKAGE).iterdir()):
            if path.name == "model_config_pb2_grpc.py":
                continue  # the file declares no service
            text = path.read_text()
            if path.name.endswith("_pb2.py"):
                if DEFAULT_POOL_IMPORT not in text:
                    raise SystemExit(f"{path.name}: the import of the descriptor pool has moved")
                text = text.replace(DEFAULT_POOL_IMPORT, OWN_POOL_IMPORT)
            (target / path.name).write_text(HEADER + text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "server" / PACKAGE)
