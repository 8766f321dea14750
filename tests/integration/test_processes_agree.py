"""Two server processes behind one port: what one connection changes, every connection sees."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from tests.integration.live import (
    Answer,
    LiveServer,
    Plus,
    Scorer,
    outcome_of,
    push,
    request,
    started,
    tensorferry,
    write_config,
    write_plus,
    write_version,
)
from tests.integration.support import PATIENCE_S, fetch, wait_until

from tensorferry.testing.models import save
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc
from tensorferry.wire import rollout_pb2

PROCESSES = 2
#: So many connections all go to one of two processes once in 2^23 times.
CONNECTIONS = 24
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
FLAGS = ("--processes", str(PROCESSES), "--model-control-mode", "explicit", "--load-model", "*")

Outcome = Answer | grpc.StatusCode
Stub = pb_grpc.GRPCInferenceServiceStub


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and not yet buried."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two processes that load by request; whatever the tests did, none of them stays."""
    directory = tmp_path_factory.mktemp("agree")
    write_plus(directory / "models", "kept", 1)
    with started(directory / "models", directory / "log", *FLAGS) as server:
        assert len(children(server.process.pid)) == PROCESSES
        try:
            yield server
        except BaseException:
            for pid in children(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            raise


@contextlib.contextmanager
def connections(live: LiveServer) -> Iterator[list[Stub]]:
    """Open new connections; the kernel deals them out to the processes."""
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(live.address, OWN_CONNECTION))
            for _ in range(CONNECTIONS)
        ]
        for ready in [grpc.channel_ready_future(channel) for channel in channels]:
            ready.result(PATIENCE_S)
        yield [Stub(channel) for channel in channels]


def everywhere(live: LiveServer, model: str, x: float = 1.0, **named: str) -> set[Outcome]:
    """Make the same call over many new connections; return the outcomes."""
    with connections(live) as stubs:
        calls = [stub.ModelInfer.future(request(model, x, **named), timeout=PATIENCE_S) for stub in stubs]
        return {outcome_of(call) for call in calls}


def test_a_load_a_swap_and_an_unload_are_in_force_everywhere_when_they_return(live: LiveServer):
    write_plus(live.root, "swapped", 1)
    assert everywhere(live, "swapped") == {grpc.StatusCode.NOT_FOUND}
    live.load("swapped")
    assert everywhere(live, "swapped") == {Answer(1, 2.0)}
    for version in (2, 3):
        write_version(live.root, "swapped", version, Plus(version))
        live.load("swapped")
        assert everywhere(live, "swapped") == {Answer(version, 1.0 + version)}
    live.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="swapped"))
    assert everywhere(live, "swapped") == {grpc.StatusCode.NOT_FOUND}
    assert everywhere(live, "kept") == {Answer(1, 2.0)}


def test_a_version_that_fails_replaces_the_good_one_nowhere(live: LiveServer, tmp_path: Path):
    write_plus(live.root, "guarded", 1)
    live.load("guarded")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 cut short")
    push(live.root, "guarded", tmp_path / "model.pt")
    with pytest.raises(grpc.RpcError, match="TorchScript"):
        live.load("guarded")
    assert everywhere(live, "guarded") == {Answer(1, 2.0)}
    shutil.rmtree(live.root / "guarded" / "2")


def test_a_rollback_is_in_force_everywhere_when_the_command_returns(live: LiveServer):
    write_plus(live.root, "undone", 1, 2)
    live.load("undone")
    live.label("undone", stable=1)
    live.label("undone", stable=2)
    assert everywhere(live, "undone") == {Answer(2, 3.0)}
    tensorferry("rollback", "undone", "--server", live.address)
    assert everywhere(live, "undone") == {Answer(1, 2.0)}


def test_a_key_is_answered_by_the_same_version_everywhere(live: LiveServer):
    write_plus(live.root, "divided", 1, 2)
    live.load("divided")
    live.label("divided", stable=1, canary=2)
    live.split("divided", stable=1, canary=1)
    found = [everywhere(live, "divided", key=f"card-{n}") for n in range(8)]
    assert all(len(outcomes) == 1 for outcomes in found)
    assert {Answer(1, 2.0), Answer(2, 3.0)} == set.union(*found)


def send(live: LiveServer, model: str, calls: int, first: int = 0) -> list[Outcome]:
    """Make calls of ever new keys, dealt out to many connections; return what became of them."""
    with connections(live) as stubs:
        made = [
            stubs[n % CONNECTIONS].ModelInfer.future(
                request(model, 0.1 + (n % 90) / 100, key=f"card-{n}"), timeout=PATIENCE_S
            )
            for n in range(first, first + calls)
        ]
        return [outcome_of(call) for call in made]


def serve_scorers(live: LiveServer, name: str, canary: Scorer) -> None:
    write_config(live.root, name)
    write_version(live.root, name, 1, Scorer())
    write_version(live.root, name, 2, canary)
    live.load(name)
    live.label(name, stable=1, canary=2)


