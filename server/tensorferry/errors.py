"""Every error that Tensorferry raises on purpose.

::

    TensorferryError
    ├── RequestError                the caller's fault; the same call will fail again
    │   ├── InvalidRequest          a tensor, parameter or message is not what the model takes
    │   ├── NotFound                no such model, version or shared memory region
    │   ├── AlreadyExists           a shared memory region of that name is there
    │   ├── Unsupported             a part of the protocol that this server doesn't offer
    │   └── ControlDisabled         a change of what is served, which this server was told not to take
    ├── Overloaded                  nobody's fault; retry after a pause
    │   ├── QueueFull               the bound on waiting requests or bytes is reached
    │   ├── PredictedLate           it would be answered after its deadline or the model's objective
    │   └── OutOfDeviceMemory       the GPU has no room to run it
    ├── Unavailable                 not now; retry elsewhere or later
    │   ├── ModelNotReady           loading, unloading, or failed to load
    │   ├── Draining                the server is on its way out
    │   └── DeviceLost              the GPU failed for good; the server must be started anew
    ├── DeadlineExceeded            the caller's time ran out; it may retry with more
    ├── Cancelled                   the caller no longer wants the answer
    ├── ModelFailed                 the model raised or returned nonsense; our side's fault
    └── ConfigurationError          found before serving; a person has to mend it
        ├── SettingsError           a flag, environment variable or line of the settings file
        ├── ModelConfigError        a model's configuration, with file and line
        └── ModelLoadError          the model's file doesn't load, or isn't what its configuration says

Rules for this file: no status codes (they are in ``service/status.py``) and no imports
from the package.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "ConfigurationError",
    "ControlDisabled",
    "DeadlineExceeded",
    "DeviceLost",
    "Draining",
    "InvalidRequest",
    "ModelConfigError",
    "ModelFailed",
    "ModelLoadError",
    "ModelNotReady",
    "NotFound",
    "OutOfDeviceMemory",
    "Overloaded",
    "PredictedLate",
    "QueueFull",
    "RequestError",
    "SettingsError",
    "TensorferryError",
    "Unavailable",
    "Unsupported",
]


class TensorferryError(Exception):
    """The root. ``str(error)`` may be shown to a caller: it never holds a traceback or tensor data."""


class RequestError(TensorferryError):
    """The caller's fault: the same request will fail again."""


class InvalidRequest(RequestError):
    """A tensor, parameter or message is not what the model takes. Says what was expected and what came."""


class NotFound(RequestError):
    """No such model, no such version of it, or no such shared memory region."""


class AlreadyExists(RequestError):
    """A shared memory region of that name is registered already."""


class Unsupported(RequestError):
    """A part of the protocol that this server doesn't offer."""


class ControlDisabled(RequestError):
    """A change of what is served, which this server was started not to take. Says how to start it."""


class Overloaded(TensorferryError):
    """More work than the server takes on. Safe to retry after a pause: the request was not run."""


class QueueFull(Overloaded):
    """The bound on waiting requests, or on bytes in flight, is reached."""


class PredictedLate(Overloaded):
    """Run behind what waits already, it would be answered after its deadline or the model's objective."""


class OutOfDeviceMemory(Overloaded):
    """The GPU had no memory left to run the request, even alone. Safe to retry after a pause."""


class Unavailable(TensorferryError):
    """Not now. Safe to retry elsewhere or later: the request was not run."""


class ModelNotReady(Unavailable):
    """The model is loading, unloading, or failed to load; the message says which and why."""


class Draining(Unavailable):
    """The server has been told to stop and takes no new work."""


class DeviceLost(Unavailable):
    """The GPU failed in a way that only a new process mends; the server isn't ready any more."""


class DeadlineExceeded(TensorferryError):
    """The caller's time ran out before the answer was there. A request that still waited was not run."""


class Cancelled(TensorferryError):
    """The caller no longer wants the answer. A request that still waited was not run."""


class ModelFailed(TensorferryError):
    """The model raised, or returned what its configuration doesn't allow. The log has the traceback."""


class ConfigurationError(TensorferryError):
    """Found before serving; a person has to mend it."""


class SettingsError(ConfigurationError):
    """A flag, an environment variable or a line of the settings file."""


class ModelConfigError(ConfigurationError):
    """A model's configuration. ``str(error)`` starts with the file and, where it is known, the line."""

    def __init__(self, message: str, path: Path | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        where = "" if path is None else f"{path}:{line}: " if line else f"{path}: "
        super().__init__(where + message)


class ModelLoadError(ConfigurationError):
    """The model's file doesn't load, or its signature isn't what its configuration says."""
