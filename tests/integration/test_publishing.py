"""``tensorferry push`` as a process of its own: killed at any moment, and seen by a server that polls."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest
from tests.integration.support import PATIENCE_S, wait_until

from tensorferry.repository import manifest, read_model
from tensorferry.testing.models import write_identity
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Launch = Callable[..., ServerProcess]

KILLS = 12
MODEL_BYTES = 32 << 20


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tensorferry", *map(str, arguments)]


def tensorferry(*arguments: object) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_versions(directory: Path) -> list[int]:
    """Verify every visible version, and return their numbers."""
    numbers = sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
    for number in numbers:
        assert (directory / str(number) / manifest.FILENAME).exists()
        manifest.verify(directory / str(number))
    return numbers


def list_incoming(root: Path) -> list[Path]:
    return [*root.glob(".incoming-*"), *root.glob("*/.incoming-*")]


def has_begun(process: subprocess.Popen[bytes], root: Path) -> bool:
    return process.poll() is not None or bool(list_incoming(root))


def test_a_push_killed_at_any_moment_leaves_whole_versions_and_the_next_one_works(tmp_path: Path):
    root, source = tmp_path / "models", tmp_path / "large.pt"
    root.mkdir()
    source.write_bytes(random.Random(0).randbytes(MODEL_BYTES))
    push = command("push", source, "--name", "fraud", "--repository", root)
    moments = random.Random(1)
    unfinished = 0
    for _ in range(KILLS):
        with subprocess.Popen(push, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(partial(has_begun, process, root), "the push begins to copy")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0.0, 0.15))
            process.kill()
        unfinished += bool(list_incoming(root))
        for left in list_incoming(root):
            os.rename(left, tmp_path / left.name)
        if (root / "fraud").exists():
            assert check_versions(root / "fraud"), "an empty model is visible"
    assert unfinished, "every push had ended before it was killed"
    before = check_versions(root / "fraud") if (root / "fraud").exists() else []
    published = json.loads(tensorferry("push", source, "--name", "fraud", "--repository", root, "--json"))
    assert published["version"] == len(before) + 1
    assert check_versions(root / "fraud") == [*before, published["version"]]
    assert read_model(root / "fraud").error is None


@pytest.fixture
def polled(launch: Launch, tmp_path: Path) -> tuple[Path, ServerProcess]:
    """A repository with a model, and a server that looks at it every 50 ms."""
    root = tmp_path / "models"
    write_identity(root, "fraud")
    process = launch(root, "--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    process.wait_ready()
    return root, process


def ready(process: ServerProcess, model: str, version: str) -> bool:
    with grpc.insecure_channel(process.grpc_address) as channel:
        request = pb.ModelReadyRequest(name=model, version=version)
        try:
            answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=PATIENCE_S)
        except grpc.RpcError:
            return False
        return bool(answer.ready)


def states(root: Path, process: ServerProcess) -> dict[tuple[str, str], tuple[str, str]]:
    flags = ("--repository", root, "--server", process.grpc_address, "--json")
    rows = json.loads(tensorferry("models", *flags))
    return {(row["model"], row["version"]): (row["state"], row["reason"]) for row in rows}


def test_a_server_that_polls_serves_what_was_pushed_and_says_so(polled, tmp_path: Path):
    root, process = polled
    source = root / "fraud" / "1" / "model.pt"
    tensorferry("push", source, "--name", "fraud", "--repository", root)
    wait_until(lambda: ready(process, "fraud", "2"), "version 2 is served")
    config = root / "fraud" / "config.pbtxt"
    (tmp_path / "config.pbtxt").write_text(config.read_text().replace('"fraud"', '"cards"'))
    tensorferry(
        "push", source, "--name", "cards", "--repository", root, "--config", tmp_path / "config.pbtxt"
    )
    wait_until(lambda: ready(process, "cards", "1"), "the new model is served")
    found = states(root, process)
    assert found["fraud", "2"][0] == found["cards", "1"][0] == "READY"
    table = tensorferry("models", "--repository", root, "--server", process.grpc_address)
    assert "READY" in table
    assert all(len(line) <= 100 for line in table.splitlines())


def test_a_version_that_differs_from_its_manifest_does_not_replace_the_good_one(polled):
    root, process = polled
    tensorferry("push", root / "fraud" / "1" / "model.pt", "--name", "fraud", "--repository", root)
    wait_until(lambda: ready(process, "fraud", "2"), "version 2 is served")
    bad = root / "fraud" / ".3"
    bad.mkdir()
    for name in ("model.pt", manifest.FILENAME):
        (bad / name).write_bytes((root / "fraud" / "2" / name).read_bytes())
    (bad / "extra.py").write_text("import this")
    bad.rename(root / "fraud" / "3")
    wait_until(lambda: states(root, process)["fraud", "3"][0] == "UNAVAILABLE", "version 3 is refused")
    assert "not named in manifest.json" in states(root, process)["fraud", "3"][1]
    assert ready(process, "fraud", "2")
