"""The picture that ``tensorferry top`` draws of a server, for a terminal of any size.

From the top: the server, what is wrong in words, the models, and one model in full. What doesn't fit
is left out in the order of its weight, and never wrapped: columns of the table first, then models, then
the lines below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from tensorferry.commands.top_detail import detail
from tensorferry.commands.top_feed import Watch
from tensorferry.commands.top_gpus import beside, gpu_lines
from tensorferry.commands.top_table import table
from tensorferry.commands.top_text import amount, clean, rate, size, spoken
from tensorferry.commands.top_words import BAD, problems

__all__ = ["picture"]

_STYLES: Final = {BAD: "bold red", "warn": "yellow"}

#: The table has its say, but leaves this many lines to the model in full where there are as many.
_DETAIL_LINES: Final = 8

_MAX_PROBLEMS: Final = 4

#: A frame comes each second; from here on it is said that none does.
_STALE_S: Final = 3.5


def picture(watch: Watch, wanted: str, width: int, height: int | None, has_blocks: bool) -> Group:
    """Draw what is known, ``width`` columns wide and at most ``height`` lines high (None: any).

    ``wanted`` names the model to show in full, as NAME or NAME/VERSION; empty: the busiest.
    """
    if not watch.frames:
        return Group(*_fit(_waiting(watch), width, height))
    frame = watch.frames[-1]
    lines = _server(frame, watch, width)
    lines += gpu_lines(frame, width, height)
    lines += _problems(watch, frame, width, height)
    models = sorted(
        frame["models"],
        key=lambda each: (-(each.get("requests_per_s") or 0.0), each["model"], each["version"]),
    )
    shown = _wanted(models, wanted)
    room = None if height is None else height - len(lines) - 1
    lines.append(Text())
    rows = None if room is None else max(3, room - _DETAIL_LINES)
    lines += table(models, shown, width, rows)
    left = None if height is None else height - len(lines) - 1
    if shown is not None and (left is None or left >= 2):
        lines.append(Text())
        lines += detail(watch.frames, shown, width, left, has_blocks)
    elif wanted and shown is None:
        lines.append(Text(f"no model {clean(wanted)} is served", style="yellow"))
    return Group(*_fit(lines, width, height))


def _wanted(models: Sequence[Mapping[str, Any]], wanted: str) -> Mapping[str, Any] | None:
    for model in models:
        if wanted in ("", model["model"], f"{model['model']}/{model['version']}"):
            return model
    return None


def _waiting(watch: Watch) -> list[Text]:
    first = Text(f"tensorferry top: waiting for {clean(watch.address)}", style="bold")
    lines = [first]
    if watch.trouble:
        lines += [Text(), Text(clean(watch.trouble), style="red", overflow="fold", no_wrap=False)]
        lines += [Text(), Text("Tries again each second; Ctrl-C ends it.", style="dim")]
    return lines


def _server(frame: Mapping[str, Any], watch: Watch, width: int) -> list[Text]:
    server, total = frame["server"], frame["total"]
    is_ready = server.get("ready")
    state = Text("ready" if is_ready else "NOT READY", style="green" if is_ready else "bold red")
    processes = server.get("processes") or 1
    head = [
        Text(f"tensorferry {clean(server.get('version') or '')}", style="bold"),
        Text(clean(watch.address)),
        state,
        Text(f"{rate(total.get('requests_per_s'))} requests/s", style="bold"),
        Text(f"{amount(processes)} process{'es' if processes > 1 else ''}"),
        Text(f"cpu {amount(server.get('cpu_cores'))} cores"),
        Text(clean(server.get("transport") or "")),
    ]
    below = [
        Text(f"{amount(server.get('connections'))} connections"),
        Text(f"{amount(server.get('calls'))} calls"),
        Text(f"memory {size(server.get('rss_bytes'))}"),
        Text(f"loop lag p99 {spoken(server.get('loop_lag_p99_ms'))}"),
        Text(f"{rate(total.get('rows_per_s'))} rows/s"),
        Text(f"late {rate(total.get('late_per_s'))}/s"),
        Text(f"in flight {size(server.get('in_flight_bytes'))}"),
        Text(f"unsent {size(server.get('unsent_bytes'))}"),
    ]
    return [beside(head, width), beside(below, width)]


def _problems(watch: Watch, frame: Mapping[str, Any], width: int, height: int | None) -> list[Text]:
    lines = []
    if watch.trouble or watch.stale_s > _STALE_S:
        stale = f"! stale: no word for {watch.stale_s:.0f} s. {clean(watch.trouble)}"
        lines.append(Text(stale.rstrip(), style="bold reverse red"))
    found = problems(frame)
    most = len(found) if height is None else max(1, min(_MAX_PROBLEMS, height // 8))
    if len(found) > most:
        hidden = len(found) - most + 1
        found = [*found[: most - 1], ("warn", f"and {hidden} more")] if most > 1 else found[:1]
    lines += [Text(f"! {words}", style=_STYLES[weight]) for weight, words in found]
    return lines


def _fit(lines: Sequence[Text], width: int, height: int | None) -> list[Text]:
    fitted = list(lines if height is None else lines[:height])
    for line in fitted:
        if line.no_wrap is not False:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
    return fitted
