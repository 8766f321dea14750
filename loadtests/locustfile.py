"""What locust runs. ``run.py`` starts it with the scenario's name, the address and where to write.

Rules for this file: user, shape and listeners only; what they do is elsewhere.
"""

from __future__ import annotations

import csv
from pathlib import Path

import gevent
from locust import LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

from loadtests.grpc_user import BadReply, GrpcUser
from loadtests.payloads import METHOD, infer_request, output_bytes, score_bytes
from loadtests.reading import load_scenario
from loadtests.scenario import LocustScenario
from loadtests.shapes import users_at


@events.init_command_line_parser.add_listener
def _add_arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--scenario", required=True, help="the name of a file in loadtests/scenarios")
    parser.add_argument("--duration-s", type=float, required=True, help="how long to measure")
    parser.add_argument("--measured-csv", required=True, help="where the measured figures go")


class FraudUser(GrpcUser):
    """Scores the same rows again and again, each call as soon as the last one is answered."""

    wait_time = constant(0)
    scenario: LocustScenario
    request: bytes

    @task
    def infer(self) -> None:
        self.call(METHOD, self.request, self._check)

    def _check(self, reply: bytes) -> None:
        came, expected = output_bytes(reply), score_bytes(self.scenario.rows_per_request)
        if came != expected:
            raise BadReply(f"the reply holds {came} bytes of raw output, expected {expected}")


class ScenarioShape(LoadTestShape):
    """The scenario's users over time."""

    def tick(self) -> tuple[int, float] | None:
        scenario, options = FraudUser.scenario, self.runner.environment.parsed_options
        users = users_at(self.get_run_time(), scenario.users, scenario.warmup_s, options.duration_s)
        return None if users is None else (users, scenario.spawn_rate)


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    scenario = load_scenario(environment.parsed_options.scenario)
    assert isinstance(scenario, LocustScenario)
    FraudUser.scenario = scenario
    FraudUser.request = infer_request(FraudUser.scenario.model, FraudUser.scenario.rows_per_request)


@events.test_start.add_listener
def _forget_the_warmup(environment: Environment, **_: object) -> None:
    gevent.spawn_later(FraudUser.scenario.warmup_s, environment.stats.reset_all)


@events.test_stop.add_listener
def _write_measured(environment: Environment, **_: object) -> None:
    # locust writes its own CSV once a second and not again at the end: the last second, and any
    # error in it, would be missing.
    with Path(environment.parsed_options.measured_csv).open("w", newline="", encoding="utf-8") as file:
        StatsCSV(environment, PERCENTILES_TO_REPORT).requests_csv(csv.writer(file))
