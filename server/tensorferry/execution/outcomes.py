"""What becomes of a batch that a stream runs: a result, or an error that may be shown to callers."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable

import structlog

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import ModelFailed, TensorferryError
from tensorferry.model import ModelSpec

__all__ = ["Done", "failure", "post", "reason_of"]

_log = structlog.get_logger("tensorferry.execution")

#: Called with a batch's outcome, once, on the loop thread.
Done = Callable[[BatchOutcome], None]


def failure(spec: ModelSpec, batch: Batch, error: Exception) -> TensorferryError:
    """Return what the callers of ``batch`` are told of an error; one that wasn't raised on purpose is logged.

    They are told only where to find it: it may quote their data. A batch of several requests is halved
    and run again until the one at fault stands alone; that one is worth the traceback, which takes long
    to write.
    """
    if isinstance(error, TensorferryError):
        return error
    reference = uuid.uuid4().hex[:12]
    log = _log.bind(model=spec.name, version=spec.version, rows=batch.rows, error_id=reference)
    if len(batch.requests) == 1:
        log.error("model raised", exc_info=error)
    else:
        log.warning("model raised on a batch", requests=len(batch.requests), error=type(error).__name__)
    return ModelFailed(
        f"model {spec.name!r} version {spec.version} raised {type(error).__name__};"
        f" error id {reference} in the log"
    )


def reason_of(error: BaseException) -> str:
    """Return the line of an error that says what is wrong, or its name where it says nothing.

    TorchScript says it last, behind where it was. An error of CUDA's has advice for programmers below it.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "CUDA error: " in line), lines[-1])


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Have ``callback`` called on the loop thread. On any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
        loop.call_soon_threadsafe(callback, *arguments)
