"""The fraud-scoring caller: always an answer, and where it came from."""

import asyncio
import math
import socket
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from tests.unit.client.support import PATIENCE_S, ScriptedServer, failing, run, serving, target_of_nobody

from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import Decision, FraudScorer, Reason, ScorerTuning, Source, Thresholds

ONE = np.full(30, 0.25, np.float32)
#: Milliseconds that no test uses up.
AMPLE_MS = PATIENCE_S * 1000


@asynccontextmanager
async def started(target, budget_ms=AMPLE_MS, **settings):
    """A scorer that has seen its server, however slow the machine."""
    scorer = FraudScorer(target, budget_ms=budget_ms, **settings)
    await scorer.start(timeout_s=PATIENCE_S)
    try:
        yield scorer
    finally:
        await scorer.close()


class Clock:
    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        return self.now_s


def answering(scores, datatype="FP32", name="OUTPUT__0"):
    """Answer with ``scores``, whatever the features."""
    array = np.asarray(scores, np.float32)

    async def infer(request, context):
        response = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=[array.tobytes()])
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        return response

    return infer


async def mean_of_row(request, context):
    """The model: each row's score is the mean of its features."""
    rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(request.inputs[0].shape))
    return await answering(rows.mean(axis=1, keepdims=True))(request, context)


def score_once(service, features=ONE, **settings):
    async def scenario():
        async with serving(service) as target, started(target, **settings) as scorer:
            return await scorer.score(features), scorer.statistics()

    return run(scenario())


def test_the_model_scores_one_transaction():
    service = ScriptedServer(mean_of_row)
    scored, statistics = score_once(service)
    assert (scored.score, scored.decision) == (0.25, Decision.APPROVE)
    assert (scored.source, scored.reason) == (Source.MODEL, None)
    assert statistics.by_source == {Source.MODEL: 1, Source.FALLBACK: 0}
    assert list(service.requests[-1].inputs[0].shape) == [1, 30]
    assert service.requests[-1].inputs[0].datatype == "FP32"


def test_several_transactions_travel_in_one_request():
    service = ScriptedServer(mean_of_row)
    scored, _ = score_once(service, np.repeat([[0.25], [0.5], [0.95]], 30, axis=1))
    assert scored.scores == pytest.approx((0.25, 0.5, 0.95))
    assert scored.decisions == (Decision.APPROVE, Decision.REVIEW, Decision.DECLINE)
    assert [list(request.inputs[0].shape) for request in service.requests] == [[1, 30], [3, 30]]
    with pytest.raises(ValueError, match="3 rows"):
        _ = scored.score


def test_a_model_may_leave_out_the_column():
    scored, _ = score_once(ScriptedServer(answering([0.7])))
    assert scored.score == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.29, Decision.APPROVE), (0.3, Decision.REVIEW), (0.6, Decision.DECLINE), (math.nan, Decision.REVIEW)],
)
def test_thresholds_belong_to_the_graver_decision(score, decision):
    assert Thresholds(review=0.3, decline=0.6).decide(score) is decision


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="decline"):
        Thresholds(review=0.9, decline=0.5)


@pytest.mark.parametrize(
    "features",
    [
        np.zeros(29, np.float32),
        np.zeros((0, 30), np.float32),
        np.zeros((2, 31), np.float32),
        np.zeros((1, 1, 30), np.float32),
        np.float32(1),
        np.array(["x"] * 30),
        np.zeros(30, np.complex64),
    ],
    ids=lambda features: f"{features.dtype} {features.shape}",
)
def test_wrong_features_are_the_callers_error_and_never_sent(features):
    service = ScriptedServer(mean_of_row)
    with pytest.raises(ValueError, match="features have"):
        score_once(service, features)
    assert len(service.requests) == 1  # the priming call


def test_names_are_learned_from_the_server():
    service = ScriptedServer(answering([0.1], name="p"))
    service.inputs, service.outputs = [("rows", "FP32", [-1, 30])], [("p", "FP32", [-1])]
    scored, _ = score_once(service)
    assert scored.source is Source.MODEL
    assert service.requests[-1].inputs[0].name == "rows"
    assert [output.name for output in service.requests[-1].outputs] == ["p"]


def test_the_scorers_label_and_a_transactions_split_key_travel_along():
    service = ScriptedServer(mean_of_row)

    async def scenario():
        tuning = ScorerTuning(label="canary")
        async with serving(service) as target, started(target, tuning=tuning) as scorer:
            await scorer.score(ONE, split_key="card-7")
            await scorer.score(ONE)

    run(scenario())
    keys = [request.parameters["split_key"].string_param for request in service.requests[-2:]]
    assert keys == ["card-7", ""]
    assert {request.parameters["label"].string_param for request in service.requests} == {"canary"}


