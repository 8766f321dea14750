"""A model's own process: ``python -m tensorferry.execution.backends.process_child NAME/VERSION ...``.

Started by ``process_host`` and by nobody else. It loads one model, then runs what it is sent until
it is told to end. It ends with its parent, however that ends, and leaves signals from a terminal or
a service manager to it: a server that drains still needs its models.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from tensorferry.errors import TensorferryError
from tensorferry.execution.backends.process_memory import Region, aligned, copy_into
from tensorferry.execution.backends.process_wire import (
    MAX_MESSAGE_BYTES,
    decode,
    decode_order,
    described,
    encode,
)
from tensorferry.execution.priority import Priority
from tensorferry.model import BatchInput, Model, ModelSpec

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1
#: Added to what the kernel's out-of-memory killer counts: it takes the model before the server.
_OOM_SCORE: Final = 300
_MOST_NICE: Final = 19
#: What is sent of a traceback and of a message, in characters; the end says most.
_MAX_TRACEBACK: Final = 8000
_MAX_MESSAGE: Final = 2000


class _Served:
    """The loaded model, and the regions that its tensors are in."""

    def __init__(self, channel: socket.socket, model: Model, regions: list[Region], name: str) -> None:
        self._channel = channel
        self._model = model
        self._inputs = regions[0]
        self._outputs = regions[1:]
        # Its runs aren't the server's CPU time, so it gives way by its own measure.
        self._priority = Priority(name)

    def serve(self) -> None:
        """Do what is asked until ``close``, or until the server is gone."""
        buffer = bytearray(MAX_MESSAGE_BYTES)
        while size := self._channel.recv_into(buffer):
            kind, fields = decode(bytes(memoryview(buffer)[:size]))
            if kind == "run":
                began = time.thread_time()
                self._channel.send(self._answer(*fields))
                self._priority.saw(time.thread_time() - began)
            elif kind == "attach":
                self._model.attach(*fields)
            else:
                break
        self._model.close()

    def _answer(self, region: int, tensors: Sequence[Sequence[Any]]) -> bytes:
        try:
            return self._run(region, tensors)
        except TensorferryError as error:
            return encode("failed", str(error)[:_MAX_MESSAGE])
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            return encode("raised", type(error).__name__, str(error)[:_MAX_MESSAGE], text[-_MAX_TRACEBACK:])

    def _run(self, region: int, tensors: Sequence[Sequence[Any]]) -> bytes:
        reach = max((offset + size for *_, offset, size in tensors), default=0)
        view = self._inputs.reserve(reach)
        result = self._model.run(
            [
                BatchInput(name, datatype, tuple(shape), [view[offset : offset + size]])
                for name, datatype, shape, offset, size in tensors
            ]
        )
        began = time.perf_counter_ns()
        offset = 0
        placed = []
        for output in result.outputs:
            placed.append((output.name, output.datatype, output.shape, offset, len(output.data)))
            offset = aligned(offset + len(output.data))
        view = self._outputs[region].reserve(offset)
        for output, (_, _, _, start, _) in zip(result.outputs, placed, strict=True):
            copy_into(view, start, output.data)
        output_ns = result.output_ns + time.perf_counter_ns() - began
        return encode("ran", placed, [result.input_ns, result.infer_ns, output_ns])


def main() -> NoReturn:
    """Load and serve; never returns: whatever threads the model has started end with it."""
    status = 1
    try:
        status = _main(sys.argv[1:])
    except SystemExit as error:  # the model's own wish
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _main(arguments: list[str]) -> int:
    name, parent, channel_fd, *region_fds = arguments
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it died before the line above
    _settle()
    channel = socket.socket(fileno=int(channel_fd))
    order = channel.recv(MAX_MESSAGE_BYTES)
    if not order:
        return 0
    target, device, spec = decode_order(order)
    if spec.background:
        os.nice(_MOST_NICE)
    try:
        model = _opener(target)(spec, device)
    except TensorferryError as error:
        channel.send(encode("refused", str(error)[:_MAX_MESSAGE]))
        return 0
    except Exception as error:
        traceback.print_exc()
        channel.send(encode("refused", _reason(spec, error)[:_MAX_MESSAGE]))
        return 0
    channel.send(encode("loaded", *described(model.spec)))
    _Served(channel, model, [Region(int(fd)) for fd in region_fds], name).serve()
    return 0


def _settle() -> None:
    """Leave signals to the server, and make sure that what is said last is heard."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(int(score.read_text()) + _OOM_SCORE, 1000)))


def _opener(target: str) -> Callable[[ModelSpec, str], Model]:
    module, _, function = target.partition(":")
    return cast("Callable[[ModelSpec, str], Model]", getattr(importlib.import_module(module), function))


def _reason(spec: ModelSpec, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return f"model {spec.name!r} version {spec.version}: loading failed: {what}"


if __name__ == "__main__":
    main()
