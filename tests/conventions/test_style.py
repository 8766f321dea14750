"""Budgets and habits that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.conventions.source import ROOT, modules, tree_of

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500

MODULES = modules()
TESTS = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tests").rglob("*.py"))}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_within_their_budgets(module: str):
    path = MODULES[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module: str):
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[module]}:{node.lineno}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tensorferry.cli"])
def test_only_the_command_line_reads_the_environment(module: str):
    for node in ast.walk(tree_of(MODULES[module])):
        named = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        assert named not in ("environ", "getenv"), f"{MODULES[module]}:{node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_the_wall_clock_measures_nothing(module: str):
    # time.time() jumps. time.time_ns() is for instants that leave the process as such.
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "time.time", f"{MODULES[module]}:{node.lineno}"


def sleeps_in(tree: ast.Module) -> list[int]:
    """The lines that let time pass; ``asyncio.sleep(0)`` only lets others run."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "asyncio"):
            lines += [node.lineno for alias in node.names if alias.name == "sleep"]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        is_yield = [ast.unparse(argument) for argument in node.args] == ["0"]
        if called == "time.sleep" or (called in ("asyncio.sleep", "gevent.sleep") and not is_yield):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("name", TESTS)
def test_tests_do_not_sleep(name: str):
    assert sleeps_in(tree_of(TESTS[name])) == []


def test_the_search_for_sleep_finds_it():
    text = "import time, asyncio\ntime.sleep(1)\nawait asyncio.sleep(0.1)\nawait asyncio.sleep(0)\n"
    assert sleeps_in(ast.parse(text, mode="exec", type_comments=False)) == [2, 3]
    assert sleeps_in(ast.parse("from time import sleep\n")) == [1]


def test_no_line_of_a_test_patches_our_own_code():
    # What has to be replaced has a seam: a clock, an executor, a transport.
    for name, path in TESTS.items():
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert "unittest.mock" not in text, name
        assert 'monkeypatch.setattr("tensorferry' not in text, name
