"""Canaries, shadows and reports of a real server: who is taken back and when, and what is told."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.live import (
    Answer,
    LiveServer,
    Scorer,
    request,
    started,
    tensorferry,
    write_config,
    write_plus,
    write_version,
)
from tests.integration.support import wait_until

from tensorferry.wire import rollout_pb2

EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")

#: Of a slow version's run to a good one's. A good one's takes so long that a busy machine's pauses,
#: which make stable's p99, are shorter than the difference.
TIMES_SLOWER = 10
GOOD_ROUNDS = 120

RUNNING = rollout_pb2.Canary.RUNNING
PROMOTED = rollout_pb2.Canary.PROMOTED
ROLLED_BACK = rollout_pb2.Canary.ROLLED_BACK


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that loads by request, with the transport that it takes by itself."""
    directory = tmp_path_factory.mktemp("canaries")
    write_plus(directory / "models", "kept", 1)
    with started(directory / "models", directory / "log", *EXPLICIT) as server:
        yield server


def inputs_of(count: int, seed: int) -> list[float]:
    """Return inputs from 0.1 to 1."""
    numbers = random.Random(seed)
    return [numbers.uniform(0.1, 1.0) for _ in range(count)]


def serve_canary(live: LiveServer, name: str, good: Scorer, canary: Scorer) -> str:
    """Serve version 1 as stable, and version 2 with the label canary and no requests yet."""
    write_config(live.root, name, rows=2)
    write_version(live.root, name, 1, good)
    write_version(live.root, name, 2, canary)
    live.load(name)
    live.label(name, stable=1, canary=2)
    return name


class Traffic:
    """Calls by ever new keys with inputs from 0.1 to 1, one after the other; and what became of them."""

    def __init__(self, live: LiveServer, model: str) -> None:
        self._live = live
        self._model = model
        self._inputs = random.Random(7)
        self._numbers = itertools.count()
        self.outcomes: list[Answer | grpc.StatusCode] = []

    def send(self, calls: int) -> list[Answer | grpc.StatusCode]:
        """Make so many calls; return what became of them."""
        made = [
            request(self._model, self._inputs.uniform(0.1, 1.0), key=f"card-{next(self._numbers)}")
            for _ in range(calls)
        ]
        outcomes = [outcome for each in made for outcome in self._live.infer_all([each])]
        self.outcomes += outcomes
        return outcomes

    def send_while_running(self, most: int) -> rollout_pb2.Canary:
        """Call until the canary has ended, at most so many times; return how it ended."""
        while len(self.outcomes) < most:
            self.send(10)
            canary = self._live.status(self._model).canary
            if canary.state != RUNNING:
                return canary
        raise AssertionError(
            f"{most} calls, and the canary runs: {self._live.status(self._model).canary},"
            f" {self._live.report(self._model)}"
        )


def test_a_good_canary_goes_from_step_to_step_and_is_promoted(live: LiveServer):
    model = serve_canary(live, "promoted", Scorer(), Scorer())
    live.start_canary(model, "canary", [0.1, 0.5, 1.0], 50, max_p99_ratio=50.0)
    traffic = Traffic(live, model)
    assert traffic.send_while_running(most=4000).state == PROMOTED
    assert not [each for each in traffic.outcomes if isinstance(each, grpc.StatusCode)]
    by_canary = sum(answer.version == 2 for answer in traffic.outcomes)
    assert by_canary >= 3 * 50
    after = live.status(model)
    assert (after.labels["stable"], after.previous_stable) == (2, 1)
    told = [event.what for event in after.history]
    assert [what for what in told if "step" in what] == [
        "canary of version 2 started beside stable version 1: step 1 of 3, 10 % of the requests",
        "canary of version 2: step 2 of 3, 50 % of the requests",
        "canary of version 2: step 3 of 3, 100 % of the requests",
    ]
    assert {live.infer(model, key=f"card-{n}").version for n in range(20)} == {2}
    tensorferry("rollback", model, "--server", live.address)
    assert live.infer(model).version == 1


#: For each way to be bad: the canary, the guard that must break, and the most requests that it may take.
#: Errors are judged from the first request on; p99 and scores from min_requests (below) on.
BAD = {
    "raising": (Scorer("raising"), "error rate", 60),
    "nan": (Scorer("nan"), "error rate", 60),
    "wrong": (Scorer("wrong"), "score shift", 200),
    "slow": (Scorer(rounds=GOOD_ROUNDS * TIMES_SLOWER), "p99", 300),
}
MIN_REQUESTS = 50


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_canary_is_taken_back_within_the_stated_number_of_its_requests(live: LiveServer, kind: str):
    canary, guard, most = BAD[kind]
    rounds = GOOD_ROUNDS if kind == "slow" else 0
    model = serve_canary(live, f"bad-{kind}", Scorer(rounds=rounds), canary)
    traffic = Traffic(live, model)
    live.start_canary(model, "canary", [0.5, 1.0], 10 * most, min_requests=MIN_REQUESTS)
    ended = traffic.send_while_running(most=10 * most)
    failed = [each for each in traffic.outcomes if isinstance(each, grpc.StatusCode)]
    took = len(failed) + sum(isinstance(each, Answer) and each.version == 2 for each in traffic.outcomes)
    print(f"{kind}: taken back after {took} requests of the canary: {ended.reason}")
    assert ended.state == ROLLED_BACK
    assert guard in ended.reason, f"after {took} requests: {ended.reason}"
    assert took <= most, f"{took} requests of the canary's, and {most} are allowed: {ended.reason}"
    report = live.report(model)
    # What counts says that all failures were the canary's.
    assert (report[1].errors, report[1].not_finite, report[1].late) == (0, 0, 0)
    assert report[2].errors == len(failed)
    assert bool(failed) is (kind == "raising")
    after = traffic.send(100)
    assert all(isinstance(each, Answer) and each.version == 1 for each in after), "not all go to stable"
    assert ended.reason[:60] in live.process.log()
    told = tensorferry("rollout", "status", model, "--server", live.address)
    assert "rolled back" in told


