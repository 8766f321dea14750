"""What one run of ``bench`` measured: throughput, latencies, errors, and what the generator cost.

Rules for this file: answers and refusals are never mixed; an open loop's latency counts from the
intended time, a closed loop's from when the call was sent.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from tensorferry.benchmark.endings import OK
from tensorferry.benchmark.report import Slip, histogram_of, messages_by_count
from tensorferry.benchmark.traffic import Result

__all__ = ["PERCENTILES", "Limits", "Measurement", "measured"]

#: What tables and JSON show, with the maximum.
PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9)

#: From this share of a core on, a closed loop measures the generator rather than the server.
_BUSY_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run is judged by: ``percentile`` within ``objective_ms``, if that is given.

    ``max_slip_ms``: a run whose calls left later than this, at the 99th percentile, isn't valid.
    """

    objective_ms: float | None = None
    percentile: float = 99.0
    max_slip_ms: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """One run. ``level`` is its rate in calls/s (open loop) or its concurrency (closed loop).

    ``refused`` calls ended with another status than OK, ``failed`` ones without an answer.
    ``generator_busy`` is the share of one core that the generator took; None in an open loop, which
    watches the clock and takes a whole core whatever it sends.
    """

    is_open: bool
    level: float
    rows: int
    lasted_s: float
    calls: int
    ok: int
    refused: int
    failed: int
    calls_per_s: float
    errors: dict[str, int]
    slip: Slip
    generator_busy: float | None
    not_valid: tuple[str, ...]
    limits: Limits
    histogram: HdrHistogram

    def at(self, percentile: float) -> float | None:
        """Return a percentile of the answered calls' latencies, in ms; None if there are none."""
        return self.histogram.get_value_at_percentile(percentile) / 1000 if self.ok else None

    @property
    def mean_ms(self) -> float | None:
        """The mean of the answered calls' latencies."""
        return self.histogram.get_mean_value() / 1000 if self.ok else None

    @property
    def has_errors(self) -> bool:
        """Whether a call was refused or failed."""
        return bool(self.refused or self.failed)

    @property
    def is_within(self) -> bool:
        """Whether calls were answered, all well, and within the objective if there is one."""
        found = self.at(self.limits.percentile)
        if found is None or self.has_errors:
            return False
        return self.limits.objective_ms is None or found <= self.limits.objective_ms

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, where what isn't known or is infinite is null."""
        slip = {"p50": self.slip.p50_ms, "p99": self.slip.p99_ms, "max": self.slip.max_ms}
        latency = {f"p{each:g}": self.at(each) for each in PERCENTILES}
        return {
            "loop": "open" if self.is_open else "closed",
            "rate_per_s": self.level if self.is_open else None,
            "concurrency": None if self.is_open else int(self.level),
            "seconds": self.lasted_s,
            "calls": self.calls,
            "ok": self.ok,
            "refused": self.refused,
            "failed": self.failed,
            "errors": self.errors,
            "calls_per_s": self.calls_per_s,
            "rows_per_s": self.calls_per_s * self.rows,
            "latency_ms": {"mean": self.mean_ms, **latency, "max": self.at(100)},
            "slip_ms": {name: value if math.isfinite(value) else None for name, value in slip.items()},
            "generator_busy": self.generator_busy,
            "valid": not self.not_valid,
            "not_valid_because": list(self.not_valid),
            "within_objective": None if self.limits.objective_ms is None else self.is_within,
            "histogram_us": self.histogram.encode().decode("ascii"),
        }

    def hgrm(self) -> bytes:
        """Return the percentile distribution, in ms, as HdrHistogram's plotter reads it."""
        text = io.BytesIO()
        self.histogram.output_percentile_distribution(text, 1000.0)
        return text.getvalue()


def measured(result: Result, *, level: float, is_open: bool, rows: int, limits: Limits) -> Measurement:
    """Return what ``result`` says. ``level``: calls/s in an open loop, else the concurrency."""
    status = result.status
    ok = status == OK
    since_s = result.intended_s if is_open else result.sent_s
    slip_s = result.sent_s - result.intended_s
    slip = Slip.of(np.where(np.isnan(slip_s), np.inf, slip_s))
    lasted_s = max(result.lasted_s, float(np.nanmax(result.done_s[ok])) if ok.any() else 0.0, 1e-9)
    busy = None if is_open else min(1.0, result.cpu_s / lasted_s)
    return Measurement(
        is_open=is_open,
        level=level,
        rows=rows,
        lasted_s=lasted_s,
        calls=len(status),
        ok=int(ok.sum()),
        refused=int((status > OK).sum()),
        failed=int((status < OK).sum()),
        calls_per_s=int(ok.sum()) / lasted_s,
        errors=messages_by_count(result, np.ones(len(status), dtype=bool)),
        slip=slip,
        generator_busy=busy,
        not_valid=tuple(_faults(slip, busy, limits, result)),
        limits=limits,
        histogram=histogram_of((result.done_s - since_s)[ok]),
    )


def _faults(slip: Slip, busy: float | None, limits: Limits, result: Result) -> list[str]:
    if not len(result.sent_s):
        return ["no call was sent: give more --seconds, or a higher rate"]
    faults = []
    if slip.p99_ms > limits.max_slip_ms:
        late = f"calls left late, {slip.p99_ms:,.4g} ms at p99 (allowed: {limits.max_slip_ms:g})"
        if np.isnan(result.sent_s).any():
            late = "not every call was sent"
        if result.held:
            faults.append(
                f"{late}: up to {result.held:,} at once had no room; the server falls behind, or give "
                "more --connections or --max-in-flight"
            )
        else:
            faults.append(f"{late}: give the generator a core of its own, or a lower rate")
    if busy is not None and busy > _BUSY_SHARE:
        faults.append(
            f"the generator took {busy:.0%} of its core: it may be the limit; run several, or use more --rows"
        )
    return faults
