"""Build the extensions with instrumentation, beside the installation: ``instrumented.py asan|coverage``.

The results go to ``build/<kind>/``. A Python that has this directory in PYTHONPATH imports the
extensions from there, and its child processes do too; the installed ones aren't touched.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLAGS = {
    "asan": [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
    "coverage": ["-O1", "-fsanitize-coverage=trace-pc"],
}

#: Python runs ``sitecustomize`` at its start, before anything of ours is imported.
SITECUSTOMIZE = """
import importlib.util
import sys

EXTENSIONS = {extensions!r}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        library = EXTENSIONS.get(name)
        return library and importlib.util.spec_from_file_location(name, library)


sys.meta_path.insert(0, Finder)
"""


def build(kind: str) -> Path:
    """Build both extensions; return the directory for PYTHONPATH."""
    directory = ROOT / "build" / kind
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for module, source, libraries in _extensions():
        library = directory / (Path(source).stem + str(sysconfig.get_config_var("EXT_SUFFIX")))
        if not library.exists() or library.stat().st_mtime < _changed_at(ROOT / source):
            _compile(kind, ROOT / source, library, libraries)
        found[module] = str(library)
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE.format(extensions=found))
    return directory


def _extensions() -> list[tuple[str, str, list[str]]]:
    """Read EXTENSIONS out of the build hook, which can be imported only where a wheel is built."""
    for node in ast.parse((ROOT / "hatch_build.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTENSIONS":
            return ast.literal_eval(node.value)
    raise SystemExit("hatch_build.py has no EXTENSIONS")


def _changed_at(source: Path) -> float:
    return max(each.stat().st_mtime for each in (Path(__file__), *source.parent.glob("*.p[yx][xd]")))


def _compile(kind: str, source: Path, library: Path, libraries: list[str]) -> None:
    generated = library.with_name(source.stem + ".c")
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(ROOT / "server")]
    subprocess.run([*cython, str(source), "-o", str(generated)], check=True)
    include = ["-I", sysconfig.get_path("include"), "-I", str(source.parent)]
    objects = [str(library.with_name(source.stem + ".o"))]
    compiler = ["gcc", "-fPIC", "-w", *include]
    subprocess.run([*compiler, *FLAGS[kind], "-c", str(generated), "-o", objects[0]], check=True)
    if kind == "coverage":
        objects.append(str(library.with_name("coverage.o")))
        subprocess.run([*compiler, "-O2", "-c", str(ROOT / "tools/coverage.c"), "-o", objects[1]], check=True)
    # Each extension has a map of its own, so it must find its own and not the other's.
    link = ["gcc", "-shared", "-Wl,-Bsymbolic", *FLAGS[kind], *objects, "-o", str(library)]
    subprocess.run([*link, *(f"-l{name}" for name in libraries)], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in FLAGS:
        raise SystemExit(f"usage: {sys.argv[0]} {'|'.join(FLAGS)}")
    print(build(sys.argv[1]))
