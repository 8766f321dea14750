"""``tensorferry info``: the transports that there are, and every version that matters."""

from __future__ import annotations

import importlib
import json
import os
import platform
import ssl
from importlib import metadata
from pathlib import Path
from typing import Final

from tensorferry import __version__
from tensorferry.transport import available

__all__ = ["as_json", "as_text", "gather"]

_EXTENSIONS: Final = (
    "tensorferry.transport._http2",
    "tensorferry.service._scan",
    "tensorferry.batching._histogram",
)
_LIBRARIES: Final = ("grpcio", "protobuf", "numpy", "uvloop")
_MISSING: Final = "not installed"


def gather() -> dict[str, object]:
    """Return everything, ready for JSON. What isn't installed is said to be so, and is no error."""
    extensions = {name: _state_of(name) for name in _EXTENSIONS}
    return {
        "tensorferry": __version__,
        "transports": list(available()),
        "extensions": extensions,
        "nghttp2": _nghttp2(),
        **{name: _version(name) for name in _LIBRARIES},
        "protobuf_implementation": _protobuf_implementation(),
        "torch": _torch(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "cores": {"usable": len(os.sched_getaffinity(0)), "of_the_machine": os.cpu_count()},
    }


def as_json() -> str:
    """Return everything as a JSON object."""
    return json.dumps(gather(), indent=2)


def as_text() -> str:
    """Return everything as lines, one for each thing, parts of things indented."""
    lines = []
    for name, value in gather().items():
        if isinstance(value, dict):
            lines.append(_title(name))
            lines += [f"  {_title(part):32} {_shown(each)}" for part, each in value.items()]
        else:
            lines.append(f"{_title(name):34} {_shown(value)}")
    return "\n".join(lines)


def _title(name: str) -> str:
    return name if "." in name else name.replace("_", " ")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _state_of(extension: str) -> str:
    try:
        importlib.import_module(extension)
    except ModuleNotFoundError:
        return "not built"
    except ImportError as error:
        return f"built, but doesn't load: {error}"
    return "built"


def _nghttp2() -> str | None:
    """Say which nghttp2 the http2 transport runs on, and whether it came with the package."""
    if "http2" not in available():
        return None
    from tensorferry.transport._http2 import nghttp2_version_text

    mapped = [
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libnghttp2" in line
    ]
    return f"{nghttp2_version_text()} ({mapped[0] if mapped else 'linked into the extension'})"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return _MISSING


def _protobuf_implementation() -> str:
    """Say what parses messages: ``upb`` (C), or ``python``, which is some fifty times slower."""
    try:
        return str(importlib.import_module("google.protobuf.internal.api_implementation").Type())
    except ImportError:
        return _MISSING


def _torch() -> dict[str, object] | str:
    try:
        backend = importlib.import_module("tensorferry.execution.backends.torchscript")
    except ImportError as error:
        return f"{_MISSING} ({error})"
    described: dict[str, object] = backend.describe()
    return described
