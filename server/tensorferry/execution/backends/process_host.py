"""A model in a process of its own: it can neither hold the server's GIL nor crash the server.

``open_in_process`` starts a child that loads the model; the ``Model`` that it returns hands it one
batch after another. Tensors travel in shared memory (``process_memory``), messages over a socket
(``process_wire``). The thread that runs a batch waits in a system call, without the GIL.

A child that dies fails the batch that it ran, and is started again (``process_start``). The first
restarts after a time of health are waited for, so that of a small batch of which one request kills
the model, the others are answered. While it keeps dying, runs fail at once.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

import structlog

from tensorferry.errors import ModelFailed, ModelLoadError
from tensorferry.execution.backends.process_handle import ChildProcess, Gone
from tensorferry.execution.backends.process_memory import SharedMemory
from tensorferry.execution.backends.process_start import Starter, named, start
from tensorferry.execution.backends.process_wire import Malformed, check_outputs, encode, outputs_in
from tensorferry.model import BatchInput, ModelSpec, RunResult

__all__ = ["ProcessModel", "open_in_process"]

_log = structlog.get_logger("tensorferry.model_process")


def open_in_process(target: str, spec: ModelSpec, device: str) -> ProcessModel:
    """Load a model in a new process: ``target`` is its opener there, as ``module:function``.

    The opener takes ``(spec, device)`` and returns a ``Model``; what it raises comes back as a
    ``ModelLoadError``. ``spec.run_timeout_ms`` bounds each run.

    Raises:
        ModelLoadError: the model doesn't load, its process dies over it or can't be started, or
            its execution is to be inline.
    """
    if spec.execution == "inline":
        raise ModelLoadError(
            f"{named(spec)}: its execution is inline, on the loop thread, and this format runs in a process"
            " of its own, for which the loop can't wait; set its execution to thread, or leave it out"
        )
    memory = SharedMemory()
    try:
        child, complete = start(target, spec, device, memory)
    except BaseException:
        memory.close()
        raise
    return ProcessModel(Starter(target, spec, device, memory), memory, child, complete)


class ProcessModel:
    """A model whose runs happen in a child process; see the protocol ``Model``.

    Used by one thread at a time, as the protocol says.
    """

    def __init__(self, starter: Starter, memory: SharedMemory, child: ChildProcess, spec: ModelSpec) -> None:
        self.spec = spec
        self._starter = starter
        self._memory = memory
        self._child: ChildProcess | None = child
        self._is_closed = False
        self._threads = 0
        self._timeout_s = spec.run_timeout_ms / 1e3 or None

    @property
    def pid(self) -> int | None:
        """The child's process number; None while there is no child."""
        return None if self._child is None else self._child.pid

    def attach(self, intra_op_threads: int) -> None:
        """Have the child run the model with so many threads inside an operation."""
        self._threads = intra_op_threads
        if self._child is not None:
            self._attach(self._child)

    def run(self, inputs: Sequence[BatchInput]) -> RunResult:
        """Run one batch in the child; see the protocol.

        Raises:
            ModelFailed: beside the model's own failures: the child died over the batch, was
                killed as it took longer than ``run_timeout_ms``, or isn't there yet again.
        """
        start = time.perf_counter_ns()
        tensors = self._memory.place(inputs)
        placed = time.perf_counter_ns()
        child = self._send(encode("run", self._memory.outputs.current, tensors))
        try:
            kind, fields = child.receive(self._timeout_s)
            if kind == "ran":
                return self._result(fields, start, placed)
            raise self._failure(kind, fields)
        except Gone:
            raise self._died(child, child.death()) from None
        except TimeoutError:
            child.kill()
            what = f"was killed: a run took longer than run_timeout_ms, {self.spec.run_timeout_ms:g} ms"
            raise self._died(child, what) from None
        except Malformed as error:
            child.kill()
            raise self._died(child, f"was killed: it sent {error}") from None

    def close(self) -> None:
        """End the child, which frees the model."""
        if self._is_closed:
            return
        self._is_closed = True
        self._starter.close()
        if self._child is not None:
            self._child.end()
            self._child = None
        self._memory.close()

    def __del__(self) -> None:
        """Leave no process behind, where a model that fails in warm-up is dropped without closing it."""
        self.close()

    def _attach(self, child: ChildProcess) -> None:
        with contextlib.suppress(Gone):  # the next run finds out, and says so
            child.send(encode("attach", self._threads))

    def _send(self, message: bytes) -> ChildProcess:
        child = self._child or self._restarted()
        try:
            child.send(message)
        except Gone:
            # It died since the last run: the batch has nothing to do with it, and goes to the next.
            self._died(child, child.death())
            child = self._restarted()
            try:
                child.send(message)
            except Gone:
                raise self._died(child, child.death()) from None
        return child

    def _result(self, fields: Sequence[Any], start: int, placed: int) -> RunResult:
        if len(fields) != 2:
            raise Malformed("an answer that isn't one")
        tensors, times = fields
        reach = check_outputs(self.spec, tensors)
        region = self._memory.outputs
        if not region.regions[region.current].holds(reach):
            raise Malformed("outputs that aren't there")
        answered = time.perf_counter_ns()
        outputs = outputs_in(tensors, region.take(reach))
        infer_ns = _infer_ns(times, answered - placed)
        input_ns = answered - start - infer_ns
        return RunResult(outputs, input_ns, infer_ns, time.perf_counter_ns() - answered)

    def _failure(self, kind: str, fields: Sequence[Any]) -> Exception:
        texts = [field for field in fields if isinstance(field, str)]
        if kind == "failed" and len(texts) == 1:
            return ModelFailed(texts[0])
        if kind == "raised" and len(texts) == 3 and texts[0].isidentifier():
            # Of the model's own type by name, which is what the caller is told.
            raised: type[_Raised] = type(texts[0], (_Raised,), {"__module__": "model"})
            return raised(texts[1], texts[2])
        raise Malformed(f"a message of no kind, {kind[:40]!r}")

    def _died(self, child: ChildProcess, how: str) -> ModelFailed:
        """Have the child started again; say in the log how it ended, and return what callers are told.

        What it printed last may hold callers' data: it stays in the log.
        """
        self._child = None
        child.end()
        again_s = self._starter.start_later()
        reference = uuid.uuid4().hex[:12]
        _log.error(
            "model process died",
            model=self.spec.name,
            version=self.spec.version,
            how=how,
            again_in_s=again_s,
            error_id=reference,
            printed_last=child.last_lines(),
        )
        return ModelFailed(
            f"{named(self.spec)}: its process {how}; it is started again in {again_s:g} s;"
            f" error id {reference} in the log"
        )

    def _restarted(self) -> ChildProcess:
        child = self._starter.started()
        if self._threads:
            self._attach(child)
        self._child = child
        return child


class _Raised(Exception):
    """What the model raised in its process; its subclasses have the names of the model's exceptions."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace

    def __str__(self) -> str:
        return f"{self.args[0]}\nin the model's process: {self.trace}"


def _infer_ns(times: object, waited_ns: int) -> int:
    """Return what the child says that the forward pass took, as far as it can be true.

    Raises:
        Malformed: it says something else.
    """
    if not isinstance(times, list) or len(times) != 3 or not all(type(each) is int for each in times):
        raise Malformed("times that aren't")
    infer_ns: int = times[1]
    return max(0, min(infer_ns, waited_ns))
