"""Writes down what a churn run came to: a table to read, a JSON file with everything, a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from loadtests.churn.figures import THRESHOLDS, figures_of, windows_of
from loadtests.churn.measure import Outcome
from loadtests.verdict import Check, judge, table

__all__ = ["report"]

_COLUMNS: Final = (
    ("to_cycle", "to cycle", "{:.0f}"),
    ("swap", "swap ms", "{:.1f}"),
    ("first_call", "1st call ms", "{:.2f}"),
    ("load", "load ms", "{:.1f}"),
    ("unload", "unload ms", "{:.2f}"),
    ("steady.p50", "steady p50", "{:.2f}"),
    ("steady.p99", "p99 ms", "{:.2f}"),
    ("swapped.p50", "swapped p50", "{:.2f}"),
    ("swapped.p99", "p99 ms", "{:.2f}"),
    ("rss_mib", "RSS MiB", "{:.1f}"),
    ("threads", "threads", "{:.0f}"),
    ("descriptors", "fds", "{:.0f}"),
)
_MOST_SHOWN: Final = 10


def report(outcome: Outcome, wanted: int, directory: Path) -> bool:
    """Print the verdict and write ``churn.txt``, ``churn.json`` and ``churn.png``; return if it passed."""
    # Importing it takes a second, and a run that fails to start needs none.
    from loadtests.churn.plot import draw

    figures = figures_of(outcome, wanted)
    windows = windows_of(outcome)
    checks = judge(THRESHOLDS, figures, outcome.transport)
    text = "\n\n".join(_paragraphs(outcome, figures, windows, checks))
    print(text)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "churn.txt").write_text(text + "\n", encoding="utf-8")
    passed = all(check.ok for check in checks)
    document = _document(outcome, figures, windows, checks) | {"passed": passed}
    (directory / "churn.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    if outcome.cycles:
        draw(outcome, directory / "churn.png")
    return passed


def _paragraphs(
    outcome: Outcome,
    figures: Mapping[str, float | None],
    windows: Sequence[Mapping[str, float | None]],
    checks: Sequence[Check],
) -> list[str]:
    rest, end = outcome.at_rest, outcome.at_end
    summary = [
        f"transport: {outcome.transport}; guests: {', '.join(outcome.guests)}",
        f"{figures['cycles.done']:.0f} cycles beside {figures['calls.sent']:,.0f} calls,"
        f" {figures['calls.failed']:.0f} of which failed; the generator was late by"
        f" {_shown(figures['calls.slip_p99_ms'])} ms at the 99th percentile",
        f"memory: {_shown(figures['rss.bytes_per_cycle'])} bytes more with each cycle",
        f"at rest before: {rest.processes} processes, {rest.threads} threads, {rest.descriptors} descriptors;"
        f" after: {end.processes}, {end.threads}, {end.descriptors}",
        "undisturbed, before and after: p50"
        f" {_shown(figures['quiet.p50_before_ms'])} and {_shown(figures['quiet.p50_after_ms'])} ms, p99"
        f" {_shown(figures['quiet.p99_before_ms'])} and {_shown(figures['quiet.p99_after_ms'])} ms",
        "p99 of calls to the untouched model in cycles that load a guest, in ms: "
        + ", ".join(f"{each} {_shown(figures[f'beside_{each}.steady.p99_ms'])}" for each in outcome.guests),
    ]
    paragraphs = ["\n".join(summary), _windows_table(windows), table(checks)]
    wrong = _wrong(outcome)
    if wrong:
        paragraphs.append("what went wrong:\n" + "\n".join(wrong))
    return paragraphs


def _windows_table(windows: Sequence[Mapping[str, float | None]]) -> str:
    rows = [[title for _, title, _ in _COLUMNS]]
    for window in windows:
        values = [(window.get(key), form) for key, _, form in _COLUMNS]
        rows.append(["-" if value is None else form.format(value) for value, form in values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _wrong(outcome: Outcome) -> list[str]:
    counts: Counter[str] = Counter()
    for calls in (outcome.before, outcome.during, outcome.after):
        counts.update(calls.failures)
    lines = [f"  {count} calls: {what}" for what, count in counts.most_common(_MOST_SHOWN)]
    faults = [f"  cycle {cycle.number}: {fault}" for cycle in outcome.cycles for fault in cycle.faults]
    return lines + faults[:_MOST_SHOWN]


def _document(
    outcome: Outcome,
    figures: Mapping[str, float | None],
    windows: Sequence[Mapping[str, float | None]],
    checks: Sequence[Check],
) -> dict[str, Any]:
    return {
        "transport": outcome.transport,
        "guests": list(outcome.guests),
        "figures": dict(figures),
        "windows": [dict(each) for each in windows],
        "checks": [asdict(each) for each in checks],
        "at_rest": asdict(outcome.at_rest),
        "at_end": asdict(outcome.at_end),
        "wrong": _wrong(outcome),
        "cycles": [asdict(each) for each in outcome.cycles],
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
