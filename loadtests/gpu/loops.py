"""The bare loops: a model run over and over on one device, with nothing around it, timed by its events.

``cuda`` is ``torch.cuda``, or what stands for it in a rehearsal. Every loop runs in inference mode, on
a stream of its own, over several input sets in turn, so that no cache makes the next one look
cheap. A figure is the median of repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["Device", "Inputs", "Timing", "copying", "graphed", "link", "resident"]

#: Runs before the first that counts: the JIT compiles in the first ones of a shape, and a device that was
#: idle takes some tenths of a second until its clocks are up.
_WARM_UP_TURNS: Final = 3
_WARM_UP_S: Final = 0.3
#: Batches under way in the loop that copies: one in, one running, one out.
_SLOTS: Final = 3
_COPIES: Final = 8
#: Inputs of one shape that graphs are captured for: a capture takes a tenth of a second, and two are enough
#: that the next run doesn't find its inputs in a cache.
_GRAPHS_PER_SHAPE: Final = 2

Inputs = tuple[Tensor, ...]
Module = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Device:
    """Where loops run. ``cuda`` is ``torch.cuda``; ``is_real`` says whether memory can be pinned."""

    cuda: Any
    where: torch.device
    is_real: bool

    def pinned(self, like: Tensor) -> Tensor:
        """Return new memory of the host, of the shape and dtype of ``like``."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self.is_real)

    def event(self) -> Any:  # noqa: ANN401 - torch's
        """Return a new event with the time."""
        return self.cuda.Event(enable_timing=True)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that each of the runs takes: the median of the repeats, and all of them."""

    run_s: float
    repeats: tuple[float, ...]


def resident(device: Device, module: Module, sets: Sequence[Inputs], seconds: float, repeats: int) -> Timing:
    """Run the model on inputs that are on the device already."""
    stream = device.cuda.Stream()

    def step(number: int) -> None:
        with device.cuda.stream(stream):
            module(*sets[number % len(sets)])

    return _timed(device, (stream, stream), step, len(sets), seconds / repeats, repeats)


def graphed(device: Device, module: Module, sets: Sequence[Inputs], seconds: float, repeats: int) -> Timing:
    """The same with CUDA graphs: two for each shape among ``sets``, in turn.

    Raises:
        RuntimeError: the model can't be captured.
    """
    stream = device.cuda.Stream()
    with device.cuda.stream(stream):
        for _ in range(_WARM_UP_TURNS):
            for inputs in sets:
                module(*inputs)
    stream.synchronize()
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    turn: list[Any] = []
    for number, inputs in enumerate(sets):
        own = by_shape.setdefault(tuple(inputs[0].shape), [])
        if len(own) < _GRAPHS_PER_SHAPE:
            own.append(device.cuda.CUDAGraph())
            pool = turn[0].pool() if turn else None
            with device.cuda.graph(own[-1], pool=pool, stream=stream):
                module(*inputs)
        turn.append(own[number % len(own)])

    def step(number: int) -> None:
        with device.cuda.stream(stream):
            turn[number % len(turn)].replay()

    return _timed(device, (stream, stream), step, len(sets), seconds / repeats, repeats)


def copying(
    device: Device, module: Module, host: Sequence[Inputs], seconds: float, repeats: int, as_given: Module
) -> Timing:
    """Run the model on inputs in pinned memory, and bring its output back there: the fair ceiling.

    Copies in, runs and copies out have a stream each and overlap, with three batches under way.
    ``host`` are pinned; ``as_given`` is called with the device's copy of each input before the model.
    """
    loop = _Copying(device, module, host, as_given)
    return _timed(device, (loop.inward, loop.outward), loop.step, len(host), seconds / repeats, repeats)


class _Copying:
    """The streams, events and buffers of ``copying``. Each of ``_SLOTS`` has its own, of the largest."""

    def __init__(self, device: Device, module: Module, host: Sequence[Inputs], as_given: Module) -> None:
        self._device = device
        self._module = module
        self._host = host
        self._as_given = as_given
        self.inward, self._stream, self.outward = (device.cuda.Stream() for _ in range(3))
        largest = max(host, key=lambda inputs: inputs[0].numel())
        self._inputs = [
            [torch.empty(each.numel(), dtype=each.dtype, device=device.where) for each in largest]
            for _ in range(_SLOTS)
        ]
        self._outputs: list[Tensor | None] = [None] * _SLOTS
        self._copied_in = [device.event() for _ in range(_SLOTS)]
        self._ran = [device.event() for _ in range(_SLOTS)]
        self._copied_out = [device.event() for _ in range(_SLOTS)]

    def step(self, number: int) -> None:
        """Enqueue one batch, once the slot's last one is in host memory."""
        slot, cuda = number % _SLOTS, self._device.cuda
        self._copied_out[slot].synchronize()
        given = self._host[number % len(self._host)]
        inputs = [
            flat[: each.numel()].view(each.shape)
            for flat, each in zip(self._inputs[slot], given, strict=True)
        ]
        with cuda.stream(self.inward):
            for target, source in zip(inputs, given, strict=True):
                target.copy_(source, non_blocking=True)
        self._copied_in[slot].record(self.inward)
        self._stream.wait_event(self._copied_in[slot])
        with cuda.stream(self._stream):
            output = self._module(*[self._as_given(each) for each in inputs])
        self._ran[slot].record(self._stream)
        self.outward.wait_event(self._ran[slot])
        back = self._outputs[slot]
        if back is None or back.shape != output.shape:
            back = self._outputs[slot] = self._device.pinned(output)
        with cuda.stream(self.outward):
            back.copy_(output, non_blocking=True)
        if self._device.is_real:
            output.record_stream(self.outward)
        self._copied_out[slot].record(self.outward)


