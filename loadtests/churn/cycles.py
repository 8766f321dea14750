"""The cycles: replace a model, load another, unload it, and see what each took and what the server holds.

They run in a process of their own, so that the generator's calls leave on time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from loadtests.churn.footprint import footprint_of
from loadtests.churn.models import SWAPPED, Changes, Swap, guest_of
from tensorferry.benchmark.requests import infer_message
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = ["Cycle", "Job", "run_cycles"]

_PATIENCE_S: Final = 60.0
_MOST_FAULTS: Final = 10
_SHOW_EVERY: Final = 100


@dataclass(frozen=True, slots=True)
class Job:
    """Which cycles to make, on which server, and with what. ``pid`` is the server's."""

    target: str
    pid: int
    root: Path
    variants: Path
    guests: Sequence[str]
    first: int
    count: int
    interval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle took, in ms, and what the server held after it.

    ``began_s`` is an instant of ``time.perf_counter``, which all processes of a machine share.
    ``swap_ms`` and ``load_ms`` are the RepositoryModelLoad of the swapped model and of the guest,
    ``first_ms`` the first call to the swapped model afterwards. ``faults`` says which calls failed, and
    which answers weren't those of the model that was just loaded.
    """

    number: int
    swap: str
    guest: str
    began_s: float
    ended_s: float
    swap_ms: float
    first_ms: float
    load_ms: float
    unload_ms: float
    rss_bytes: int
    threads: int
    descriptors: int
    faults: tuple[str, ...]


def run_cycles(job: Job) -> list[Cycle]:
    """Make the cycles one after another; stop early if there are many faults."""
    cycles: list[Cycle] = []
    faults = 0
    changes = Changes(job.root, job.variants)
    with grpc.insecure_channel(job.target) as channel:
        caller = _Caller(channel)
        for number in range(job.first, job.first + job.count):
            due = time.perf_counter() + job.interval_s
            cycles.append(_cycle(job, number, changes, caller))
            faults += len(cycles[-1].faults)
            if faults > _MOST_FAULTS:
                break
            if (number + 1) % _SHOW_EVERY == 0:
                print(_line(cycles[-1]), flush=True)
            time.sleep(max(0.0, due - time.perf_counter()))
    return cycles


def _cycle(job: Job, number: int, changes: Changes, caller: _Caller) -> Cycle:
    began_s = time.perf_counter()
    swap, guest = changes.make(number), guest_of(number, job.guests)
    swap_ms = caller.load(SWAPPED, swap.config)
    first_ms = caller.check(swap)
    load_ms = caller.load(guest)
    unload_ms = caller.unload(guest)
    held = footprint_of(job.pid, with_descendants=False)
    return Cycle(
        number,
        swap.kind,
        guest,
        began_s,
        time.perf_counter(),
        swap_ms,
        first_ms,
        load_ms,
        unload_ms,
        held.rss_bytes,
        held.threads,
        held.descriptors,
        caller.faults(),
    )


class _Caller:
    """Makes calls, times them, and keeps what went wrong until it is asked for."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._faults: list[str] = []
        features = np.zeros((1, 30), np.float32)
        self._request = pb.ModelInferRequest.FromString(infer_message(SWAPPED, {"features": features}))

    def load(self, name: str, config: str | None = None) -> float:
        """Load a model; return how long the call took in ms."""
        request = pb.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = config
        return self._timed(
            f"load {name}", lambda: self._stub.RepositoryModelLoad(request, timeout=_PATIENCE_S)
        )

    def unload(self, name: str) -> float:
        """Unload a model; return how long the call took in ms."""
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        return self._timed(
            f"unload {name}", lambda: self._stub.RepositoryModelUnload(request, timeout=_PATIENCE_S)
        )

    def check(self, swap: Swap) -> float:
        """Make sure that what was loaded answers; return how long its first call took in ms."""
        return self._timed("first call", lambda: self._compare(swap))

    def faults(self) -> tuple[str, ...]:
        """Return what went wrong since this was last asked for."""
        faults, self._faults = tuple(self._faults), []
        return faults

    def _compare(self, swap: Swap) -> None:
        answer = self._stub.ModelInfer(self._request, timeout=_PATIENCE_S)
        score = float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])
        if answer.model_version != str(swap.version) or int(score) != swap.variant:
            self._faults.append(
                f"after a swap by {swap.kind}: version {answer.model_version} answered {score:.3g}, and"
                f" version {swap.version} would have answered {swap.variant} to {swap.variant + 1}"
            )

    def _timed(self, what: str, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        try:
            call()
        except grpc.RpcError as error:
            self._faults.append(f"{what}: {error}")
        return (time.perf_counter() - began) * 1e3


def _line(cycle: Cycle) -> str:
    return (
        f"cycle {cycle.number + 1:>5}: swap {cycle.swap_ms:6.1f} ms,"
        f" load {cycle.load_ms:6.1f} ms ({cycle.guest}), {cycle.rss_bytes / 2**20:.1f} MiB,"
        f" {cycle.threads} threads, {cycle.descriptors} descriptors"
    )
