"""Callers that write garbage wherever they can: it costs no call, makes no series and fills no log."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.support import PATIENCE_S, samples_of, wait_until, x_request, y_of

from tensorferry.testing.models import write_raising
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

pytest.importorskip("opentelemetry.sdk", reason="the extra otlp isn't installed")

from tests.integration.collector import collecting

Launch = Callable[..., ServerProcess]
Stub = pb_grpc.GRPCInferenceServiceStub
Series = tuple[str, frozenset[tuple[str, str]]]

MODEL = "raising"
AT_ONCE = 32

WILD_CALLS = 2000
WILD_KINDS = 6
FLOOD = 3000
#: As the flags' defaults and their burst have it.
LINES_PER_S = 20
BURST_LINES = 100
#: A line's own fields, and a request id and a reason as they are cut.
LINE_BYTES = 2048

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model, which doubles."""
    root = tmp_path_factory.mktemp("models")
    write_raising(root)
    return root


@contextlib.contextmanager
def stub_of(address: str) -> Iterator[Stub]:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield Stub(channel)


WHOLE = f"00-{TRACE_ID}-{SPAN_ID}-01"
#: As header lines can carry them: printable, no longer than gRPC lets through, and without space at either
#: end, which HTTP/2 forbids (RFC 9113, section 8.2.1).
PARENTS = (
    "", "-", "---", "0", "00", "garbage", "null", "00-", WHOLE[:-1], WHOLE + "-", WHOLE + "0",
    WHOLE * 20, WHOLE.upper(), WHOLE.replace("00-", "ff-", 1), WHOLE.replace("00-", "zz-", 1),
    WHOLE.replace("-", "_"),
    WHOLE.replace("-", " "), f"{WHOLE},{WHOLE}", f"{WHOLE} {WHOLE}", f"00-{'0' * 32}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID}-{SPAN_ID}-zz", f"00-{SPAN_ID}-{TRACE_ID}-01", f"01-{TRACE_ID}-{SPAN_ID}-01-more",
    "%00%0a", "${jndi:x}", "'; drop table spans; --", "+0-" + WHOLE[3:], "0x" + WHOLE[2:], "1" * 4000,
)  # fmt: skip
STATES = (
    "", ",", "=", ",,,,", "a", "a=", "=b", "a=b,a=b", "a=b=c", "A=b", "a=" + "x" * 4000, "x" * 4000,
    ",".join(f"k{n}=v" for n in range(100)), "@=1", "t@=1", "a@b@c=1", "a = b", "%0a=%0d", "a=b;c", "~",
)  # fmt: skip


def bad_contexts() -> Iterator[tuple[tuple[str, str | bytes], ...]]:
    for parent in PARENTS:
        yield (("traceparent", parent),)
        yield (("traceparent", parent), ("traceparent", WHOLE))
        yield (("traceparent", parent), ("tracestate", "a=b"), ("tracestate", "a=b"))
    for state in STATES:
        yield (("traceparent", WHOLE), ("tracestate", state))
        yield (("tracestate", state),)
    yield (("traceparent-bin", bytes(range(256))), ("tracestate-bin", b"\xff" * 600))
    chance = random.Random(5)
    for _ in range(200):
        changed = list(WHOLE)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice(string.printable[:94])
        state = "".join(chance.choices(",=@a1 ", k=30)).strip()
        yield (("traceparent", "".join(changed)), ("tracestate", state))


