"""Loads that a GPU has no room for are refused with what can be done, not with torch's words alone."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from tensorferry.errors import ModelLoadError, OutOfDeviceMemory
from tensorferry.execution.memory import available_device_bytes
from tensorferry.execution.memory_needs import HOST, mib, remedy, what_for
from tensorferry.model import ModelSpec

__all__ = ["refusing_out_of_memory"]


@contextlib.contextmanager
def refusing_out_of_memory(spec: ModelSpec, device: str) -> Iterator[None]:
    """Raise in place of an error that says that ``device`` is full one that says what can be done.

    For loading and warming up ``spec``; on the CPU nothing is changed.

    Raises:
        ModelLoadError: the device has no room; says what was free.
        Exception: whatever else the block raises.
    """
    if device == HOST:
        yield
        return
    try:
        yield
    except Exception as error:
        cause = _out_of_memory(error)
        if cause is None:
            raise
        # What was loaded until then is freed now, and not when the last has let go of the error.
        traceback.clear_frames(cause.__traceback__)
        free = available_device_bytes(device)
        left = "" if free is None else f", with {mib(free)} free just then"
        raise ModelLoadError(
            f"model {spec.name!r} version {spec.version}: {device} has no room for"
            f" {what_for(spec, device)} and a run of its largest batch{left} ({_first_line(cause)})."
            f" {remedy(spec, device)}"
        ) from error


def _out_of_memory(error: BaseException) -> BaseException | None:
    """Return what says that a device had no room: the error itself, or what it was raised for; else None."""
    try:
        from tensorferry.execution.backends.torch_memory import is_out_of_memory
    except ImportError:
        return None
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OutOfDeviceMemory) or is_out_of_memory(cause)):
        cause = cause.__cause__
    return cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
