"""SIGKILL in the middle of a load, a push and a rollout's step: the next start serves what was good."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.integration.live import (
    Answer,
    LiveServer,
    push,
    request,
    started,
    write_config,
    write_plus,
    write_version,
)
from tests.integration.support import PATIENCE_S, wait_until
from torch import Tensor, nn

from tensorferry.repository import manifest
from tensorferry.testing.gate import Gate, Gated
from tensorferry.testing.models import save
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import rollout_pb2

EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")
POLLING = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05")

#: Enough that writing and loading it take a while.
BALLAST_BYTES = 24 << 20
PUSHES = 4
STEPS = 40
STEP_REQUESTS = 3
KILLS = 1


class Heavy(nn.Module):
    """Adds a number, and has much to load."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = float(number)
        self.ballast = nn.Parameter(torch.from_numpy(np.random.default_rng(0).random(BALLAST_BYTES // 8)))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` FP32 [rows, 1] to the same shape."""
        return x + self.number


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What a version's warm-up waits for; opened in the end."""
    opened = Gate(tmp_path / "gate")
    yield opened
    opened.open()


def temporary_directories(scratch: Path) -> list[Path]:
    return list(scratch.glob("tensorferry-load-*"))


def test_a_kill_in_the_middle_of_loads_leaves_what_served_before(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    """Three changes are under way, each held at the gate; none of them has been answered."""
    root, scratch = tmp_path / "models", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    for name in ("given", "rolled"):
        write_plus(root, name, 1)
    gated = tmp_path / "gated.pt"
    save(Gated(str(gate.path)), gated)
    config = json.dumps(
        {
            "max_batch_size": 4,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
        }
    )
    load = pb.RepositoryModelLoadRequest(model_name="given")
    load.parameters["config"].string_param = config
    load.parameters["file:1/model.pt"].bytes_param = gated.read_bytes()
    with started(root, tmp_path / "log-0", *EXPLICIT) as live:
        live.label("rolled", stable=1)
        push(root, "rolled", gated)
        before = live.status("rolled")
        gate.close()
        loading = live.stub.RepositoryModelLoad.future(load, timeout=PATIENCE_S)
        wait_until(lambda: gate.entered > 0, "the first load runs its warm-up")
        entered = gate.entered
        start = rollout_pb2.StartCanary(target="2", steps=[1.0], step_requests=10**6)
        change = rollout_pb2.ChangeRolloutRequest(model_name="rolled", start_canary=start)
        rolling = live.rollouts.ChangeRollout.future(change, timeout=PATIENCE_S)
        wait_until(lambda: gate.entered > entered, "the canary's version runs its warm-up")
        assert temporary_directories(scratch)
        assert live.infer("given", 1.0) == live.infer("rolled", 1.0) == Answer(1, 2.0)
        live.process.send_signal(signal.SIGKILL)
        live.process.wait()
        for call in (loading, rolling):
            assert call.exception(PATIENCE_S) is not None
    # The gate is closed still: a start that loaded any of it wouldn't become ready.
    with started(root, tmp_path / "log-1", *EXPLICIT) as live:
        assert live.infer("given", 1.0) == live.infer("rolled", 1.0) == Answer(1, 2.0)
        assert live.status("rolled") == before
        assert live.ready("rolled") == [1]
        gate.open()
        live.stub.RepositoryModelLoad(load, timeout=PATIENCE_S)
        assert live.infer("given", 1.0).y == 2.0  # it doubles
        live.start_canary("rolled", "2", [1.0], 10**6)
        assert live.infer("rolled", 4.0) == Answer(2, 8.0)


def incoming(root: Path) -> list[Path]:
    return [*root.glob(".incoming-*"), *root.glob("*/.incoming-*")]


def has_begun(process: subprocess.Popen[bytes], root: Path, before: int) -> bool:
    return process.poll() is not None or len(incoming(root)) > before


def test_killed_pushes_and_a_kill_while_the_new_version_loads_block_nothing(tmp_path: Path):
    root, source = tmp_path / "models", tmp_path / "heavy.pt"
    write_config(root, "heavy", rows=1)
    write_version(root, "heavy", 1, Heavy(1))
    save(Heavy(2), source)
    command = [sys.executable, "-m", "tensorferry", "push", str(source), "--name", "heavy"]
    command += ["--repository", str(root), "--git-commit", "0" * 8, "--author", "test"]
    with started(root, tmp_path / "log-0", *POLLING) as live:
        for _ in range(PUSHES):
            before = len(incoming(root))
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as pushing:
                wait_until(partial(has_begun, pushing, root, before), "the push begins to copy")
                pushing.kill()
            check_whole(live)
        version = push(root, "heavy", source)
        wait_until(lambda: version in live.index("heavy"), "the version is loaded, or being loaded")
        check_whole(live)
        live.process.send_signal(signal.SIGKILL)
        live.process.wait()
    with started(root, tmp_path / "log-1", *POLLING) as live:
        assert live.infer("heavy", 1.0) == Answer(version, 3.0)


def check_whole(live: LiveServer) -> None:
    """Every version that is visible is whole, none was refused, and who answers does so rightly."""
    for number in (name for name in os.listdir(live.root / "heavy") if name.isdecimal() and name != "1"):
        manifest.verify(live.root / "heavy" / number)
    assert [state for state, _ in live.index("heavy").values() if state == "UNAVAILABLE"] == []
    answer = live.infer("heavy", 1.0)
    assert answer.y == (2.0 if answer.version == 1 else 3.0)


def test_a_kill_between_a_canarys_steps_leaves_its_step_or_an_earlier_one(tmp_path: Path):
    root, moments = tmp_path / "models", random.Random(2)
    write_plus(root, "stepping", 1, 2)
    steps = [0.5 + 0.5 * (n + 1) / STEPS for n in range(STEPS)]
    sent = 0
    for kill in range(KILLS + 1):
        with started(root, tmp_path / f"log-{kill}", *EXPLICIT) as live:
            if kill == 0:
                live.label("stepping", stable=1, canary=2)
                # Versions answer 1 and 2 by design: their scores are as far apart as can be.
                live.start_canary(
                    "stepping",
                    "canary",
                    steps,
                    STEP_REQUESTS,
                    min_requests=100,
                    max_score_shift=1.0,
                    max_p99_ratio=1e3,
                )
            rollout = live.status("stepping")
            assert dict(rollout.labels) == {"stable": 1, "canary": 2}
            assert rollout.canary.state == rollout_pb2.Canary.RUNNING
            assert rollout.canary.step * STEP_REQUESTS <= sent
            more = moments.randrange(12, 60)
            outcomes = live.infer_all(request("stepping", 0.0, key=f"{kill}-{n}") for n in range(more))
            sent += more
            assert all(answer.y == answer.version for answer in outcomes)
            # Whatever step it is at, and wherever it is in writing that down:
            live.process.send_signal(signal.SIGKILL)
            live.process.wait()
    with started(root, tmp_path / "log-end", *EXPLICIT) as live:
        calls = itertools.count()

        def has_ended() -> bool:
            made = [request("stepping", 0.0, key=f"end-{next(calls)}") for _ in range(20)]
            assert all(isinstance(each, Answer) for each in live.infer_all(made))
            return live.status("stepping").canary.state != rollout_pb2.Canary.RUNNING

        wait_until(has_ended, "the canary goes on to its end")
        assert live.status("stepping").canary.state == rollout_pb2.Canary.PROMOTED
        assert live.status("stepping").labels["stable"] == 2


@pytest.mark.parametrize("flags", [EXPLICIT, POLLING], ids=["explicit", "poll"])
def test_a_broken_newest_version_takes_nothing_down_at_the_next_start(tmp_path: Path, flags: tuple[str, ...]):
    root = tmp_path / "models"
    write_plus(root, "m", 1)
    (root / "m" / "2").mkdir()
    (root / "m" / "2" / "model.pt").write_bytes(b"PK\x03\x04 cut")
    with started(root, tmp_path / "log", *flags) as live:
        assert live.infer("m", 1.0) == Answer(1, 2.0)
        states = live.index("m")
        assert states[1][0] == "READY"
        assert states[2][0] == "UNAVAILABLE"
        assert "2/model.pt" in states[2][1]
        assert live.stub.ServerReady(pb.ServerReadyRequest()).ready
