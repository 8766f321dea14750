"""The demonstration's last page, as text and as JSON. Pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from demo.evaluate import TOLERANCE, Agreement
from demo.outcome import Outcome

__all__ = ["Report", "as_json", "batch_chart", "render"]

_BAR_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class Report:
    """All that is said at the end.

    ``auc`` is over one served score of each test transaction, ``offline_auc`` over the offline
    model's scores of the same ones; None where the calls failed for so many that there is no telling.
    """

    source: str
    transactions: int
    frauds: int
    trained_on: int
    served: int
    in_flight: int
    stream: Outcome
    burst: Outcome
    auc: float | None
    offline_auc: float | None
    agreement: Agreement

    @property
    def problems(self) -> list[str]:
        """Why the demonstration has failed; empty if it hasn't."""
        problems = []
        for name, outcome in (("one by one", self.stream), ("burst", self.burst)):
            problems += [f"{name}: {count} x {reason}" for reason, count in outcome.failures.items()]
        if not self.agreement.compared:
            problems.append("no served score to compare with the offline model's")
        elif not self.agreement.holds:
            problems.append(f"served scores differ from offline ones by more than {TOLERANCE:g}")
        if self.auc is None:
            problems.append("too few answers for an AUC")
        return problems


def render(report: Report) -> str:
    """Lay the report out as plain text, in lines of at most 100 columns but for error messages."""
    sections = [
        f"{report.transactions:,} transactions ({report.source}), {report.frauds:,} frauds;"
        f" trained on {report.trained_on:,}, judged on {report.served:,}",
        _latency_table(report),
        "Batches during the burst\n" + batch_chart(report.burst.batches),
        _checks(report),
    ]
    return "\n\n".join(sections) + "\n"


def _latency_table(report: Report) -> str:
    head = f"{'':<26}{'answers':>10}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}"
    named = (("one by one", report.stream), (f"burst, {report.in_flight} in flight", report.burst))
    note = "Rates and latencies are those of a Python caller, which shares the machine with the server."
    return "\n".join([head, *(_latency_row(name, outcome) for name, outcome in named), note])


def _latency_row(name: str, outcome: Outcome) -> str:
    latency = outcome.latency
    return (
        f"{name:<26}{latency.count:>10,}{outcome.requests_per_s:>12,.0f}"
        f"{latency.p50_ms:>10.2f}{latency.p99_ms:>10.2f}{latency.p999_ms:>10.2f}"
    )


def batch_chart(batches: Mapping[int, int]) -> str:
    """Draw how many batches there were of 1, 2, 3-4, 5-8, ... rows; ``batches`` counts them by size."""
    if not batches:
        return "  (none)"
    buckets: dict[int, int] = {}
    for size, count in batches.items():
        bits = (size - 1).bit_length()
        buckets[bits] = buckets.get(bits, 0) + count
    most = max(buckets.values())
    lines = [f"{'rows':>9}{'batches':>10}"]
    for bits in range(min(buckets), max(buckets) + 1):
        count = buckets.get(bits, 0)
        low, high = 2**bits // 2 + 1, 2**bits
        label = str(high) if low >= high else f"{low}-{high}"
        lines.append(f"{label:>9}{count:>10,}  {_bar(count, most)}".rstrip())
    rows = sum(size * count for size, count in batches.items())
    lines.append(f"{'mean':>9}{rows / sum(batches.values()):>10.1f}  rows in a batch")
    return "\n".join(lines)


def _bar(count: int, most: int) -> str:
    """At least one mark for what has happened at all."""
    return "#" * max(round(_BAR_WIDTH * count / most), 1 if count else 0)


def _checks(report: Report) -> str:
    lines = [_line("AUC of served scores", "none" if report.auc is None else f"{report.auc:.4f}")]
    if report.offline_auc is not None:
        lines[0] += f"  (offline {report.offline_auc:.4f})"
    lines.append(_line("equal to offline", _agreement_text(report.agreement)))
    decisions = [f"{count:,} {decision}" for decision, count in sorted(report.stream.decisions.items())]
    lines.append(_line("decisions, one by one", ", ".join(decisions) or "none"))
    failed = report.stream.failed + report.burst.failed
    lines.append(_line("failed calls", f"{failed:,}" if failed else "none"))
    lines.append(_line("verdict", "FAILED" if report.problems else "passed"))
    return "\n".join([*lines, *(f"  - {problem}" for problem in report.problems)])


def _line(name: str, value: str) -> str:
    return f"{name:<26}{value}"


def _agreement_text(agreement: Agreement) -> str:
    if not agreement.compared:
        return "no: nothing to compare"
    if agreement.identical == agreement.compared:
        return f"yes: all {agreement.compared:,} bit for bit"
    verdict = "yes" if agreement.holds else "NO"
    return (
        f"{verdict}: {agreement.identical:,} of {agreement.compared:,} bit for bit,"
        f" largest difference {agreement.max_difference:.1e} (tolerance {TOLERANCE:g})"
    )


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON's types; times in milliseconds, rates per second."""
    return {
        "source": report.source,
        "transactions": report.transactions,
        "frauds": report.frauds,
        "trained_on": report.trained_on,
        "served": report.served,
        "in_flight": report.in_flight,
        "one_by_one": _outcome_json(report.stream),
        "burst": _outcome_json(report.burst),
        "auc": report.auc,
        "offline_auc": report.offline_auc,
        "agreement": {**asdict(report.agreement), "tolerance": TOLERANCE},
        "problems": report.problems,
        "passed": not report.problems,
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "requests_per_s": round(outcome.requests_per_s, 1),
        "elapsed_s": round(outcome.elapsed_s, 3),
        "latency": asdict(outcome.latency),
        "failures": dict(outcome.failures),
        "decisions": dict(outcome.decisions),
        "batches": {str(size): count for size, count in sorted(outcome.batches.items())},
    }
