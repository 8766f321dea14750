"""What the benchmark needs, asked for before anything is started: packages, and a GPU.

Rules for this file: the standard library only at its top, so that it can say what is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

__all__ = ["PACKAGES", "REMEDY", "gpu_problem", "missing_packages"]

#: What is imported, and the package that has it: the server's, and the clients'.
PACKAGES: Final[Mapping[str, str]] = {
    "torch": "torch (a build for CUDA)",
    "numpy": "numpy",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "google.protobuf": "protobuf",
    "aiohttp": "aiohttp",
    "prometheus_client": "prometheus-client",
    "structlog": "structlog",
    "uvloop": "uvloop",
    "yaml": "pyyaml",
    "hpack": "hpack",
    "tensorferry.wire.open_inference_pb2_grpc": "tensorferry (or PYTHONPATH=server:clients:.)",
}

#: What mends it where nothing can be downloaded.
REMEDY: Final = """\
pip install them; without a network bring the folder dist/gpu, which `make gpu-wheels PYTHON3=python3.12`
makes elsewhere (for this Python's version; all but torch, and what torch's machines have), and then, here:
  python3 -m pip install --no-index --no-deps --upgrade --target .cache/site dist/gpu/*.whl
  PYTHONPATH=.cache/site:. python3 -m loadtests.gpu"""


def missing_packages(wanted: Mapping[str, str] = PACKAGES) -> list[str]:
    """Return a line for each package that can't be imported, with what Python says."""
    found = []
    for module, package in wanted.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # the generated code raises errors of its own where a package is too old
            found.append(f"{package}: {error}")
    return found


def gpu_problem() -> str:
    """Return why torch has no GPU here; "" if it has one."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    return f"torch {torch.__version__} ({built}) finds no CUDA device"