def test_a_version_and_a_label_are_not_given_together():
    with pytest.raises(ValueError, match="give one of them"):
        ScorerTuning(version="3", label="canary")


def test_names_that_are_given_are_not_asked_for():
    service = ScriptedServer(answering([0.1], name="p"))
    service.inputs = []
    scored, _ = score_once(service, tuning=ScorerTuning(input_name="rows", output_name="p"))
    assert scored.source is Source.MODEL
    assert service.requests[-1].inputs[0].name == "rows"


@pytest.mark.parametrize(
    ("outputs", "tuning", "trouble"),
    [
        ([("p", "FP32", [-1]), ("q", "FP32", [-1])], ScorerTuning(), "output_name"),
        ([("p", "FP32", [-1])], ScorerTuning(output_name="z"), "no output 'z'"),
    ],
)
def test_a_model_with_other_tensors_is_reported_and_answered_for(outputs, tuning, trouble):
    service = ScriptedServer(mean_of_row)
    service.outputs = outputs
    scored, statistics = score_once(service, tuning=tuning)
    assert (scored.source, scored.reason) == (Source.FALLBACK, Reason.REFUSED)
    assert trouble in statistics.last_trouble


def test_a_spent_budget_means_the_fallback():
    async def scenario():
        never = asyncio.Event()
        service = ScriptedServer(mean_of_row)
        async with serving(service) as target, started(target, budget_ms=20.0) as scorer:

            async def hang(request, context):
                await never.wait()

            service.infer = hang
            return await scorer.score(ONE), scorer.statistics()

    scored, statistics = run(scenario())
    assert (scored.source, scored.reason, scored.decision) == (
        Source.FALLBACK,
        Reason.BUDGET_SPENT,
        Decision.REVIEW,
    )
    assert math.isnan(scored.score)
    assert statistics.by_reason[Reason.BUDGET_SPENT] == 1
    assert not statistics.is_open


def test_the_budget_travels_as_the_deadline():
    remaining_s = []

    async def note(request, context):
        remaining_s.append(context.time_remaining())
        return await mean_of_row(request, context)

    async def scenario():
        async with (
            serving(ScriptedServer(note)) as target,
            started(target, budget_ms=500_000.0) as scorer,
        ):
            await scorer.score(ONE)
            await scorer.score(ONE, budget_ms=60_000.0)

    run(scenario())
    assert 100.0 < remaining_s[1] <= 501.0  # gRPC rounds a timeout up a little
    assert 0.0 < remaining_s[2] <= 60.1


def test_a_budget_that_is_spent_before_the_call_sends_nothing():
    service = ScriptedServer(mean_of_row)

    async def scenario():
        async with serving(service) as target, started(target) as scorer:
            return await scorer.score(ONE, budget_ms=0.0)

    assert run(scenario()).reason is Reason.BUDGET_SPENT
    assert len(service.requests) == 1  # the priming call


def test_a_server_that_is_gone_means_the_fallback():
    async def scenario():
        scorer = FraudScorer(await target_of_nobody(), budget_ms=AMPLE_MS)
        is_primed = await scorer.start(timeout_s=0.05)
        scored = await scorer.score(ONE)
        await scorer.close()
        return is_primed, scored, scorer.statistics()

    is_primed, scored, statistics = run(scenario())
    assert not is_primed
    assert (scored.source, scored.reason) == (Source.FALLBACK, Reason.SERVER_AWAY)
    assert statistics.last_trouble


def test_a_host_that_never_speaks_counts_as_away_and_not_as_slow():
    async def scenario():
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            scorer = FraudScorer(f"127.0.0.1:{silent.getsockname()[1]}", budget_ms=20.0)
            await scorer.start(timeout_s=0.05)
            scored = await scorer.score(ONE)
            await scorer.close()
            return scored

    assert run(scenario()).reason is Reason.SERVER_AWAY


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_AWAY),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REFUSED),
        (grpc.StatusCode.INVALID_ARGUMENT, Reason.REFUSED),
        (grpc.StatusCode.NOT_FOUND, Reason.REFUSED),
        (grpc.StatusCode.INTERNAL, Reason.BAD_ANSWER),
    ],
)
def test_an_error_of_the_server_means_the_fallback_after_one_attempt(code, reason):
    service = ScriptedServer(failing(code, "because"))
    scored, statistics = score_once(service)
    assert (scored.source, scored.reason) == (Source.FALLBACK, reason)
    assert statistics.last_trouble == "because"
    assert len(service.requests) == 2  # priming, and the one attempt


