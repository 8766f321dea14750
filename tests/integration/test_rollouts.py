"""Labels, splits and rollbacks of a real server: who answers whom."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from tests.integration.live import (
    Answer,
    LiveServer,
    request,
    started,
    tensorferry,
    write_plus,
)
from tests.integration.support import error_of

EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")

#: How often the largest deviation that a test takes may happen by chance: 5 sigmas.
SIGMAS = 5.0


@pytest.fixture(scope="module")
def live(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that loads by request."""
    directory = tmp_path_factory.mktemp(f"rollouts-{transport}")
    write_plus(directory / "models", "kept", 1)
    with started(directory / "models", directory / "log", *EXPLICIT, "--transport", transport) as server:
        yield server


def serve_plus(live: LiveServer, name: str, **labels: int) -> str:
    """Serve a model whose versions are told by their answers, with labels on them."""
    write_plus(live.root, name, *sorted(set(labels.values())))
    live.load(name)
    live.label(name, **labels)
    return name


def check_share(hits: int, calls: int, share: float) -> None:
    """A count is within SIGMAS of what its share makes of the calls."""
    allowed = SIGMAS * math.sqrt(calls * share * (1 - share))
    assert abs(hits - calls * share) <= allowed, f"{hits} of {calls}, and {share:.0%} +- {allowed:.0f} is due"


# -- who answers ------------------------------------------------------------------------------------


def test_a_label_or_a_version_says_who_answers_and_both_are_refused(live: LiveServer):
    model = serve_plus(live, "labels", stable=1, canary=2, old=3)
    assert live.infer(model, 5.0) == Answer(1, 6.0)
    assert live.infer(model, 5.0, label="canary") == Answer(2, 7.0)
    assert live.infer(model, 5.0, label="stable") == Answer(1, 6.0)
    assert live.infer(model, 5.0, version="3") == Answer(3, 8.0)
    both = error_of(lambda: live.infer(model, version="3", label="old"))
    assert both.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "label" in both.details()
    unknown = error_of(lambda: live.infer(model, label="shiny"))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "shiny" in unknown.details()
    assert "canary" in unknown.details(), "the labels that there are aren't told"
    number = request(model)
    number.parameters["label"].int64_param = 1
    assert error_of(lambda: live.stub.ModelInfer(number)).code() is grpc.StatusCode.INVALID_ARGUMENT
    live.label(model, stable=2)
    assert live.infer(model, 5.0) == Answer(2, 7.0)
    live.label(model, old=0)
    assert error_of(lambda: live.infer(model, label="old")).code() is grpc.StatusCode.NOT_FOUND


def test_split_shares_are_exact_sticky_by_key_and_by_id_and_told_in_the_answer(live: LiveServer):
    model = serve_plus(live, "divided", stable=1, b=2, c=3)
    live.split(model, stable=70, b=20, c=10)
    shares = {1: 0.7, 2: 0.2, 3: 0.1}
    calls = 1500
    for named in ("key", "request_id"):
        answers = live.infer_all(request(model, 1.0, **{named: f"card-{n}"}) for n in range(calls))
        assert all(answer.y == 1.0 + answer.version for answer in answers)
        found = Counter(answer.version for answer in answers)
        for version, share in shares.items():
            check_share(found[version], calls, share)
        again = live.infer_all(request(model, 1.0, **{named: f"card-{n}"}) for n in range(200))
        assert again == answers[:200], "a key has changed its version"
    by_id = live.infer_all(request(model, 1.0, request_id=f"card-{n}") for n in range(200))
    both = live.infer_all(request(model, 1.0, key=f"card-{n}", request_id=f"r{n}") for n in range(200))
    assert both == by_id == answers[:200], "the key comes before the id, and both mean the same"
    # Without either no call is like another, and the shares are those of the least deviation.
    found = Counter(answer.version for answer in live.infer_all(request(model, 1.0) for _ in range(calls)))
    for version, share in shares.items():
        assert abs(found[version] - share * calls) <= 10 + 0.005 * calls
    # Other arms are divided alike, and what is named is answered by whom it names.
    named = live.infer_all(request(model, 1.0, key=f"card-{n}", label="c") for n in range(50))
    assert {answer.version for answer in named} == {3}


def test_a_larger_share_keeps_the_keys_that_it_had(live: LiveServer):
    model = serve_plus(live, "growing", stable=1, canary=2)
    before: set[int] = set()
    for percent in (10, 30, 60):
        live.split(model, canary=percent, stable=100 - percent)
        answers = live.infer_all(request(model, key=f"card-{n}") for n in range(600))
        now = {n for n, answer in enumerate(answers) if answer.version == 2}
        assert before < now
        before = now
    tensorferry("rollout", "split", model, "--clear", "--server", live.address)
    answers = live.infer_all(request(model, key=f"card-{n}") for n in range(100))
    assert {answer.version for answer in answers} == {1}


def test_a_change_that_cannot_be_is_refused_and_changes_nothing(live: LiveServer):
    model = serve_plus(live, "refused", stable=1, canary=2)
    before = live.status(model)
    for change, code, word in (
        (lambda: live.label(model, stable=9), grpc.StatusCode.NOT_FOUND, "no version 9"),
        (lambda: live.split(model, stable=1, shiny=1), grpc.StatusCode.INVALID_ARGUMENT, "'shiny'"),
        (lambda: live.shadow(model, "canary", 1.5), grpc.StatusCode.INVALID_ARGUMENT, "1.5"),
        (lambda: live.label("nowhere", stable=1), grpc.StatusCode.NOT_FOUND, "'nowhere'"),
        (
            lambda: live.start_canary(model, "stable", [0.1], 100),
            grpc.StatusCode.INVALID_ARGUMENT,
            "stable already",
        ),
    ):
        refused = error_of(change)
        assert refused.code() is code
        assert word in refused.details()
    assert live.status(model) == before
    assert live.infer(model).version == 1


def test_a_rollback_by_command_takes_effect_on_the_next_request(live: LiveServer):
    model = serve_plus(live, "undone", stable=1, new=2)
    live.label(model, stable=2)
    assert live.infer(model).version == 2
    tensorferry("rollback", model, "--reason", "wrong model", "--server", live.address)
    assert live.infer(model).version == 1
    assert "wrong model" in live.status(model).history[-1].what
    again = tensorferry("rollback", model, "--server", live.address, expect=1)
    assert "nothing to roll back" in again
    live.start_canary(model, "new", [1.0], 10**6)
    assert {live.infer(model, key=f"card-{n}").version for n in range(20)} == {2}
    tensorferry("rollback", model, "--server", live.address)
    assert {live.infer(model, key=f"card-{n}").version for n in range(20)} == {1}
    live.split(model, stable=1, new=99)
    assert 2 in {live.infer(model, key=f"card-{n}").version for n in range(20)}
    tensorferry("rollback", model, "--server", live.address)
    assert {live.infer(model, key=f"card-{n}").version for n in range(20)} == {1}
