"""A bench for each test; what a test leaves behind fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("tensorferry.transport._http2") is None:
    collect_ignore_glob = ["test_*.py"]  # this installation has no http2 transport
else:
    from tests.integration.http2.bench import Bench


@pytest.fixture
def serve() -> Iterator[Callable[..., Bench]]:
    """Start transports with settings of the test's own: ``serve(max_connections=2)``."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Bench:
            bench = Bench(**settings)
            stack.callback(bench.close)
            return bench

        yield start


@pytest.fixture
def bench(serve: Callable[..., Bench]) -> Bench:
    """A transport with the default settings."""
    return serve()
