"""Times the bare loops in a process of its own: ``python -m loadtests.gpu.bare JOB.json``; see ``Job``.

Prints JSON: the device, the link's limits, and seconds a batch for each model, batch size and kind of
loop. The process ends before a server starts, so that memory and clocks are alike for both.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from loadtests.gpu.loops import Device, Inputs, Timing, copying, graphed, link, resident
from loadtests.gpu.payloads import CHECKED, checked_call, images, mix_of, rows_of_fraud, sequences
from loadtests.gpu.pretend import Pretend
from loadtests.gpu.scale import REAL, REHEARSAL, Scale

__all__ = ["main"]

_SETS: Final = 4

# torch leaves it without annotations.
_load: Final[Callable[..., torch.jit.ScriptModule]] = torch.jit.load


def main(arguments: Sequence[str]) -> int:
    """Do a job of {"modules": folder, "is_rehearsal": whether, "batches": {model: [rows, ...]}}."""
    began_s = time.monotonic()
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    scale = REHEARSAL if job["is_rehearsal"] else REAL
    # As the server has it, and for the same reason: no plan for each new batch size.
    torch.jit.set_fusion_strategy([("DYNAMIC", 20)])
    device = Device(
        Pretend() if scale.is_rehearsal else torch.cuda, torch.device(scale.device), not scale.is_rehearsal
    )
    if scale.is_rehearsal:
        torch.set_num_threads(1)
    bench = _Bench(device, scale, Path(job["modules"]))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch says at each step that TorchScript is deprecated
        found: dict[str, Any] = {"device": _described(device), "link": link(device, scale.link_bytes, 3)}
        found["loops"] = []
        for model, sizes in job["batches"].items():
            for rows in sizes:
                # For the log: where it was, should it hang.
                print(
                    f"{time.monotonic() - began_s:6.1f} s: {model}, {rows} rows", file=sys.stderr, flush=True
                )
                found["loops"].append(bench.loop(model, rows))
        found["answers"] = {model: bench.answers(model) for model in job["batches"]}
    print(json.dumps(found))
    return 0


def _described(device: Device) -> dict[str, str]:
    if not device.is_real:
        return {"name": "none (a rehearsal)", "uuid": "", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device.where)
    uuid = str(getattr(properties, "uuid", ""))
    return {
        "name": properties.name,
        "uuid": f"GPU-{uuid}" if uuid and not uuid.startswith("GPU-") else uuid,
        "torch": torch.__version__,
    }


class _Bench:
    """The models on the device, and what they are fed with."""

    def __init__(self, device: Device, scale: Scale, modules: Path) -> None:
        self._device = device
        self._scale = scale
        self._modules = modules
        self._loaded: tuple[str, Callable[..., Tensor]] = ("", torch.relu)

    def loop(self, model: str, rows: int) -> dict[str, Any]:
        """Time one model at one batch size: resident, as graphs, and with copies."""
        module = self._module(model)
        host = self._host_sets(model, rows)
        sets = [tuple(self._as_given(each.to(self._device.where)) for each in inputs) for inputs in host]
        seconds, repeats = self._scale.seconds.loop, self._scale.repeats
        found: dict[str, Any] = {"model": model, "rows": rows, "failed": {}}
        kinds: dict[str, Callable[[], Timing]] = {
            "resident": lambda: resident(self._device, module, sets, seconds, repeats),
            "copies": lambda: copying(self._device, module, host, seconds, repeats, self._as_given),
            # The last: a capture that fails may leave torch's allocator in disorder.
            "graphs": lambda: graphed(self._device, module, sets, seconds, repeats),
        }
        for kind, run in kinds.items():
            try:
                timing = run()
            except (RuntimeError, torch.OutOfMemoryError) as error:  # such as no room, or no capture
                found["failed"][kind] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                continue
            found[kind] = {"rows_per_s": rows / timing.run_s, "repeats": [rows / s for s in timing.repeats]}
            gc.collect()
        return found

    def answers(self, model: str) -> list[list[float]]:
        """Return the output row for each of the calls that the server is checked with, as FP64."""
        found: list[list[float]] = []
        for number in range(CHECKED):
            tensor = torch.from_numpy(checked_call(self._scale, model, number))
            given: Inputs = (tensor,)
            if model == "bert":
                given = (tensor, torch.tensor([[tensor.shape[1]]], dtype=torch.int32))
            output = self._module(model)(*[self._as_given(each.to(self._device.where)) for each in given])
            found.append(output[0].double().cpu().tolist())
        return found

    def _module(self, model: str) -> Callable[..., Tensor]:
        if self._loaded[0] != model:
            self._loaded = ("", torch.relu)
            loaded: Any = _load(str(self._modules / f"{model}.pt"), map_location=self._device.where)
            if model.startswith("resnet"):
                loaded = loaded.to(memory_format=torch.channels_last)
            self._loaded = (model, loaded.eval())
        return self._loaded[1]

    def _as_given(self, tensor: Tensor) -> Tensor:
        """Images come as clients send them, with the channels first, and are laid out anew."""
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def _host_sets(self, model: str, rows: int) -> list[Inputs]:
        """Return input sets in pinned memory: for bert a whole turn of the mix."""
        if model == "bert":
            return [
                self._sequences(bucket, rows, seed)
                for seed, bucket in enumerate(mix_of(self._scale.bert).turn)
            ]
        if model == "fraud":
            made: list[Any] = [rows_of_fraud(rows, seed) for seed in range(_SETS)]
        else:
            is_bytes = model.endswith("uint8")
            made = [images(self._scale, rows, seed, is_bytes=is_bytes) for seed in range(_SETS)]
        return [(self._pinned(torch.from_numpy(each)),) for each in made]

    def _sequences(self, bucket: int, rows: int, seed: int) -> Inputs:
        lengths = mix_of(self._scale.bert).of(bucket, rows, seed)
        ids = np.zeros((rows, bucket), dtype=np.int32)
        for row, each in enumerate(sequences(self._scale.bert, lengths, seed)):
            ids[row, : len(each)] = each
        counts = lengths.astype(np.int32).reshape(rows, 1)
        return self._pinned(torch.from_numpy(ids)), self._pinned(torch.from_numpy(counts))

    def _pinned(self, tensor: Tensor) -> Tensor:
        return self._device.pinned(tensor).copy_(tensor)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
