"""Faults of an emulated GPU in a server process of its own, and a look at its memory: for tests.

The server listens on a Unix socket (``emulated_server --control SOCKET``); one line of JSON asks, one
answers. ``EmulatedControl`` is the side of the test.
"""

from __future__ import annotations

import gc
import json
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any, Final

from tensorferry.testing.emulated_device import EmulatedDevice, emulated_device

__all__ = ["EmulatedControl", "serve_control"]

_PATIENCE_S: Final = 30.0


class EmulatedControl:
    """What a test can do to the devices of a server that was started with the socket ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, device: str = "cuda:0", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Change a device, and return how it is then.

        Changes: ``capacity_bytes``; ``bytes_per_row``, what a forward pass takes for itself; ``lose``, for
        good; ``fail_next``, ``[operation, message]``. The answer has ``allocated`` and ``reserved`` bytes,
        ``is_lost``, ``races`` and ``threads``, the names of the process's threads.
        """
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_PATIENCE_S)
            asking.connect(str(self._path))
            asking.sendall(json.dumps({"device": device, **changes}).encode() + b"\n")
            with asking.makefile() as answer:
                answered: dict[str, Any] = json.loads(answer.readline())
        return answered


def serve_control(path: Path) -> None:
    """Do what is asked on the socket at ``path``, until the process ends."""
    server = socketserver.ThreadingUnixStreamServer(str(path), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="emulated control", daemon=True).start()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        device = emulated_device(asked.pop("device"))
        for name, value in asked.items():
            _change(device, name, value)
        self.wfile.write(json.dumps(_described(device)).encode() + b"\n")


def _change(device: EmulatedDevice, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
    if name == "capacity_bytes":
        device.memory.budget.capacity = value
    elif name == "bytes_per_row":
        device.call_bytes = lambda rows: rows * value
    elif name == "lose":
        device.lose()
    elif name == "fail_next":
        operation, message = value
        device.fail_next(RuntimeError(message), operation)
    else:
        raise ValueError(f"no change {name!r}")


def _described(device: EmulatedDevice) -> dict[str, Any]:
    gc.collect()
    with device.noting_races():
        device.memory.settle()
        budget = device.memory.budget
        return {
            "allocated": budget.allocated,
            "reserved": budget.reserved,
            "is_lost": device.is_lost,
            "races": device.races,
            "threads": [each.name for each in threading.enumerate()],
        }
