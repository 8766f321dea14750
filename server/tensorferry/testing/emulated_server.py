"""``python -m tensorferry.testing.emulated_server serve ...``: tensorferry, its GPUs emulated on the CPU.

For tests and rehearsals: a whole server with ``instance_group { kind: KIND_GPU }`` on a machine without
a GPU. Answers are right, times and figures of devices mean nothing, and it is slow. Whatever might race
on a GPU fails its batch, and is told on standard error at the end, with the exit status 3.
With ``--control SOCKET`` before the command its devices can be made to fail (``emulated_control``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tensorferry.cli import main as run_command
from tensorferry.execution.backends import torch_gpu
from tensorferry.testing.emulated_control import serve_control
from tensorferry.testing.emulated_device import emulated_devices
from tensorferry.testing.emulated_gpu import EmulatedGpu

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of tensorferry; return its exit status, or 3 if it did well but for a race."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--control"]:
        serve_control(Path(arguments[1]))
        arguments = arguments[2:]
    with torch_gpu.opened_by(EmulatedGpu):
        status = run_command(arguments)
    races = [race for device in emulated_devices() for race in device.races]
    for race in races:
        print(f"emulated GPU: race: {race}", file=sys.stderr)
    return status or (3 if races else 0)


if __name__ == "__main__":
    raise SystemExit(main())
