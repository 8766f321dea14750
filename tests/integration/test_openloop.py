"""The open-loop generator against a real server: nothing goes uncounted, and nothing hangs."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from loadtests.openloop.__main__ import main
from tests.integration.conftest import MAX_WAITING
from tests.integration.support import column, occupy, sample, wait_until

from tensorferry.benchmark import arrivals
from tensorferry.benchmark.endings import Failure
from tensorferry.benchmark.generator import CannotConnect, Options, Result, Stream, run
from tensorferry.benchmark.report import analyse
from tensorferry.benchmark.requests import infer_message, messages_for
from tensorferry.testing.models import write_mlp

RESOURCE_EXHAUSTED, NOT_FOUND, DEADLINE_EXCEEDED = 8, 5, 4


def statuses(result: Result, stream: int = 0) -> dict[int, int]:
    """How many calls of a stream ended how."""
    values, counts = np.unique(result.status[result.stream == stream], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_every_call_of_a_run_is_answered_and_timed(server):
    schedule = arrivals.steps([(500, 0.2), (2000, 0.2)], seed=1)
    traffic = [
        Stream("mlp", schedule, messages_for(server.grpc, "mlp", count=3)),
        Stream("raising", schedule, [infer_message("raising", {"x": column(1)})], timeout_s=60.0),
    ]
    result = run(server.grpc, traffic)
    assert statuses(result, 0) == statuses(result, 1) == {0: len(schedule)}
    assert (result.sent_s >= result.intended_s).all()
    assert (result.done_s > result.sent_s).all()
    np.testing.assert_array_equal(result.intended_s[result.stream == 1], schedule)
    assert server.waiting("mlp") == 0


def test_the_server_counts_as_many_calls_as_were_sent(server):
    before = sample(server.http, "nv_inference_request_success_total", "mlp")
    schedule = arrivals.uniform(2000, 0.2)
    run(server.grpc, [Stream("mlp", schedule, messages_for(server.grpc, "mlp"))])
    assert sample(server.http, "nv_inference_request_success_total", "mlp") - before == len(schedule)


def test_messages_larger_than_the_windows_arrive_whole(server):
    large = infer_message("bytes", {"x": np.ones((1, 300_000), np.float32)})
    result = run(server.grpc, [Stream("bytes", arrivals.uniform(50, 0.2), [large])], Options(connections=2))
    assert statuses(result) == {0: 10}


def test_refusals_are_counted_by_status(server, stub, bounded_gate):
    running = occupy(bounded_gate, stub, "bounded")
    schedule = arrivals.uniform(200, 0.2)
    message = infer_message("bounded", {"x": column(1)})
    result = run(server.grpc, [Stream("bounded", schedule, [message])], Options(grace_s=1.0))
    counts = statuses(result)
    assert counts == {
        RESOURCE_EXHAUSTED: len(schedule) - MAX_WAITING,
        int(Failure.UNANSWERED): MAX_WAITING,
    }
    report = analyse(result)
    assert report.total.refused == report.total.latency_of_refused.count == len(schedule) - MAX_WAITING
    assert (report.total.failed, report.total.ok) == (MAX_WAITING, 0)
    assert np.isnan(result.done_s).sum() == MAX_WAITING
    assert not running.done()


def test_errors_are_counted_with_what_the_server_said(server):
    traffic = Stream("nothing", arrivals.uniform(100, 0.1), [infer_message("nothing", {"x": column(1)})])
    result = run(server.grpc, [traffic])
    assert statuses(result) == {NOT_FOUND: 10}
    assert "nothing" in next(iter(analyse(result).total.by_message))


def test_deadlines_are_kept_by_the_server(server, stub, gate):
    running = occupy(gate, stub, "gated")
    message = infer_message("gated", {"x": column(1)})
    result = run(server.grpc, [Stream("gated", arrivals.uniform(100, 0.1), [message], timeout_s=0.1)])
    counts = statuses(result)
    # At their deadlines, or at once where the server knows by now that the model takes longer.
    assert set(counts) <= {DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED}
    assert sum(counts.values()) == 10
    assert not running.done()


def test_a_server_that_is_killed_makes_failures_and_an_end(launch, tmp_path: Path):
    write_mlp(tmp_path / "models")
    process = launch(tmp_path / "models")
    process.wait_ready()
    schedule = arrivals.uniform(500, 60)
    messages = messages_for(process.grpc_address, "mlp")

    def kill_once_it_serves() -> None:
        wait_until(
            lambda: sample(process.http_address, "nv_inference_request_success_total", "mlp") > 50,
            "it serves",
        )
        process.kill()

    killer = threading.Thread(target=kill_once_it_serves)
    killer.start()
    result = run(process.grpc_address, [Stream("mlp", schedule, messages)])
    killer.join()
    counts = statuses(result)
    assert counts[0] > 0
    assert counts[Failure.UNSENT] > 0
    assert set(counts) <= {0, *Failure}
    assert sum(counts.values()) == len(schedule)
    assert np.nanmax(result.done_s) < 60
    assert "every connection was lost" in "".join(analyse(result).total.by_message)


def test_nobody_there_is_said_at_once(tmp_path: Path):
    with pytest.raises(CannotConnect, match=r"no server at 127\.0\.0\.1:1:"):
        run("127.0.0.1:1", [Stream("a", arrivals.uniform(1, 1), [b""])])


def test_the_command_writes_the_runs_and_the_plots(server, tmp_path: Path, capsys):
    flags = f"--target {server.grpc} --model mlp --sweep 100,200 --seconds 0.3 --max-slip-ms 1000 --name mine"
    assert main([*flags.split(), "--arrivals", "mmpp", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("refused 0, failed 0") == 2
    assert {"mine.json", "latency.png"} <= {each.name for each in tmp_path.iterdir()}