def test_reports_and_labels_are_of_both_processes(live: LiveServer, tmp_path: Path):
    serve_scorers(live, "counted", Scorer())
    live.split("counted", stable=1, canary=1)
    answers = send(live, "counted", 240)
    assert all(isinstance(answer, Answer) for answer in answers)

    def counted() -> list[int]:
        report = live.report("counted")
        return [report[version].requests for version in sorted(report)]

    own = [sum(answer.version == version for answer in answers) for version in (1, 2)]
    wait_until(lambda: counted() == own, "both processes have told what they counted")
    rows = [f"card-{n},{int((n % 90) > 45)}" for n in range(240)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *rows]) + "\n")
    told = tensorferry("feedback", tmp_path / "labels.csv", "--name", "counted", "--server", live.address)
    assert "240" in told
    assert [live.report("counted")[version].labelled for version in (1, 2)] == own
    assert live.report("counted")[1].auc.value == pytest.approx(1.0)


def test_guards_count_both_processes(live: LiveServer):
    serve_scorers(live, "broken", Scorer("raising"))
    live.start_canary("broken", "canary", [0.2, 1.0], 10_000)
    outcomes: list[Outcome] = []
    while (canary := live.status("broken").canary).state == rollout_pb2.Canary.RUNNING:
        assert len(outcomes) < 5_000, live.report("broken")
        outcomes += send(live, "broken", 48, first=len(outcomes))
    failed = sum(isinstance(outcome, grpc.StatusCode) for outcome in outcomes)
    assert "error rate" in canary.reason
    # What a look counts is half a dozen calls behind, and one process alone has half of them.
    assert failed <= 200, f"{failed} failed calls: {canary.reason}"
    wait_until(lambda: live.report("broken")[2].errors == failed, "both processes have told their errors")
    assert live.report("broken")[1].errors == 0
    assert {answer.version for answer in send(live, "broken", 48)} == {1}


def test_a_process_that_is_killed_comes_back_with_the_same_models_and_rollouts(
    live: LiveServer, tmp_path: Path
):
    prepare_for_the_kill(live, tmp_path)

    def found() -> list[set[Outcome]]:
        return [
            everywhere(live, "tuned"),
            everywhere(live, "guest"),
            everywhere(live, "withdrawn"),
            everywhere(live, "rolled"),
            everywhere(live, "rolled", key="card-1"),
            everywhere(live, "rolled", label="canary"),
            everywhere(live, "refused"),
            everywhere(live, "kept"),
        ]

    before, rollout = found(), live.status("rolled")
    assert before[0] == {Answer(1, 2.0)}
    assert before[1] == {Answer(5, 8.0)}
    assert before[2] == {grpc.StatusCode.NOT_FOUND}
    assert before[3] == {Answer(1, 2.0), Answer(2, 3.0)}
    old = sorted(children(live.process.pid))
    os.kill(old[0], signal.SIGKILL)
    wait_until(lambda: is_whole(live, old), "the process has come back")
    with contextlib.suppress(grpc.RpcError):
        live.status("kept")  # the connection may have been the killed process's: it is made anew
    assert found() == before
    with connections(live) as stubs:
        config = pb.ModelConfigRequest(name="tuned")
        assert {stub.ModelConfig(config).config.max_batch_size for stub in stubs} == {4}
        index = pb.RepositoryIndexRequest()
        lines = [each for stub in stubs for each in stub.RepositoryIndex(index).models]
        assert {(each.version, each.state) for each in lines if each.name == "guest"} == {("5", "READY")}
    assert live.status("rolled") == rollout
    # What was tried when it died may have killed it.
    suspect = live.status("suspect").canary
    assert suspect.state == rollout_pb2.Canary.ROLLED_BACK
    assert "died" in suspect.reason
    assert everywhere(live, "suspect") == {Answer(1, 2.0)}
    # And it takes part in what comes after.
    tensorferry("rollback", "rolled", "--server", live.address)
    assert everywhere(live, "rolled") == {Answer(1, 2.0)}


def prepare_for_the_kill(live: LiveServer, scratch: Path) -> None:
    """Load a model with a configuration, one with files; withdraw one, divide one, have a version refused.

    And start a canary, of ``suspect``.
    """
    for name in ("tuned", "withdrawn"):
        write_plus(live.root, name, 1)
        live.load(name)
    live.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="withdrawn"))
    save(Plus(7.0), scratch / "model.pt")
    tensor = {"data_type": "TYPE_FP32", "dims": [1]}
    config = {
        "max_batch_size": 4,
        "input": [{"name": "x", **tensor}],
        "output": [{"name": "y", **tensor}],
    }
    files = {"file:5/model.pt": (scratch / "model.pt").read_bytes()}
    with triton.InferenceServerClient(live.address) as client:
        client.load_model("tuned", config=json.dumps(config))
        client.load_model("guest", config=json.dumps(config), files=files)
    write_plus(live.root, "rolled", 1, 2)
    live.load("rolled")
    live.label("rolled", stable=1, canary=2)
    live.split("rolled", stable=1, canary=1)
    write_plus(live.root, "refused", 1)
    live.load("refused")
    (live.root / "refused" / "2").mkdir()
    (live.root / "refused" / "2" / "model.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(grpc.RpcError, match="TorchScript"):
        live.load("refused")
    write_plus(live.root, "suspect", 1, 2)
    live.load("suspect")
    live.label("suspect", stable=1, canary=2)
    live.start_canary("suspect", "canary", [0.5, 1.0], 10**6)


def is_whole(live: LiveServer, before: list[int]) -> bool:
    now = sorted(children(live.process.pid))
    return (
        len(now) == PROCESSES
        and now != before
        and fetch(live.process.http_address, "/healthz/ready")[0] == 200
    )
