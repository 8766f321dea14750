"""Families of what isn't a model's: the process, the machine, the transport, and what others count.

Only the http2 transport knows what it holds; on grpcio those are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from prometheus_client.process_collector import ProcessCollector

from tensorferry import __version__
from tensorferry.monitoring.collect_engine import distribution_of
from tensorferry.monitoring.families import Families, Family
from tensorferry.monitoring.host import HostUse
from tensorferry.monitoring.loop_lag import LoopLag
from tensorferry.transport import Transport

__all__ = ["TRACE_OUTCOMES", "Outside", "ServerCollector", "process_families", "rollback_families"]

#: What becomes of a call that is to be traced.
TRACE_OUTCOMES: Final = ("sampled", "over_limit", "dropped")

#: Shown from the start: a counter that first appears with 1 has, to Prometheus, never grown.
_CODES: Final = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "RESOURCE_EXHAUSTED"),
    *("FAILED_PRECONDITION", "ABORTED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED"),
)

_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outside:
    """What other parts of the server count, asked when families are collected.

    ``errors`` is by gRPC code's name, of calls that didn't end with OK; ``traces`` by one of
    TRACE_OUTCOMES; ``log_lines_dropped`` are lines that a limit kept out of the log; ``rollbacks`` is by
    model and reason.
    """

    errors: Callable[[], Mapping[str, int]] = lambda: _NOTHING
    traces: Callable[[], Mapping[str, int]] = lambda: _NOTHING
    log_lines_dropped: Callable[[], int] = lambda: 0
    rollbacks: Callable[[], Mapping[tuple[str, str], int]] = lambda: MappingProxyType({})


#: Name, help, and the attribute of ``TransportStatistics``.
_HELD: Final = (
    ("tensorferry_connections", "gRPC connections", "connections"),
    ("tensorferry_streams", "Calls in progress", "streams"),
    ("tensorferry_unsent_bytes", "Reply bytes that wait for callers to read them", "unsent_bytes"),
    ("tensorferry_receiving_bytes", "Bytes of requests that are partly here", "receiving_bytes"),
)


class ServerCollector:
    """Makes families of one process. Used on the loop thread; ``lag`` is None where nobody measures it."""

    def __init__(
        self,
        transport: Transport,
        is_ready: Callable[[], bool],
        lag: LoopLag | None = None,
        outside: Outside | None = None,
    ) -> None:
        self._transport = transport
        self._is_ready = is_ready
        self._lag = lag
        self._outside = outside or Outside()
        self._host = HostUse()

    def collect(self) -> Families:
        """Return what is counted and held now."""
        held = self._transport.statistics()
        families = [
            Family(
                "tensorferry_info",
                "1, with the server's version and transport",
                "gauge",
                ("version", "transport"),
                "max",
                {(__version__, self._transport.name): 1},
            ),
            _one(
                "tensorferry_server_ready", "1 where all models are ready", "gauge", self._is_ready(), "min"
            ),
            _one("tensorferry_processes", "Server processes that answer", "gauge", 1),
            _one("tensorferry_process_restarts", "Server processes started again", "counter", 0),
            *(_one(name, help, "gauge", getattr(held, attribute)) for name, help, attribute in _HELD),
            *self._counted(),
            *self._lags(),
            *_of_host(self._host),
        ]
        taken_back = rollback_families(self._outside.rollbacks())
        return {each.name: each for each in families} | taken_back | process_families()

    def _counted(self) -> list[Family]:
        outside = self._outside
        errors = dict.fromkeys(_CODES, 0) | dict(outside.errors())
        traces = dict.fromkeys(TRACE_OUTCOMES, 0) | dict(outside.traces())
        return [
            Family(
                "tensorferry_request_errors",
                "Calls that ended with another gRPC code than OK",
                "counter",
                ("code",),
                values={(code,): float(count) for code, count in errors.items()},
            ),
            Family(
                "tensorferry_traces",
                "Calls traced (sampled), not traced to keep a limit, and lost after that (dropped)",
                "counter",
                ("outcome",),
                values={(outcome,): float(count) for outcome, count in traces.items()},
            ),
            _one(
                "tensorferry_log_lines_dropped",
                "Lines that a limit kept out of the log",
                "counter",
                outside.log_lines_dropped(),
            ),
        ]

    def _lags(self) -> list[Family]:
        if self._lag is None:
            return []
        family = Family(
            "tensorferry_loop_lag_seconds", "How late a timer of the event loop fires", "histogram"
        )
        family.distributions[()] = distribution_of(self._lag.histogram)
        return [family]


def rollback_families(counts: Mapping[tuple[str, str], int]) -> Families:
    """Return the family of what was taken back, by (model, reason)."""
    family = Family(
        "tensorferry_rollout_rollbacks",
        "Canaries, splits and stable versions taken back, by reason",
        "counter",
        ("model", "reason"),
        values={key: float(count) for key, count in counts.items()},
    )
    return {family.name: family}


def process_families() -> Families:
    """Return this process's CPU time, memory and files, as prometheus_client names them."""
    families: Families = {}
    for metric in _PROCESS.collect():
        merge = "min" if metric.name.endswith("start_time_seconds") else "sum"
        (sample,) = metric.samples
        values: dict[tuple[str, ...], float] = {(): sample.value}
        families[metric.name] = Family(
            metric.name, metric.documentation, metric.type, merge=merge, values=values
        )
    return families


_PROCESS: Final = ProcessCollector(registry=None)


def _one(name: str, help: str, kind: str, value: float, merge: str = "sum") -> Family:
    return Family(name, help, kind, merge=merge, values={(): value})


def _of_host(host: HostUse) -> list[Family]:
    """Return what Triton tells of the machine. Processes see the same one: the most that any has seen."""
    use = host.now()
    found = (
        ("nv_cpu_utilization", "Share of the CPU time there is that was used, 0 to 1", use.cpu_share),
        ("nv_cpu_memory_total_bytes", "Memory of the machine, or of the container", use.memory_total_bytes),
        ("nv_cpu_memory_used_bytes", "Memory in use of that", use.memory_used_bytes),
    )
    return [_one(name, help, "gauge", value, "max") for name, help, value in found if value is not None]