def link(device: Device, size: int, repeats: int) -> dict[str, float]:
    """Return bytes/s between pinned memory and the device: ``in``, ``out``, and each while both are busy."""
    host = [torch.zeros(size, dtype=torch.uint8, pin_memory=device.is_real) for _ in range(2)]
    there = [torch.zeros(size, dtype=torch.uint8, device=device.where) for _ in range(2)]
    inward, outward = device.cuda.Stream(), device.cuda.Stream()

    def copy(stream: Any, target: Tensor, source: Tensor) -> None:  # noqa: ANN401 - torch's
        with device.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def enter(_: int) -> None:
        copy(inward, there[0], host[0])

    def leave(_: int) -> None:
        copy(outward, host[1], there[1])

    def both(number: int) -> None:
        enter(number)
        leave(number)

    def rate(streams: tuple[Any, Any], step: Callable[[int], None]) -> float:
        return size / _timed(device, streams, step, _COPIES, 0.0, repeats).run_s

    return {
        "in": rate((inward, inward), enter),
        "out": rate((outward, outward), leave),
        "in_beside_out": rate((inward, inward), both),
        "out_beside_in": rate((outward, outward), both),
    }


def _timed(
    device: Device,
    streams: tuple[Any, Any],
    step: Callable[[int], None],
    turn: int,
    seconds: float,
    repeats: int,
) -> Timing:
    """Time whole turns of ``step``, as many as take about ``seconds``, ``repeats`` times.

    The clock runs from the first of ``streams`` to the second.
    """

    def run_s(turns: int) -> float:
        start, end = device.event(), device.event()
        start.record(streams[0])
        for number in range(turns * turn):
            step(number)
        end.record(streams[1])
        end.synchronize()
        for stream in streams:
            stream.synchronize()
        return float(start.elapsed_time(end)) / 1000 / (turns * turn)

    began_s, done = time.perf_counter(), 0
    while done < _WARM_UP_TURNS or (device.is_real and time.perf_counter() - began_s < _WARM_UP_S):
        once_s = run_s(1)
        done += 1
    turns = max(1, round(seconds / (once_s * turn)))
    taken = tuple(run_s(turns) for _ in range(repeats))
    return Timing(median(taken), taken)
