"""The shipped rules and the dashboard, with a real Prometheus that scrapes a real server."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration import gpus
from tests.integration.prometheus import (
    MONITORING,
    RULES,
    Prometheus,
    dashboard_queries,
    names_in,
    rule_queries,
)
from tests.integration.support import PATIENCE_S, fetch, request_of, wait_until, x_request

from tensorferry.monitoring.exposition import render
from tensorferry.monitoring.pacing import Turns
from tensorferry.testing.clock import VirtualClock
from tensorferry.testing.models import BATCHING, write_mlp, write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus isn't installed (sudo apt-get install prometheus)",
)

OBJECTIVE = 'parameters { key: "latency_objective_ms" value { string_value: "5000" } }'
FEATURES = 30
#: One call in so many goes to a model that fails on it.
FAILING_EVERY = 5
PAUSE_S = 0.01

#: What Prometheus makes of a family's name.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
#: Prometheus's own.
OWN_NAMES = {"up", "ALERTS"}
#: Panels that have nothing to show here: no rollout, no padding, no response cache, no GPU, and no alert.
MAY_BE_EMPTY = {
    "Bytes to and from the GPU",
    "CUDA graphs, and rows that fill them up",
    "GPU busy",
    "GPU memory",
    "Power and temperature",
    "Runs and copies, of the GPU's time",
    "Time of a batch on the GPU",
    "What slows the GPU",
    "Labels",
    "Mean rows, and padding",
    "Response cache",
    "Rollouts: errors of the versions compared",
    "Shadows",
    "Versions loaded",
    "Versions loaded and refused",
    "Budget spent in 3 days",  # its record is made every five minutes
}
_NO_TOTAL = 'counter metrics should have "_total" suffix'
_IN_US = "metric names should not contain abbreviated units"
_COUNT = 'non-histogram and non-summary metrics should not have "_count" suffix'
#: What promtool has against the names that are Triton's, and stay so for the sake of who knows them.
TRITONS_HABITS = {
    *((f"nv_inference_request_{outcome}", _NO_TOTAL) for outcome in ("success", "failure")),
    *(
        (f"nv_inference_{part}_duration_us", habit)
        for part in ("request", "queue", "compute_input", "compute_infer", "compute_output")
        for habit in (_NO_TOTAL, _IN_US)
    ),
    *(
        (name, habit)
        for name in ("nv_inference_count", "nv_inference_exec_count")
        for habit in (_NO_TOTAL, _COUNT)
    ),
    ("nv_inference_pending_request_count", _COUNT),
}


@dataclass
class Load:
    """A little load, in a thread, until it is told to stop; counts the calls by what became of them."""

    address: str
    answered: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Make calls, one after the other, each fifth of them one that fails."""
        good = request_of("mlp", {"features": np.zeros((2, FEATURES), np.float32)})
        bad = x_request("raising", -1.0)
        with grpc.insecure_channel(self.address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self._stop.wait(PAUSE_S):
                try:
                    if self.answered // (FAILING_EVERY - 1) > self.failed:
                        stub.ModelInfer(bad, timeout=PATIENCE_S)
                    else:
                        stub.ModelInfer(good, timeout=PATIENCE_S)
                        self.answered += 1
                except grpc.RpcError:
                    self.failed += 1

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)


@dataclass(frozen=True)
class Watched:
    """A server that was under load, and the Prometheus that watched it."""

    processes: int
    server: ServerProcess
    prometheus: Prometheus
    load: Load