def test_a_trace_header_that_is_garbage_costs_no_call(launch: Launch, models: Path):
    with collecting() as collector:
        flags = ("--trace-endpoint", collector.endpoint, "--trace-rate", "1", "--trace-max-per-s", "1e9")
        process = launch(models, *flags)
        process.wait_ready()
        contexts = list(bad_contexts())
        with stub_of(process.grpc_address) as stub:
            for context in contexts:
                answer = stub.ModelInfer(x_request(MODEL, 2.0), metadata=context, timeout=PATIENCE_S)
                assert y_of(answer) == [4.0], context
            one = x_request(MODEL, 2.0)
            for context in contexts[::10]:
                (answer,) = stub.ModelStreamInfer(iter([one]), metadata=context, timeout=PATIENCE_S)
                assert y_of(answer.infer_response) == [4.0], context
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, process.log()[-2000:]
        assert "unexpected error" not in process.log()
        spans = collector.named("ModelInfer")
    # Who is not sampled by a context that is right all the same has no span; all others have one.
    assert len(contexts) / 2 < len(spans) <= len(contexts)
    assert all(len(span.trace_id) == 16 and any(span.trace_id) for span in spans)
    assert all(len(span.parent_span_id) in (0, 8) for span in spans)


def wild_request(chance: random.Random, kind: int) -> pb.ModelInferRequest:
    """Build a request that says something that no other does, in one of five places, or in all."""

    def text() -> str:
        return "".join(chance.choices(string.ascii_letters + '{}"\\\n=,é', k=chance.randint(1, 60)))

    request = x_request(MODEL, 1.0)
    if kind in (0, 5):
        request.model_name = text()
    if kind in (1, 5):
        request.model_version = text() if chance.random() < 0.5 else str(chance.randrange(2, 10**9))
    if kind in (2, 5):
        request.id = text()
    if kind in (3, 5):
        request.parameters[text()].string_param = text()
    if kind in (4, 5):
        request.parameters["label"].string_param = text()
    return request


def series_of(address: str) -> set[Series]:
    return set(samples_of(address))


def test_what_callers_write_makes_no_series(launch: Launch, models: Path):
    process = launch(models)
    process.wait_ready()
    with stub_of(process.grpc_address) as stub:

        def call_wildly(seed: int, count: int) -> Counter[grpc.StatusCode]:
            chance = random.Random(seed)
            codes: Counter[grpc.StatusCode] = Counter()
            for first in range(0, count, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, count))
                requests = [wild_request(chance, number % WILD_KINDS) for number in numbers]
                codes.update(call.code() for call in [stub.ModelInfer.future(each) for each in requests])
            return codes

        call_wildly(1, 20 * WILD_KINDS)  # whatever codes and reasons there are have their series now
        before = series_of(process.http_address)
        codes = call_wildly(2, WILD_CALLS)
        assert series_of(process.http_address) == before
    assert len(codes) > 1
    assert sum(codes.values()) == WILD_CALLS
    assert grpc.StatusCode.UNKNOWN not in codes
    assert grpc.StatusCode.INTERNAL not in codes


def lines_of(process: ServerProcess) -> list[dict[str, Any]]:
    """The log's lines; the last may not be whole yet."""
    return [json.loads(line) for line in process.log().splitlines() if line.endswith("}")]


def test_a_flood_of_bad_calls_of_many_names_is_counted_to_the_last_and_not_written(
    launch: Launch, models: Path
):
    process = launch(models, "--log-format", "json", "--log-level", "info")
    process.wait_ready()
    began = time.monotonic()
    with stub_of(process.grpc_address) as stub:
        for first in range(0, FLOOD, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, FLOOD))
            requests = [x_request(f"model-{n}", 1.0, request_id=f"{n}" * 500) for n in numbers]
            calls = [stub.ModelInfer.future(each, timeout=PATIENCE_S) for each in requests]
            assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}

    def written() -> int:
        return sum(line.get("code") == "NOT_FOUND" for line in lines_of(process))

    def left_out() -> int:
        return sum(line["lines"] for line in lines_of(process) if line["event"] == "log lines left out")

    wait_until(lambda: written() + left_out() == FLOOD, "each call is in the log, or counted as left out")
    allowed = BURST_LINES + LINES_PER_S * (time.monotonic() - began)
    assert written() <= allowed
    assert len(process.log().encode()) < LINE_BYTES * (allowed + 50)
