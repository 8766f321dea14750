"""A module imports only from layers below its own; torch and the wire code stay where they belong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conventions.source import imported_modules, modules

#: Lowest first. A module of a layer imports from its own and from those before it.
LAYERS = (
    "errors",
    "tensors",
    "clock",
    "config",
    "device",
    "model",
    "batching",
    "execution",
    "repository",
    "rollout",
    "engine",
    "control",
    "tracing",
    "service",
    "transport",
    "monitoring",
    "logs",
    "http_port",
    "signals",
    "app",
    "fleet_port",
    "supervisor",
    "worker",
    "checking",
    "info",
    "simulation",
    "converting",
    "benchmark",
    "commands",
    "cli",
)

#: Who may import the generated code, beside the client.
WIRE_USERS = {"repository", "rollout", "control", "service", "benchmark", "commands"}

#: Who may import torch, beside what is shipped for tests: the backends of its formats, and the
#: conversion between formats.
TORCH_USERS = ("tensorferry.execution.backends.torch", "tensorferry.converting")

SERVER = {name: path for name, path in modules().items() if name.split(".")[0] == "tensorferry"}
CLIENT = {name: path for name, path in modules().items() if name.split(".")[0] == "tensorferry_client"}


def layer_of(module: str) -> str:
    """Return the name of a server module's layer; "" is the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def outside_testing() -> list[str]:
    return [name for name in SERVER if layer_of(name) not in ("testing", "__main__", "")]


def test_every_module_has_a_layer():
    unknown = {layer_of(name) for name in outside_testing()} - set(LAYERS)
    assert not unknown, f"put {unknown} in its place in LAYERS"


@pytest.mark.parametrize("module", outside_testing())
def test_a_module_imports_from_its_own_layer_and_those_below(module: str):
    own = LAYERS.index(layer_of(module))
    for imported, line in imported_modules(SERVER[module]):
        if imported.split(".")[0] != "tensorferry" or layer_of(imported) in ("", "wire"):
            continue
        layer = layer_of(imported)
        assert layer in LAYERS, f"{SERVER[module]}:{line}: {imported} is not for production code"
        assert LAYERS.index(layer) <= own, f"{SERVER[module]}:{line}: {imported} is a layer above"


@pytest.mark.parametrize("module", outside_testing())
def test_the_wire_code_is_imported_where_messages_are_spoken(module: str):
    if layer_of(module) in WIRE_USERS:
        return
    for imported, line in imported_modules(SERVER[module]):
        assert not imported.startswith("tensorferry.wire"), f"{SERVER[module]}:{line}: {imported}"


@pytest.mark.parametrize("module", [*outside_testing(), *CLIENT])
def test_torch_is_imported_by_its_backends_alone(module: str):
    if module.startswith(TORCH_USERS):
        return
    path = modules()[module]
    for imported, line in imported_modules(path):
        assert imported.split(".")[0] != "torch", f"{path}:{line}: only {TORCH_USERS} may import torch"


@pytest.mark.parametrize("module", CLIENT)
def test_the_client_imports_of_the_server_the_wire_code_alone(module: str):
    for imported, line in imported_modules(CLIENT[module]):
        is_server = imported.split(".")[0] == "tensorferry"
        assert not is_server or imported.startswith("tensorferry.wire"), (
            f"{CLIENT[module]}:{line}: {imported}"
        )


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names that a fresh interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_client_loads_no_torch():
    assert not {"torch", "uvloop", "aiohttp", "structlog"} & loaded_by("import tensorferry_client")


def test_importing_the_server_package_loads_neither_torch_nor_grpc():
    assert not {"torch", "grpc", "numpy"} & loaded_by("import tensorferry")


def test_importing_the_command_line_loads_neither_torch_nor_grpc():
    assert not {"torch", "grpc"} & loaded_by("import tensorferry.cli")


def test_importing_the_application_loads_no_torch():
    assert "torch" not in loaded_by("import tensorferry.app")


def test_importing_the_shipped_fakes_loads_no_torch():
    assert "torch" not in loaded_by("import tensorferry.testing, tensorferry.testing.process")


def test_the_checks_above_see_the_sources():
    assert {"tensorferry.engine.engine", "tensorferry.cli", "tensorferry_client"} <= set(modules())
    assert ("tensorferry.errors", 1) not in list(imported_modules(Path(__file__)))
