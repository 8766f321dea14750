"""The benchmark's results as a table, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median

from loadtests.bench.load import Sample

#: case -> server -> one sample for each round, in the rounds' order
Results = dict[str, dict[str, list[Sample]]]

REFERENCE = "minimal"
#: What rates are compared with, where it was measured.
REFERENCES = (REFERENCE, "nghttpd", "triton", "mosec")


def write(results: Results, cases: dict[str, tuple[str, str]], out: Path) -> None:
    """Print the tables; write ``bench.json`` and ``bench.png`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for case, servers in results.items():
        title, shows = cases[case]
        print(f"\n{title}")
        for line in _table(servers, shows):
            print("  " + line)
    versions = {name: metadata.version(name) for name in ("grpcio", "torch", "uvloop", "protobuf")}
    document = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "results": {
            case: {server: [asdict(sample) for sample in samples] for server, samples in servers.items()}
            for case, servers in results.items()
        },
    }
    (out / "bench.json").write_text(json.dumps(document, indent=1))
    _plot(results, cases, out / "bench.png")
    print(f"\nwritten: {out / 'bench.json'}, {out / 'bench.png'}; versions {versions}")


def ratios(servers: dict[str, list[Sample]], server: str, reference: str, attribute: str) -> list[float]:
    """Return server / reference for each round in which both were measured."""
    pairs = zip(servers.get(server, ()), servers.get(reference, ()), strict=False)
    return [getattr(mine, attribute) / getattr(other, attribute) for mine, other in pairs]


def _table(servers: dict[str, list[Sample]], shows: str) -> list[str]:
    head = f"{'server':10} {'requests/s':>11} {'CPU us':>8}"
    if shows == "latency":
        head += f" {'p50 us':>8} {'p99 us':>8} {'p50 / minimal':>20}"
    references = [name for name in REFERENCES if name in servers]
    lines = [head + "".join(f" {'rate / ' + name:>20}" for name in references)]
    for name, samples in servers.items():
        line = f"{name:10} {_median(samples, 'requests_per_s'):11,.0f} {_median(samples, 'cpu_us'):8.1f}"
        if shows == "latency":
            line += f" {_median(samples, 'p50_us'):8.0f} {_median(samples, 'p99_us'):8.0f}"
            line += f" {_spread(ratios(servers, name, REFERENCE, 'p50_us')):>20}"
        for reference in references:
            line += f" {_spread(ratios(servers, name, reference, 'requests_per_s')):>20}"
        lines.append(line)
    return lines


def _median(samples: list[Sample], attribute: str) -> float:
    return median(getattr(sample, attribute) for sample in samples)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _plot(results: Results, cases: dict[str, tuple[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.6), squeeze=False)
    for axis, (case, servers) in zip(axes[0], results.items(), strict=True):
        title, shows = cases[case]
        attribute, unit = ("p50_us", "p50, us") if shows == "latency" else ("requests_per_s", "requests/s")
        names = [name for name in servers if shows == "rate" or name != "nghttpd"]
        values = [_median(servers[name], attribute) for name in names]
        bars = axis.barh(names, values, color=["#d1495b" if name == "http2" else "#8d99ae" for name in names])
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
