"""Which test pins which limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

#: Limits by name, as far as the test modules that pin them have been imported.
PINNED: set[str] = set()


def pins(*names: str) -> Callable[[Test], Test]:
    """Say that a test fails if these settings of ServerConfig lose their effect."""

    def mark(test: Test) -> Test:
        PINNED.update(names)
        return test

    return mark
