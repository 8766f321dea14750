"""One of several server processes: ``python -m tensorferry.worker PARENT_PID SETTINGS CONTROL_FD``."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from tensorferry import app, logs
from tensorferry.control.desk import RemoteDesk
from tensorferry.supervisor import settings_of

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until told to stop, or until the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the parent died before the line above
    settings = settings_of(sys.argv[2])
    logs.configure(settings.log_level, settings.log_format, settings.log_max_lines_per_s)
    return app.run(settings, RemoteDesk(socket.socket(fileno=int(sys.argv[3])), settings.model_control_mode))


if __name__ == "__main__":
    raise SystemExit(main())
