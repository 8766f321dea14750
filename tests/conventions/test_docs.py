"""The pages that are made from the code are fresh, and complete."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from tools.config_docs import DOCS, PAGES

from tensorferry import errors
from tensorferry.config import ServerConfig


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_fresh(path):
    assert path.read_text(encoding="utf-8") == PAGES[path](), "run make docs"


def test_every_setting_is_documented():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for each in dataclasses.fields(ServerConfig):
        assert f"| `{each.name}` |" in page
        assert each.metadata["help"] in page


def test_every_error_is_documented():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.TensorferryError) and kind is not errors.TensorferryError:
            assert f"`{name}`" in page


def test_the_error_tree_in_the_docstring_names_every_class():
    tree = errors.__doc__ or ""
    for name in errors.__all__:
        assert f" {name} " in tree or f" {name}\n" in tree
