"""``tensorferry bench`` against a real server: both loops, sweeps, Ctrl-C, and a server that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.support import sample, wait_until

from tensorferry.testing.models import write_mlp

SUCCESSES = "nv_inference_request_success_total"
COMMAND = (sys.executable, "-m", "tensorferry", "bench")


def bench(*arguments: str, rc: int = 0) -> str:
    """Run the command to its end; return what it printed."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in the background, killed in the end whatever happens."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_closed_loop_of_so_many_calls_is_counted_alike_by_both_sides(server, tmp_path: Path):
    before = sample(server.http, SUCCESSES, "mlp")
    files = ["--json", str(tmp_path / "r.json"), "--hdr", str(tmp_path / "r.hgrm")]
    limits = ["--calls", "200", "--warmup-s", "0", "--seconds", "60", "--concurrency", "6"]
    text = bench("mlp", "--server", server.grpc, *limits, *files)
    assert sample(server.http, SUCCESSES, "mlp") - before == 200
    assert "200 of 200, refused 0, failed 0" in text
    assert "the server says: 200 requests in" in text
    assert "\x1b" not in text
    result = json.loads((tmp_path / "r.json").read_text())["result"]
    assert (result["loop"], result["concurrency"], result["ok"]) == ("closed", 6, 200)
    assert result["server"]["rows"] == 200
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    assert "Percentile TotalCount" in (tmp_path / "r.hgrm").read_text()


@pytest.mark.parametrize("arrivals", ["poisson", "uniform"])
def test_an_open_loop_sends_its_schedule_and_reports_its_slip(server, tmp_path: Path, arrivals: str):
    flags = ["--rate", "200", "--arrivals", arrivals, "--seconds", "1", "--warmup-s", "0.2", "--rows", "3"]
    text = bench("mlp", "--server", server.grpc, *flags, "--json", str(tmp_path / "r.json"))
    assert "calls left late by" in text
    result = json.loads((tmp_path / "r.json").read_text())["result"]
    assert result["ok"] == result["calls"] > 100
    assert result["server"]["rows"] == 3 * result["calls"]
    assert result["valid"] is not bool(result["not_valid_because"])


def test_more_connections_than_calls_in_flight_are_not_opened(server):
    assert "50 of 50" in bench(
        "mlp", "--server", server.grpc, "--calls", "50", "--concurrency", "1", "--warmup-s", "0"
    )


def test_a_sweep_prints_a_row_for_every_step_and_ends_with_the_answer(server, tmp_path: Path):
    flags = ["--sweep-concurrency", "1:4", "--objective-ms", "60000", "--seconds", "30", "--calls", "50"]
    text = bench(
        "mlp", "--server", server.grpc, *flags, "--warmup-s", "0", "--json", str(tmp_path / "r.json")
    )
    assert text.count(" within") >= 4
    assert "most within the objective (p99 at most 60000 ms, no errors)" in text
    steps = json.loads((tmp_path / "r.json").read_text())["steps"]
    assert [each["level"] for each in steps[:3]] == [1, 2, 4]


def test_a_missed_objective_exits_with_1(server):
    flags = ["--calls", "50", "--warmup-s", "0", "--objective-ms", "0.001"]
    assert "objective MISSED: p99 is" in bench("mlp", "--server", server.grpc, *flags, rc=1)


def test_refused_calls_are_shown_with_the_servers_words_and_exit_with_1(server):
    # A priority that the model has not.
    flags = ["--calls", "50", "--warmup-s", "0", "--rows", "8", "--timeout-ms", "60000"]
    text = bench("bounded", "--server", server.grpc, "--priority", "99", *flags, rc=1)
    assert "refused 50" in text
    assert "50 x INVALID_ARGUMENT" in text


def test_an_unknown_model_is_answered_with_those_that_are(server):
    text = bench("nothing", "--server", server.grpc, rc=2)
    assert "no model 'nothing'" in text
    assert "mlp" in text


def test_an_open_dimension_needs_a_shape(server):
    assert "--shape x:8" in bench("bytes", "--server", server.grpc, rc=2)
    flags = ["--shape", "x:5", "--calls", "20", "--warmup-s", "0"]
    assert "20 of 20" in bench("bytes", "--server", server.grpc, *flags)


def test_a_port_that_speaks_something_else_is_said(server):
    assert "doesn't" in bench("mlp", "--server", server.http, rc=2)


@pytest.mark.parametrize("mode", [("--rate", "300"), ("--concurrency", "2")])
def test_ctrl_c_ends_with_what_was_measured(server, mode: tuple[str, str]):
    before = sample(server.http, SUCCESSES, "mlp")
    flags = ["--server", server.grpc, *mode, "--seconds", "90", "--warmup-s", "0"]
    with running("mlp", *flags) as process:
        wait_until(lambda: sample(server.http, SUCCESSES, "mlp") - before > 20, "calls are answered")
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "refused 0, failed 0" in text
    assert "latency ms" in text
    assert "Traceback" not in text


def test_a_sweep_that_is_interrupted_says_so_and_ends(server):
    before = sample(server.http, SUCCESSES, "mlp")
    flags = ["--sweep-concurrency", "1:4", "--objective-ms", "60000", "--seconds", "90", "--warmup-s", "0"]
    with running("mlp", "--server", server.grpc, *flags) as process:
        wait_until(lambda: sample(server.http, SUCCESSES, "mlp") - before > 20, "calls are answered")
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "interrupted" in text


@pytest.mark.parametrize("mode", [("--rate", "300"), ("--concurrency", "2")])
def test_a_server_that_is_killed_makes_errors_and_an_end(launch, tmp_path: Path, mode: tuple[str, str]):
    write_mlp(tmp_path / "models")
    server = launch(tmp_path / "models")
    server.wait_ready()
    flags = ["--server", server.grpc_address, *mode, "--seconds", "60", "--warmup-s", "0"]
    with running("mlp", *flags) as process:
        wait_until(lambda: sample(server.http_address, SUCCESSES, "mlp") > 20, "calls are answered")
        server.kill()
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "x LOST" in text or "x UNSENT" in text
    assert "latency ms" in text
    assert "the server says nothing" in text
