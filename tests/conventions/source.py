"""The source files and what they import, read without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "server" / "tensorferry", ROOT / "clients" / "tensorferry_client")


def modules() -> dict[str, Path]:
    """Every module of the two packages by its full name, without the generated ones."""
    found = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not name.startswith("tensorferry.wire"):
                found[name] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (module, name in it or "", line) of every import of a file, those inside functions too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (module, line); ``from package import module`` counts as the module."""
    known = modules()
    for module, name, line in imports_of(path):
        whole = f"{module}.{name}"
        yield (whole if name and (whole in known or module == "tensorferry.wire") else module), line


def exports_of(path: Path) -> list[str] | None:
    """Return ``__all__`` as written, or None."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None
