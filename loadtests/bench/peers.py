"""The peers: Triton and mosec, each in an environment of its own under ``.cache/peers``.

They are installed on first use, from PyPI. One that can't be installed here is left out, and named
with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtests.bench.targets import Target

ENVIRONMENTS: Final = Path(".cache/peers")
MODELS: Final = Path(__file__).with_name("peer_models")
MAX_ROWS: Final = 64

#: Versions that were measured. torch as in constraints.txt: another would pull gigabytes of CUDA.
TRITON: Final = ("nvidia-pytriton==0.5.14", "torch==2.13.0")
MOSEC: Final = ("mosec==0.9.8", "numpy", "torch==2.13.0")

_INSTALL_TIMEOUT_S: Final = 1200.0

TRITON_CONFIG: Final = f"""
name: "fraud"
backend: "python"
max_batch_size: {MAX_ROWS}
input {{ name: "features" data_type: TYPE_FP32 dims: [ 30 ] }}
output {{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] }}
dynamic_batching {{ }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""


class Unavailable(Exception):
    """A peer can't be installed or run here; says why."""


def targets(repository: Path, scratch: Path) -> dict[str, Target]:
    """Return the peers that can be installed here; says of the others why not."""
    found: dict[str, Target] = {}
    for name, make in (("triton", _triton), ("mosec", _mosec)):
        try:
            found[name] = make(repository, scratch)
        except Unavailable as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def _triton(repository: Path, scratch: Path) -> Target:
    python = _environment("triton", TRITON)
    root = _site_packages(python) / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unavailable(f"its wheel has no Python backend for Python {version}")
    model = scratch / "triton" / "fraud"
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text(TRITON_CONFIG)
    shutil.copy(MODELS / "triton_model.py", model / "1" / "model.py")
    shutil.copy(repository / "fraud" / "1" / "model.pt", model / "1" / "model.pt")
    # The wheel has a stub for each Python; the backend looks for one beside itself.
    beside = root / "backends" / "python" / stub.name
    shutil.copy(stub, beside)
    beside.chmod(0o755)
    server = root / "bin" / "tritonserver"
    server.chmod(0o755)
    return Target(
        "triton",
        (
            str(server),
            f"--model-repository={model.parent}",
            f"--backend-directory={root / 'backends'}",
            "--grpc-address=127.0.0.1",
            "--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--log-verbose=0",
        ),
        environment={
            "LD_LIBRARY_PATH": f"{_library_directory(python)}",
            "PYTHONPATH": f"{_site_packages(python)}",
            "PATH": f"{python.parent.resolve()}:/usr/bin:/bin",
        },
    )


def _mosec(repository: Path, scratch: Path) -> Target:
    python = _environment("mosec", MOSEC)
    model = str(repository / "fraud" / "1" / "model.pt")
    script = str(MODELS / "mosec_server.py")
    return Target(
        "mosec",
        (str(python), script, model, str(MAX_ROWS), "--address", "127.0.0.1", "--port", "{port}"),
        speaks="http1",
        path="/inference",
    )


def _environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the Python of an environment that has ``packages``; make it if it isn't there."""
    directory = (ENVIRONMENTS / name).absolute()
    python, installed = directory / "bin" / "python", directory / "installed"
    if installed.is_file() and installed.read_text() == "\n".join(packages):
        return python
    print(f"installing {name} into {directory}", file=sys.stderr, flush=True)
    for command in (
        (sys.executable, "-m", "venv", "--clear", str(directory)),
        (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages),
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"it isn't installed within {_INSTALL_TIMEOUT_S:g} s") from None
        except subprocess.CalledProcessError as error:
            reason = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
            raise Unavailable(reason[-1] if reason else error.stderr[-500:]) from None
    installed.write_text("\n".join(packages))
    return python


def _site_packages(python: Path) -> Path:
    return Path(_said_by(python, "purelib"))


def _library_directory(python: Path) -> str:
    """Return where the interpreter's shared library is, which the stub of Triton's backend loads."""
    return _run(python, "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")


def _said_by(python: Path, path: str) -> str:
    return _run(python, f"import sysconfig; print(sysconfig.get_path({path!r}))")


def _run(python: Path, script: str) -> str:
    return subprocess.run(
        [str(python), "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()
