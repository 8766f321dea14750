"""What the package exports, and what importing it drags along."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tensorferry_client

MODULES = ["tensorferry_client"] + [
    f"tensorferry_client.{path.stem}"
    for path in sorted(Path(tensorferry_client.__file__).parent.glob("_[a-z]*.py"))
]


def order(name):
    """Constants, then classes, then functions: as the linter sorts."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("module_name", MODULES)
def test_all_is_sorted_and_names_what_is_there(module_name):
    module = importlib.import_module(module_name)
    assert module.__all__ == sorted(module.__all__, key=order)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("module_name", MODULES[1:])
def test_all_of_a_module_leaves_out_no_class_or_function_of_its_own(module_name):
    module = importlib.import_module(module_name)
    own = {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module_name
        and isinstance(value, type | types.FunctionType)
        and not name.startswith("_")
    }
    assert own <= set(module.__all__)


def test_the_package_exports_all_that_it_imports():
    public = {
        name
        for name, value in vars(tensorferry_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(tensorferry_client.__all__)


def test_importing_the_client_loads_neither_torch_nor_the_server():
    script = (
        "import sys, tensorferry_client\n"
        "def is_foreign(name):\n"
        "    if name.split('.')[0] == 'torch': return True\n"
        "    if name == 'tensorferry' or name.split('.')[:2] == ['tensorferry', 'wire']: return False\n"
        "    return name.split('.')[0] == 'tensorferry'\n"
        "print([name for name in sys.modules if is_foreign(name)])\n"
    )
    roots = [
        Path(tensorferry_client.__file__).parents[1],
        Path(importlib.import_module("tensorferry").__file__).parents[1],
    ]
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(root) for root in roots]}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "[]"
