"""GPUs in ``tensorferry top``: a line for each, and one of how the model in full fills its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from tensorferry.commands.top_text import amount, clean, size
from tensorferry.commands.top_words import POWER_CAP

__all__ = ["beside", "device_line", "gpu_lines"]

#: From this share of its memory on a GPU is all but full.
_FULL: Final = 0.97

#: Of the screen's lines at most one in so many is a GPU's.
_LINES_FOR_ONE: Final = 10


def gpu_lines(frame: Mapping[str, Any], width: int, height: int | None) -> list[Text]:
    """Return a line for each GPU that models run on; empty where there is none."""
    gpus: Sequence[Mapping[str, Any]] = frame.get("gpus") or ()
    most = len(gpus) if height is None else max(1, height // _LINES_FOR_ONE)
    lines = [beside(_parts(gpu), width) for gpu in gpus[:most]]
    if len(gpus) > most:
        lines[-1] = Text(f"and {len(gpus) - most + 1} GPUs more", style="dim") if most > 1 else lines[-1]
    return lines


def _parts(gpu: Mapping[str, Any]) -> list[Text]:
    used, total = gpu.get("memory_used_bytes"), gpu.get("memory_total_bytes")
    is_full = used is not None and total and used / total > _FULL
    watts, limit_w, celsius = gpu.get("power_w"), gpu.get("power_limit_w"), gpu.get("temperature_c")
    of_limit = f" of {amount(limit_w)}" if limit_w else ""
    return [
        Text(clean(gpu.get("device") or gpu.get("uuid") or "GPU"), style="bold"),
        Text(f"busy {_share(gpu.get('utilization'))}"),
        Text(f"memory {size(used)} of {size(total)}", style="bold red" if is_full else ""),
        Text("" if watts is None else f"{amount(watts)}{of_limit} W"),
        Text("" if celsius is None else f"{amount(celsius)} °C"),
        _slowed(gpu.get("throttled") or ()),
        Text(clean(gpu.get("name") or ""), style="dim"),
    ]


def _slowed(reasons: Sequence[str]) -> Text:
    faults = ", ".join(clean(reason) for reason in reasons if reason != POWER_CAP)
    return Text(f"slowed by {faults}", style="yellow") if faults else Text("at its limit" if reasons else "")


def device_line(model: Mapping[str, Any], width: int) -> list[Text]:
    """Return how a version fills its devices, as one line; none of a version on the CPU."""
    device: Mapping[str, Any] | None = model.get("device")
    if not device:
        return []
    padded = device.get("padded_rows")
    limit = device.get("row_limit")
    parts = [
        Text(f"on {clean(', '.join(device.get('names') or ()))}:"),
        Text(f"runs {_share(device.get('run'))}"),
        Text(f"copies in {_share(device.get('copy_in'))}, out {_share(device.get('copy_out'))}"),
        Text(f"CUDA graphs {_share(device.get('graphs'))}"),
        Text(f"at most {amount(limit)} rows fit" if limit else "", style="yellow"),
        Text(f"padding {_share(padded)} of rows" if padded else ""),
        Text(f"holds {size(device.get('memory_bytes'))}"),
    ]
    return [beside(parts, width)]


def beside(parts: Sequence[Text], width: int) -> Text:
    """Join what fits of the parts, the first ones first."""
    line = Text()
    for part in parts:
        gap = 2 if line else 0
        if part and line.cell_len + gap + part.cell_len <= width:
            line.append(" " * gap)
            line.append_text(part)
    return line


def _share(value: float | None) -> str:
    """Return a share as per cent."""
    return "-" if value is None else f"{value:.0%}"