@pytest.mark.parametrize(
    "infer",
    [
        answering([0.1, 0.2]),
        answering([[0.1, 0.9]]),
        answering([math.nan]),
        answering([math.inf]),
        answering([0.1], name="other"),
        answering([0.1], datatype="FP64"),
    ],
    ids=["two rows", "two columns", "nan", "infinite", "other output", "half the bytes"],
)
def test_nonsense_means_the_fallback(infer):
    scored, _ = score_once(ScriptedServer(infer))
    assert (scored.source, scored.reason) == (Source.FALLBACK, Reason.BAD_ANSWER)


def test_a_fallback_policy_scores_each_row():
    scored, _ = score_once(
        ScriptedServer(failing(grpc.StatusCode.INTERNAL)),
        np.repeat([[0.1], [0.95]], 30, axis=1),
        fallback=lambda row: float(row[29]),
    )
    assert scored.scores == pytest.approx((0.1, 0.95))
    assert scored.decisions == (Decision.APPROVE, Decision.DECLINE)
    assert scored.source is Source.FALLBACK


def test_the_circuit_breaker_holds_calls_back_and_probes():
    clock = Clock()
    service = ScriptedServer(failing(grpc.StatusCode.UNAVAILABLE))
    tuning = ScorerTuning(failures_to_open=3, probe_interval_s=2.0, clock=clock)

    async def scenario():
        async with serving(service) as target, started(target, tuning=tuning) as scorer:
            service.requests.clear()
            for _ in range(3):
                await scorer.score(ONE)
            assert scorer.statistics().is_open
            assert len(service.requests) == 3

            held_back = await scorer.score(ONE)
            assert held_back.reason is Reason.SERVER_AWAY
            assert len(service.requests) == 3

            clock.now_s += 2.0
            await scorer.score(ONE)  # a probe, which fails
            await scorer.score(ONE)
            assert len(service.requests) == 4

            service.infer = mean_of_row
            clock.now_s += 2.0
            back = await scorer.score(ONE)
            assert back.source is Source.MODEL
            assert not scorer.statistics().is_open
            return scorer.statistics()

    statistics = run(scenario())
    assert statistics.held_back == 2
    assert statistics.by_reason[Reason.SERVER_AWAY] == 6
    assert statistics.by_source == {Source.MODEL: 1, Source.FALLBACK: 6}


def test_refusals_never_open_the_circuit_breaker():
    async def scenario():
        service = ScriptedServer(failing(grpc.StatusCode.RESOURCE_EXHAUSTED))
        tuning = ScorerTuning(failures_to_open=2)
        async with serving(service) as target, started(target, tuning=tuning) as scorer:
            for _ in range(4):
                await scorer.score(ONE)
            return scorer.statistics()

    statistics = run(scenario())
    assert not statistics.is_open
    assert statistics.held_back == 0


def test_elapsed_time_is_that_of_the_clock():
    clock = Clock()

    async def slow(request, context):
        clock.now_s += 0.004
        return await mean_of_row(request, context)

    scored, _ = score_once(ScriptedServer(slow), tuning=ScorerTuning(clock=clock))
    assert scored.elapsed_ms == pytest.approx(4.0)


def test_starting_primes_every_connection():
    peers = set()

    async def note(request, context):
        peers.add(context.peer())
        return await mean_of_row(request, context)

    async def scenario():
        async with serving(ScriptedServer(note)) as target:
            scorer = FraudScorer(target, tuning=ScorerTuning(connections=3))
            is_primed = await scorer.start(timeout_s=PATIENCE_S)
            await scorer.close()
            return is_primed

    assert run(scenario())
    assert len(peers) == 3


def test_a_scorer_runs_between_start_and_close():
    async def scenario():
        async with serving(ScriptedServer(mean_of_row)) as target:
            scorer = FraudScorer(target, budget_ms=AMPLE_MS)
            with pytest.raises(RuntimeError, match="start"):
                await scorer.score(ONE)
            assert await scorer.start()
            with pytest.raises(RuntimeError, match="already"):
                await scorer.start()
            await scorer.close()
            await scorer.close()
            with pytest.raises(RuntimeError, match="start"):
                await scorer.score(ONE)
            async with scorer:
                assert (await scorer.score(ONE)).source is Source.MODEL

    run(scenario())


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_senseless_budget_is_refused(budget_ms):
    with pytest.raises(ValueError, match="budget_ms"):
        FraudScorer("host:1", budget_ms=budget_ms)
