"""Every limit of the transport has a test: a new one without fails here."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path

from tests.integration.http2.limits import PINNED

from tensorferry.config import ServerConfig

#: Limits that aren't the transport's.
ELSEWHERE = {"max_queue_size", "max_inflight_bytes"}


def test_every_limit_of_the_transport_has_a_test():
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.integration.http2.{path.stem}")
    limits = {
        each.name
        for each in fields(ServerConfig)
        if each.name.startswith(("max_", "min_", "keepalive_")) or each.name.endswith("_timeout_s")
    }
    assert limits - ELSEWHERE - PINNED == set()
