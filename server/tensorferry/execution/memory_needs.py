"""What loading a model takes of the host's memory and of each GPU's, estimated; and how to say so."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Final

from tensorferry.model import ModelSpec

__all__ = ["HOST", "input_bytes", "mib", "needed_bytes", "remedy", "what_for"]

#: Where a CPU copy's memory is; other places are named as devices are (``cuda:0``).
HOST: Final = "cpu"

#: Peak memory of loading and warming up one copy on the CPU, per byte of the model's files. Measured
#: on models of 180 to 430 MB (torch 2.13, onnxruntime 1.31; docs/loading.md): TorchScript 1.04 for
#: linear layers, 1.05 for an embedding, 1.32 for convolutions, whose weights are repacked for the
#: run; ONNX 1.19 and 2.54 for the same reasons; an exported program 1.02. One copy on a GPU takes its
#: files' size there, and passes through the host's memory once.
_FACTORS: Final = {"onnxruntime_onnx": 2.6}
_FACTOR: Final = 1.35

#: Platforms whose model is the one file; of the others, everything in the version's directory counts.
_ONE_FILE: Final = ("pytorch_libtorch", "torch_aoti")

#: Platforms whose models on a GPU have staging buffers; the others copy in their own way.
_STAGED: Final = ("pytorch_libtorch", "torch_aoti")

#: Staging buffers of less, in bytes, are a row of figures for nothing.
_WORTH_SAYING: Final = 2**20


def needed_bytes(spec: ModelSpec) -> dict[str, int]:
    """Estimate what loading and warming up ``spec`` takes at its peak, in bytes, by place.

    On a GPU that is a copy of the model for each stream, or one for all that are to share its weights,
    and each stream's staging buffers, which are on the host as well, pinned. Whether weights can be
    shared is known only once they are loaded; where they can't, the copies beyond the first aren't
    counted here. They pass through the host one after another all the same, and one that the device has
    no room for then is refused (``refusing_out_of_memory``). Counting them would refuse every model that
    fits only with its weights shared, which is what sharing is for.

    Each place is ``HOST`` or a device; the copies there are loaded at the same time. Empty for an
    ensemble, which has no file, and where the file can't be read: loading says that better.
    """
    size = _file_bytes(spec)
    if not size:
        return {}
    per_copy = int(size * _FACTORS.get(spec.platform, _FACTOR))
    staging = _staging_bytes(spec)
    needed: Counter[str] = Counter()
    for number, device in enumerate(spec.devices):
        if device == HOST:
            needed[HOST] += per_copy
            continue
        if not (spec.tuning.shares_weights and device in spec.devices[:number]):
            needed[device] += per_copy
            needed[HOST] += size
        needed[device] += staging
        needed[HOST] += staging
    return dict(needed)


def input_bytes(spec: ModelSpec) -> list[int | None]:
    """Return the bytes of each of the model's inputs in the largest batch; None for one of any size."""
    longest = spec.padding.buckets[-1] if spec.padding is not None and spec.padding.buckets else -1
    padded = spec.padding.inputs if spec.padding is not None else ()
    sizes: list[int | None] = []
    for each in spec.model_inputs:
        if each.dims is None or each.datatype is None:
            sizes.append(None)
            continue
        dims = [longest if dim == -1 and each.name in padded else dim for dim in each.dims]
        if -1 in dims:
            sizes.append(None)
        else:
            sizes.append(max(1, spec.max_batch_size) * each.datatype.itemsize * math.prod(dims))
    return sizes


def _staging_bytes(spec: ModelSpec) -> int:
    """Return the bytes of one stream's input buffers; inputs of any size count for nothing."""
    if spec.platform not in _STAGED:
        return 0
    return spec.tuning.staging_slots * sum([size or 0 for size in input_bytes(spec)])


def what_for(spec: ModelSpec, place: str) -> str:
    """Say what ``spec`` needs memory in ``place`` for."""
    streams = spec.devices.count(place)
    if not streams:
        staging = _staging_bytes(spec) * sum(device != HOST for device in spec.devices)
        buffers = f", and {mib(staging)} of pinned staging buffers" if staging >= _WORTH_SAYING else ""
        return f"its way to the GPU of {spec.path}{buffers}"
    copies = 1 if place != HOST and spec.tuning.shares_weights else streams
    what = f"{copies} {'copy' if copies == 1 else 'copies'} of {spec.path}"
    staging = _staging_bytes(spec) * streams if place != HOST else 0
    return f"{what} and {mib(staging)} of staging buffers" if staging >= _WORTH_SAYING else what


def remedy(spec: ModelSpec, place: str) -> str:
    """Say what can be done where ``place`` has too little memory for ``spec``."""
    if all(device == HOST for device in spec.devices):
        return "Unload another model, lower the count of its instance_group, or give the server more memory"
    share = ""
    if spec.devices.count(place) > 1 and not spec.tuning.shares_weights:
        share = ", let its streams share their weights (ENABLE_WEIGHT_SHARING)"
    return (
        "Unload another model, lower the count of its instance_group, its max_batch_size or its"
        f" staging_slots{share}, or give the server a GPU or a machine with more memory"
    )


def _file_bytes(spec: ModelSpec) -> int:
    """Return the size of a version's files as they will be read: holes in a file count."""
    if spec.platform == "ensemble":
        return 0
    try:
        if spec.platform in _ONE_FILE:
            return os.stat(spec.path).st_size
        golden = spec.golden.name if spec.golden is not None else ""
        return sum(
            os.stat(os.path.join(root, name)).st_size
            for root, _, names in os.walk(spec.path.parent)
            for name in names
            if name not in (golden, "manifest.json") and not name.startswith(".")
        )
    except OSError:
        return 0


def mib(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 2**20:.0f} MiB"