def knows_rates(prometheus: Prometheus) -> bool:
    return all(
        prometheus.value(expression)
        for expression in (
            'sum(rate(nv_inference_request_success{model="mlp"}[1m]))',
            'sum(rate(nv_inference_request_failure{model="raising", reason="BACKEND"}[1m]))',
            'tensorferry:objective_requests:rate1h{model="mlp"}',
            'tensorferry:objective_misses:ratio_rate6h{model="raising"}',
            'tensorferry:response_seconds:p99_rate5m{model="mlp"}',
            "sum(rate(tensorferry_loop_lag_seconds_count[1m]))",
        )
    )


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Return once Prometheus has seen the load; that has ended then."""
    directory = tmp_path_factory.mktemp("watched")
    write_mlp(directory / "models", options=BATCHING + OBJECTIVE)
    write_raising(directory / "models")
    flags = ["--processes", str(request.param)]
    with (
        ServerProcess(directory / "models", directory / "log", flags=flags) as server,
        Prometheus(directory / "prometheus", server.http_address) as prometheus,
    ):
        with Load(server.grpc_address) as load:
            wait_until(lambda: knows_rates(prometheus), "Prometheus knows rates")
        yield Watched(request.param, server, prometheus, load)


@needs_prometheus
def test_the_server_is_up_and_says_what_it_is(watched: Watched):
    ask = watched.prometheus.value
    assert ask('up{job="tensorferry"}') == 1
    assert ask("tensorferry_server_ready") == 1
    assert ask("tensorferry_processes") == watched.processes
    assert ask("tensorferry_process_restarts_total") == 0
    assert ask("count(tensorferry_info)") == 1


@needs_prometheus
def test_all_calls_are_counted_once(watched: Watched):
    def counted() -> tuple[float | None, float | None]:
        return (
            watched.prometheus.value('sum(nv_inference_request_success{model="mlp"})'),
            watched.prometheus.value('sum(nv_inference_request_failure{model="raising", reason="BACKEND"})'),
        )

    expected = (watched.load.answered, watched.load.failed)
    wait_until(lambda: counted() == expected, f"Prometheus has counted {expected}")
    answered = f'{{model="mlp"}} == {watched.load.answered}'
    assert watched.prometheus.query(f"tensorferry_response_seconds_count{answered}")
    assert watched.prometheus.query(f"tensorferry_queue_seconds_count{answered}")


@needs_prometheus
def test_a_quantile_is_a_time(watched: Watched):
    for name in ("response", "queue", "run"):
        buckets = f'sum by (le) (rate(tensorferry_{name}_seconds_bucket{{model="mlp"}}[1h]))'
        p50 = watched.prometheus.value(f"histogram_quantile(0.5, {buckets})")
        p99 = watched.prometheus.value(f"histogram_quantile(0.99, {buckets})")
        assert p50 is not None
        assert p99 is not None
        assert 0 < p50 <= p99 <= 10


@needs_prometheus
def test_the_parts_of_the_time_to_response_add_up_to_it(watched: Watched):
    parts = " + ".join(
        f"nv_inference_{part}_duration_us"
        for part in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    whole = watched.prometheus.query("nv_inference_request_duration_us")
    summed = {labels["model"]: value for labels, value in watched.prometheus.query(parts)}
    assert whole
    for labels, value in whole:
        assert summed[labels["model"]] == pytest.approx(value)


@needs_prometheus
def test_every_panel_can_be_drawn(watched: Watched):
    empty = []
    for title, expression in dashboard_queries():
        found = watched.prometheus.query(expression)  # raises if it doesn't parse
        if not any(not math.isnan(value) for _, value in found):
            empty.append((title, expression))
    assert [each for each in empty if each[0] not in MAY_BE_EMPTY] == []


@needs_prometheus
def test_every_rule_is_evaluated_without_an_error(watched: Watched):
    rules = watched.prometheus.rules()
    assert {rule["name"] for rule in rules} == {name for name, _ in rule_queries()}
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []


@needs_prometheus
def test_the_model_that_fails_burns_its_budget_and_the_other_does_not(watched: Watched):
    firing = 'count(ALERTS{alertname="TensorferryObjectiveBurnsFast", model="%s"})'
    wait_until(lambda: watched.prometheus.value(firing % "raising"), "the alert fires")
    assert watched.prometheus.value(firing % "mlp") is None


def test_every_metric_that_is_asked_for_is_exported(watched: Watched):
    exported = exported_names(watched.server)
    records = {name for name, _ in rule_queries()}
    for where, expression in (*dashboard_queries(), *rule_queries()):
        assert names_in(expression) <= exported | records | OWN_NAMES, where


def test_the_search_for_names_finds_them():
    expression = (
        'sum by (a, b) (rate(x_total{c="d_e"}[5m]) or y:z > on (f) group_left () 1e3 * w unless w offset 15m)'
    )
    assert names_in(expression) == {"x_total", "y:z", "w"}


def test_the_reference_names_what_is_exported_and_nothing_else(watched: Watched):
    text = fetch(watched.server.http_address, "/metrics")[1].decode()
    exported = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    rows = (
        MONITORING.read_text(encoding="utf-8").partition("## The metrics")[2].partition("## How to read")[0]
    )
    documented = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram)", rows, re.MULTILINE)
    assert exported == {name for name, _ in documented}
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE))
    assert types == dict(documented)


@needs_prometheus
def test_queries_made_for_triton_have_answers(watched: Watched):
    page = MONITORING.read_text(encoding="utf-8")
    queries = page.partition("```promql\n")[2].partition("```")[0].splitlines()
    assert queries
    for query in queries:
        found = watched.prometheus.query(query.replace("[1m]", "[1h]"))  # however long ago the load ended
        assert any(math.isfinite(value) for _, value in found), query


@needs_prometheus
def test_promtool_finds_nothing_in_our_own_metrics(watched: Watched):
    text = fetch(watched.server.http_address, "/metrics")[1]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=PATIENCE_S, check=False
    )
    complaints = (checked.stdout + checked.stderr).decode().splitlines()
    assert {tuple(line.split(" ", 1)) for line in complaints if line} == TRITONS_HABITS


@needs_prometheus
def test_promtool_finds_nothing_in_our_metrics_of_gpus(run):
    async def text() -> list[bytes]:
        return await render(gpus.families_of("m", "1", batches=3), Turns(VirtualClock()))

    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=b"".join(run(text())),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    complaints = (checked.stdout + checked.stderr).decode().splitlines()
    assert complaints == [f"nv_energy_consumption {_NO_TOTAL}"]


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("test", "rules", "alerts_test.yml", "alerts_days_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...]):
    done = subprocess.run(
        ["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def exported_names(server: ServerProcess) -> set[str]:
    """Names of all series that a server exports or would, had it counted anything."""
    text = fetch(server.http_address, "/metrics")[1].decode()
    names = set()
    for family in text_string_to_metric_families(text):
        names |= {sample.name for sample in family.samples}
        names |= {f"{family.name}{suffix}" for suffix in SUFFIXES.get(family.type, ("",))}
        if family.type == "counter" and family.name.startswith("nv_"):
            names.add(family.name)
    return names
