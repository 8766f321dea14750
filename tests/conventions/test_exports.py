"""``__all__`` is sorted, true, and all that other modules use."""

from __future__ import annotations

import ast

import pytest
from tests.conventions.source import exports_of, imports_of, modules, tree_of

MODULES = modules()
WITHOUT = {"tensorferry", "tensorferry.__main__", "tensorferry.worker"}


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: as the linter sorts."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def is_empty(module: str) -> bool:
    """Whether the module is a docstring and nothing else."""
    return all(isinstance(node, ast.Expr) for node in tree_of(MODULES[module]).body)


WITH_NAMES = [name for name in MODULES if name not in WITHOUT and not is_empty(name)]


def defined_in(module: str) -> set[str]:
    """Every name that the module's top level binds, by definition, assignment or import."""
    names: set[str] = set()
    for node in tree_of(MODULES[module]).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("module", WITH_NAMES)
def test_all_is_there_sorted_and_without_repetition(module: str):
    exports = exports_of(MODULES[module])
    assert exports is not None, f"{MODULES[module]} has no __all__"
    assert exports == sorted(set(exports), key=sort_key)


@pytest.mark.parametrize("module", WITH_NAMES)
def test_all_names_only_what_is_there(module: str):
    assert set(exports_of(MODULES[module]) or ()) <= defined_in(module)


@pytest.mark.parametrize("module", WITH_NAMES)
def test_all_leaves_out_no_public_class_or_function(module: str):
    public = {
        node.name
        for node in tree_of(MODULES[module]).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    }
    assert public <= set(exports_of(MODULES[module]) or ())


def imported_from(module: str) -> set[str]:
    """Every name that other modules import from this one; an extension module's name is none."""
    return {
        name
        for path in MODULES.values()
        for source, name, _ in imports_of(path)
        if source == module and name and f"{module}.{name}" not in MODULES and not is_extension(module, name)
    }


def is_extension(package: str, name: str) -> bool:
    return MODULES[package].with_name(f"{name}.pyx").exists()


@pytest.mark.parametrize("module", WITH_NAMES)
def test_what_others_import_is_in_all(module: str):
    assert imported_from(module) <= set(exports_of(MODULES[module]) or ())


@pytest.mark.parametrize("module", [name for name in WITH_NAMES if MODULES[name].name == "__init__.py"])
def test_a_package_exports_all_that_it_imports_from_itself(module: str):
    own = {
        alias.asname or alias.name
        for node in tree_of(MODULES[module]).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{module}.")
        for alias in node.names
    }
    assert {name for name in own if not name.startswith("_")} <= set(exports_of(MODULES[module]) or ())
