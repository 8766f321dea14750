"""The sweeps of docs/batching.md: one offered load after another, written as JSON and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from loadtests.batching.heavy import heavy_server, peak_of
from loadtests.batching.models import OBJECTIVE_MS, write_light
from loadtests.batching.servers import ONE_CORE, Bench, Server, offer, ours, report_of, started, triton
from loadtests.batching.verdict import Figure
from loadtests.bench.targets import Target
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.traffic import Stream

__all__ = ["plots"]

#: Calls/s that the load can send on time from a core of its own.
_MOST_OFFERED: Final = 20_000.0
#: Shares of a server's capacity, or of what can be offered if that is less.
_UP_TO_CAPACITY: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
_BEYOND_CAPACITY: Final = (0.2, 0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5)
_LONGEST_S: Final = 2.0

Sweep = dict[str, Any]


def plots(bench: Bench) -> list[Figure]:
    """Measure both sweeps, write ``load.json`` and ``objective.json``, and draw them; judges nothing."""
    # Drawing takes a second to import, and only this case needs it.
    from loadtests.batching.pictures import draw

    bench.out.mkdir(parents=True, exist_ok=True)
    for name, sweep in (("load", _load(bench)), ("objective", _objective(bench))):
        (bench.out / f"{name}.json").write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")
    for path in draw(bench.out):
        print(f"    {path}", flush=True)
    return []


def _load(bench: Bench) -> Sweep:
    """Both servers with their defaults on the fraud MLP, up to each one's capacity or the load's."""
    repository = bench.scratch / "load"
    write_light(repository)
    other = triton(repository, bench)
    servers = {"Tensorferry": ours(repository)} | ({"Triton": other} if other else {})
    found = {name: _up_to_capacity(target, bench) for name, target in servers.items()}
    return {"layout": ONE_CORE.says, "servers": found}


def _up_to_capacity(target: Target, bench: Bench) -> Sweep:
    with started(target, ONE_CORE) as server:
        capacity = server.capacity(server.messages("fraud")[0], min(2.0, bench.seconds))
        print(f"    {target.name}: {capacity:,.0f}/s", flush=True)
        rates = [share * min(capacity, _MOST_OFFERED) for share in _UP_TO_CAPACITY]
        return {"capacity_per_s": capacity, "runs": _runs(server, "fraud", 1, rates, bench)}


def _objective(bench: Bench) -> Sweep:
    """The deep model with and without an objective, to two and a half times the capacity."""
    with heavy_server(bench) as server:
        peak = peak_of(server, bench.rows)
        rates = [share * peak for share in _BEYOND_CAPACITY]
        runs = {name: _runs(server, name, bench.rows, rates, bench) for name in ("objective", "plain")}
    return {
        "layout": bench.heavy.says,
        "rows": bench.rows,
        "objective_ms": OBJECTIVE_MS,
        "capacity_per_s": peak,
        "models": runs,
    }


def _runs(server: Server, model: str, rows: int, rates: Sequence[float], bench: Bench) -> list[Sweep]:
    seconds = min(_LONGEST_S, bench.seconds)
    messages = server.messages(model, rows)
    found = []
    for number, rate in enumerate(rates):
        stream = Stream(model, arrivals.poisson(rate, seconds, seed=number), messages)
        report = report_of(offer(server, [stream]), seconds, OBJECTIVE_MS).to_dict()
        # Windows and streams of thirty runs would be most of the file, and no picture shows them.
        found.append({key: report[key] for key in ("valid", "invalid_because", "bounds", "seconds", "total")})
    return found