# -- shadows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["good", *BAD])
def test_a_shadow_changes_no_answer_whatever_it_does(live: LiveServer, kind: str):
    shadow = Scorer() if kind == "good" else BAD[kind][0]
    model = f"shadowed-{kind}"
    write_config(live.root, model)
    for version, module in ((1, Scorer()), (2, shadow)):
        write_version(live.root, model, version, module)
    live.load(model)
    live.label(model, stable=1, dark=2)
    inputs = inputs_of(200, seed=3)
    alone = live.infer_all(request(model, x, request_id="r") for x in inputs)
    live.shadow(model, "dark")
    shadowed = live.infer_all(request(model, x, request_id="r") for x in inputs)
    # Bit for bit: floats that are equal, of version 1, in the answers' own bytes.
    assert shadowed == alone
    assert {answer.version for answer in shadowed} == {1}

    def arm() -> rollout_pb2.Arm:
        return live.report(model)[2]

    wait_until(lambda: arm().requests + arm().dropped == len(inputs), "every copy is accounted for")
    told = arm()
    assert told.is_shadow
    assert told.share == 0.0
    if kind == "raising":
        assert told.compared == 0
        assert told.errors == told.requests
    elif kind in ("good", "wrong", "slow"):
        assert told.compared == told.requests
        far = sum(told.score_differences.counts) - told.score_differences.counts[0]
        assert (far > 0) is (kind == "wrong"), told.score_differences
    text = tensorferry("rollout", "report", model, "--server", live.address)
    assert "shadow" in text
    tensorferry("rollout", "shadow", model, "--off", "--server", live.address)
    assert live.status(model).HasField("shadow") is False
    assert live.infer(model, inputs[0], request_id="r") == alone[0]


# -- reports ----------------------------------------------------------------------------------------


def test_labels_fed_back_by_the_command_give_each_arm_its_auc(live: LiveServer, tmp_path: Path):
    model = serve_canary(live, "fed", Scorer(), Scorer("wrong"))
    live.split(model, stable=50, canary=50)
    inputs = inputs_of(300, seed=5)
    answers = live.infer_all(request(model, x, key=f"card-{n}") for n, x in enumerate(inputs))
    rows = [f"card-{n},{int(x > 0.55)}" for n, x in enumerate(inputs)] + ["nobody,1"]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *rows]) + "\n")
    flags = ("--name", model, "--server", live.address)
    told = tensorferry("feedback", tmp_path / "labels.csv", *flags)
    assert "300" in told
    assert "301" in told
    report = live.report(model)
    for version, auc in ((1, 1.0), (2, 0.0)):
        arm, own = report[version], sum(answer.version == version for answer in answers)
        assert (arm.requests, arm.labelled) == (own, own)
        assert arm.share == pytest.approx(0.5)
        assert arm.auc.value == pytest.approx(auc)
        assert arm.auc.low <= arm.auc.value <= arm.auc.high
        mean = sum(answer.y for answer in answers if answer.version == version) / own
        assert arm.score_mean == pytest.approx(mean, rel=1e-5)
        assert sum(arm.scores.counts) == own
        assert 0 < arm.latency_p50_ms <= arm.latency_p99_ms
    text = tensorferry("rollout", "report", model, "--server", live.address)
    assert "AUC" in text


# -- restarts ---------------------------------------------------------------------------------------


def test_a_canary_goes_on_after_a_restart_at_its_step_or_an_earlier_one(tmp_path: Path):
    root = tmp_path / "models"
    write_config(root, "lasting", rows=2)
    for version in (1, 2):
        write_version(root, "lasting", version, Scorer())
    with started(root, tmp_path / "log-0", *EXPLICIT) as live:
        live.label("lasting", stable=1, canary=2)
        live.start_canary("lasting", "canary", [0.2, 0.4, 0.6, 1.0], 40, max_p99_ratio=100.0)
        before = stopped_at_step(live, 1, signal.SIGTERM)
    with started(root, tmp_path / "log-1", *EXPLICIT) as live:
        after = live.status("lasting")
        # The generation is that of the file, which is written just after a step is in force.
        assert (after.labels, after.canary) == (before.labels, before.canary)
        assert after.history == before.history
        before = stopped_at_step(live, 2, signal.SIGKILL)
    with started(root, tmp_path / "log-2", *EXPLICIT) as live:
        after = live.status("lasting")
        assert after.labels == before.labels
        assert after.canary.state == RUNNING
        assert after.canary.step <= before.canary.step
        traffic = Traffic(live, "lasting")
        assert traffic.send_while_running(most=5000).state == PROMOTED
        assert not [each for each in traffic.outcomes if isinstance(each, grpc.StatusCode)]
        assert live.infer("lasting").version == 2


def stopped_at_step(live: LiveServer, step: int, how: signal.Signals) -> rollout_pb2.Rollout:
    """Call until the canary has reached a step, and stop the server; return the rollout as it was told."""
    traffic = Traffic(live, "lasting")
    while (rollout := live.status("lasting")).canary.step < step:
        assert len(traffic.outcomes) < 5000
        traffic.send(20)
    live.process.send_signal(how)
    live.process.wait()
    return rollout
