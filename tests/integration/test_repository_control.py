"""Models are loaded, swapped and withdrawn by request: Triton's client, against a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.integration.conftest import Served
from tests.integration.live import (
    LiveServer,
    Plus,
    Scorer,
    answer_of,
    request,
    started,
    wait_for,
    write_config,
    write_plus,
    write_version,
)
from tests.integration.support import PATIENCE_S, error_of
from tritonclient.utils import InferenceServerException

from tensorferry.testing.models import Identity, save
from tensorferry.testing.process import ServerProcess
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

Client = triton.InferenceServerClient
EXPLICIT = ("--model-control-mode", "explicit")

SWAPS = 20
CALLERS = 4


@pytest.fixture(scope="module")
def live(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that loads by request, and serves ``kept`` from the start but not ``other``."""
    directory = tmp_path_factory.mktemp(f"control-{transport}")
    write_plus(directory / "models", "kept", 1)
    write_plus(directory / "models", "other", 1)
    flags = (*EXPLICIT, "--load-model", "kept", "--transport", transport)
    with started(directory / "models", directory / "log", *flags) as server:
        yield server


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.address) as opened:
        yield opened


def infer(client: Client, model: str, x: float, rows: int = 1) -> tuple[str, float]:
    """Return the version that answered, and its first number."""
    given = triton.InferInput("x", [rows, 1], "FP32")
    given.set_data_from_numpy(np.full((rows, 1), x, np.float32))
    result = client.infer(model, [given])
    return result.get_response().model_version, float(result.as_numpy("y")[0, 0])


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Run a call of Triton's client that must be refused; return the status and what it says."""
    with pytest.raises(InferenceServerException) as refused:
        call()
    return str(refused.value.status()).removeprefix("StatusCode."), refused.value.message()


def test_at_the_start_only_what_load_model_names_is_loaded(live: LiveServer, client: Client):
    assert live.index("kept") == {1: ("READY", "")}
    assert live.index("other") == {0: ("UNAVAILABLE", "not loaded")}
    assert client.is_server_ready()
    status, message = refusal(lambda: infer(client, "other", 1.0))
    assert status == "NOT_FOUND"
    assert "'other'" in message
    ready = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "kept", "version": "1", "state": "READY"} in ready


def test_a_model_is_loaded_unloaded_and_loaded_again(live: LiveServer, client: Client):
    write_plus(live.root, "again", 1)
    for _ in range(2):
        client.load_model("again")
        assert client.is_model_ready("again")
        assert infer(client, "again", 5.0) == ("1", 6.0)
        client.unload_model("again")
        assert live.ready("again") == []
        assert refusal(lambda: infer(client, "again", 5.0))[0] == "NOT_FOUND"
    assert live.index("again") == {0: ("UNAVAILABLE", "not loaded")}
    client.unload_model("again")  # as Triton: no error
    assert infer(client, "kept", 1.0) == ("1", 2.0)


def test_the_servers_own_configuration_can_be_changed_and_sent_back(live: LiveServer, client: Client):
    write_plus(live.root, "tuned", 1)
    client.load_model("tuned")
    own = client.get_model_config("tuned", as_json=True)["config"]
    assert own["max_batch_size"] == 16
    client.load_model("tuned", config=json.dumps({**own, "max_batch_size": 4}))
    assert client.get_model_config("tuned", as_json=True)["config"]["max_batch_size"] == 4
    assert infer(client, "tuned", 1.0, rows=4) == ("1", 2.0)
    assert refusal(lambda: infer(client, "tuned", 1.0, rows=5))[0] == "INVALID_ARGUMENT"
    client.load_model("tuned")
    assert infer(client, "tuned", 1.0, rows=16) == ("1", 2.0)


def test_files_of_the_request_stand_in_for_the_repositorys_until_the_next_load(
    live: LiveServer, client: Client, tmp_path: Path
):
    write_plus(live.root, "given", 1)
    save(Plus(100.0), tmp_path / "model.pt")
    files = {"file:1/model.pt": (tmp_path / "model.pt").read_bytes()}
    client.load_model("given", config=json.dumps({"max_batch_size": 4}), files=files)
    tensor = client.get_model_metadata("given").inputs[0].name
    given = triton.InferInput(tensor, [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), np.float32))
    result = client.infer("given", [given])
    assert result.as_numpy(result.get_response().outputs[0].name).tolist() == [[101.0]]
    client.load_model("given")
    assert infer(client, "given", 1.0) == ("1", 2.0)


def test_a_model_that_the_repository_lacks_is_served_from_the_requests_files(
    client: Client, live: LiveServer, tmp_path: Path
):
    save(Plus(7.0), tmp_path / "model.pt")
    config = {
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["1"]}],
    }
    files = {"file:3/model.pt": (tmp_path / "model.pt").read_bytes()}
    client.load_model("guest", config=json.dumps(config), files=files)
    assert infer(client, "guest", 1.0) == ("3", 8.0)
    assert live.ready("guest") == [3]
    client.unload_model("guest")
    assert live.index("guest") == {}
    assert refusal(lambda: client.load_model("guest"))[0] == "NOT_FOUND"


def test_unload_dependents_takes_an_ensembles_models_with_it(live: LiveServer, client: Client):
    for name in ("first", "second"):
        write_plus(live.root, name, 1)
    maps = 'input_map {{ key: "x" value: "{}" }} output_map {{ key: "y" value: "{}" }}'
    step = 'step {{ model_name: "{}" ' + maps + " }}"
    steps = f"{step.format('first', 'x', 'z')} {step.format('second', 'z', 'y')}"
    (live.root / "both" / "1").mkdir(parents=True)
    (live.root / "both" / "config.pbtxt").write_text(
        'platform: "ensemble" max_batch_size: 16\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
        f"ensemble_scheduling {{ {steps} }}"
    )
    for name in ("first", "second", "both"):
        client.load_model(name)
    assert infer(client, "both", 1.0) == ("1", 3.0)
    client.unload_model("both")
    assert [live.ready(name) for name in ("both", "first", "second")] == [[], [1], [1]]
    client.load_model("both")
    client.unload_model("both", unload_dependents=True)
    assert [live.ready(name) for name in ("both", "first", "second", "kept")] == [[], [], [], [1]]


# -- what is refused --------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found_and_the_message_says_where_it_was_looked_for(
    live: LiveServer, client: Client
):
    status, message = refusal(lambda: client.load_model("nowhere"))
    assert status == "NOT_FOUND"
    assert "'nowhere'" in message
    assert str(live.root) in message


@pytest.mark.parametrize("name", ["../models", "a/b", ".hidden", ""])
def test_what_is_no_models_name_is_refused(client: Client, name: str):
    assert refusal(lambda: client.load_model(name))[0] == "INVALID_ARGUMENT"


def test_a_bad_configuration_names_the_field_and_its_line_and_changes_nothing(
    live: LiveServer, client: Client
):
    status, message = refusal(
        lambda: client.load_model("kept", config='{\n "max_batch_size": 4,\n "max_batchsize": 8\n}')
    )
    assert status == "INVALID_ARGUMENT"
    assert "max_batchsize" in message
    assert ":3:" in message, "the line is named"
    assert client.get_model_config("kept", as_json=True)["config"]["max_batch_size"] == 16
    assert infer(client, "kept", 1.0, rows=16) == ("1", 2.0)


def test_files_without_a_configuration_or_outside_the_model_are_refused(live: LiveServer, client: Client):
    config = json.dumps({"max_batch_size": 4})
    load = pb.RepositoryModelLoadRequest(model_name="kept")
    load.parameters["file:1/model.pt"].bytes_param = b"no model"
    refused = error_of(lambda: live.stub.RepositoryModelLoad(load))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'config'" in refused.details()
    outside = {"file:../kept/1/model.pt": b"no model"}
    status, message = refusal(lambda: client.load_model("kept", config=config, files=outside))
    assert status == "INVALID_ARGUMENT"
    assert "inside the model's directory" in message
    assert infer(client, "kept", 1.0) == ("1", 2.0)


def test_unknown_parameters_and_repositories_are_refused(live: LiveServer):
    load = pb.RepositoryModelLoadRequest(model_name="kept")
    load.parameters["priority"].int64_param = 1
    unload = pb.RepositoryModelUnloadRequest(model_name="kept")
    unload.parameters["unload_dependants"].bool_param = True
    elsewhere = pb.RepositoryModelUnloadRequest(model_name="kept", repository_name="elsewhere")
    for call, word in (
        (lambda: live.stub.RepositoryModelLoad(load), "'priority'"),
        (lambda: live.stub.RepositoryModelUnload(unload), "'unload_dependants'"),
        (lambda: live.stub.RepositoryModelUnload(elsewhere), "repository_name"),
    ):
        refused = error_of(call)
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert word in refused.details()
    assert live.ready("kept") == [1]


@pytest.mark.parametrize("broken", ["file", "warm-up", "golden"])
def test_a_version_that_fails_never_replaces_the_good_one(live: LiveServer, client: Client, broken: str):
    name = f"guarded-{broken}"
    write_plus(live.root, name, 1)
    client.load_model(name)
    directory = live.root / name / "2"
    word = {"file": "TorchScript", "warm-up": "batch of 1 rows", "golden": "golden"}[broken]
    if broken == "file":
        directory.mkdir()
        (directory / "model.pt").write_bytes(b"PK\x03\x04 cut short")
    elif broken == "warm-up":
        save(TwoWide(), directory / "model.pt")
    else:
        save(Plus(2.0), directory / "model.pt")
        inputs, outputs = np.ones((1, 1), np.float32), np.full((1, 1), 9.0, np.float32)
        np.savez(directory / "golden.npz", **{"inputs/x": inputs, "outputs/y": outputs})
    for _ in range(2):
        status, message = refusal(lambda: client.load_model(name))
        assert word in message, (status, message)
        assert infer(client, name, 1.0) == ("1", 2.0)
        assert live.ready(name) == [1]
    shutil.rmtree(directory)
    write_version(live.root, name, 2, Plus(2.0))
    client.load_model(name)
    assert infer(client, name, 1.0) == ("2", 3.0)


class TwoWide(Identity):
    """Takes no input of one column."""

    def forward(self, x):
        return x[:, 1:2] * x.view(-1, 2)


@pytest.mark.parametrize("service", ["control", "rollout"])
def test_a_server_without_control_refuses_changes_and_says_how_to_start_it(server: Served, service: str):
    with grpc.insecure_channel(server.grpc) as channel:
        fixed = LiveServer(Path(), server.process, channel)
        if service == "rollout":
            refused = error_of(lambda: fixed.label("mlp", stable=1))
            modes = {"explicit", "poll"}
        else:
            refused = error_of(lambda: fixed.load("mlp"))
            modes = {"explicit"}
            unload = pb.RepositoryModelUnloadRequest(model_name="mlp")
            assert error_of(lambda: fixed.stub.RepositoryModelUnload(unload)).code() is refused.code()
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        told = refused.details().partition("--model-control-mode ")[2]
        assert set(told.split(" or ")) == modes
        assert fixed.ready("mlp") == [1]


# -- which versions ---------------------------------------------------------------------------------


def test_the_version_policy_says_which_versions_are_served(live: LiveServer, client: Client):
    policies = {
        "latest": ("version_policy { latest { num_versions: 2 } }", [3, 5]),
        "all": ("version_policy { all { } }", [1, 3, 5]),
        "specific": ("version_policy { specific { versions: [1, 3] } }", [1, 3]),
    }
    for policy, (text, expected) in policies.items():
        write_plus(live.root, f"policy-{policy}", 1, 3, 5, options=text)
        client.load_model(f"policy-{policy}")
        assert live.ready(f"policy-{policy}") == expected
        assert infer(client, f"policy-{policy}", 0.0) == (str(expected[-1]), float(expected[-1]))
        assert live.infer(f"policy-{policy}", version=str(expected[0])).y == expected[0]
    missing = error_of(lambda: live.infer("policy-latest", version="1"))
    assert missing.code() is grpc.StatusCode.NOT_FOUND
    assert "3" in missing.details()


def test_a_new_version_beside_the_old_ones_leaves_them_as_they_are(live: LiveServer, client: Client):
    write_plus(live.root, "beside", 1, options="version_policy { all { } }")
    client.load_model("beside")
    for _ in range(3):
        live.infer("beside", version="1")
    write_version(live.root, "beside", 2, Plus(2))
    client.load_model("beside")
    assert live.ready("beside") == [1, 2]
    assert infer(client, "beside", 0.0) == ("2", 2.0)
    (statistics,) = client.get_inference_statistics("beside", "1").model_stats
    assert statistics.inference_stats.success.count == 3, "version 1 was loaded anew"


def test_every_model_is_loaded_where_load_model_is_a_star(tmp_path: Path):
    for name in ("one", "two"):
        write_plus(tmp_path / "models", name, 1)
    with started(tmp_path / "models", tmp_path / "log", *EXPLICIT, "--load-model", "*") as server:
        assert [server.ready(name) for name in ("one", "two")] == [[1], [1]]


def test_a_model_that_load_model_names_and_that_is_not_there_is_named_at_the_start(tmp_path: Path):
    write_plus(tmp_path / "models", "here", 1)
    flags = (*EXPLICIT, "--load-model", "nowhere")
    process = ServerProcess(tmp_path / "models", tmp_path / "log", flags=flags)
    process.start()
    try:
        assert process.wait() == 2
    finally:
        process.kill()
    assert "--load-model nowhere" in process.log()
    assert "['here']" in process.log()


# -- swaps under load -------------------------------------------------------------------------------


class Callers:
    """Calls that never cease: of the model that is swapped, and of another."""

    def __init__(self, stub: pb_grpc.GRPCInferenceServiceStub) -> None:
        self.stub = stub
        #: Every call that begins now is answered by this version, or by a later one.
        self.least_version = 1
        self.ends = False
        self.versions: set[int] = set()
        self.calls = {"swapped": 0, "kept": 0}
        self.wrong: list[object] = []

    async def call(self, model: str) -> None:
        """Call a model again and again; note whatever isn't right."""
        while not self.ends:
            x, least = float(self.calls[model]), self.least_version
            self.calls[model] += 1
            try:
                response = await self.stub.ModelInfer(request(model, x), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                self.wrong.append((model, error.code(), error.details()))
                continue
            answer = answer_of(response)
            if answer.y != x + answer.version or (model == "swapped" and answer.version < least):
                self.wrong.append((model, x, least, answer))
            if model == "swapped":
                self.versions.add(answer.version)


def test_no_call_is_lost_or_answered_wrongly_while_a_model_is_swapped(live: LiveServer, run):
    write_plus(live.root, "swapped", 1)

    async def swap() -> Callers:
        async with grpc.aio.insecure_channel(live.address) as channel:
            callers = Callers(pb_grpc.GRPCInferenceServiceStub(channel))
            load = pb.RepositoryModelLoadRequest(model_name="swapped")
            await callers.stub.RepositoryModelLoad(load)
            calls = [asyncio.create_task(callers.call("swapped")) for _ in range(CALLERS)]
            calls.append(asyncio.create_task(callers.call("kept")))
            for version in range(2, SWAPS + 2):
                await asyncio.to_thread(write_version, live.root, "swapped", version, Plus(version))
                await callers.stub.RepositoryModelLoad(load)
                callers.least_version = version
            callers.ends = True
            await asyncio.gather(*calls)
            return callers

    callers = run(swap())
    assert callers.wrong == []
    assert len(callers.versions) > SWAPS // 2
    assert min(callers.calls.values()) > SWAPS, "hardly a call was made"
    wait_for(live, "swapped", [SWAPS + 1])


def test_requests_under_way_are_answered_by_the_version_that_took_them(live: LiveServer, client: Client):
    write_config(live.root, "drained", rows=1)
    write_version(live.root, "drained", 1, Scorer(rounds=400))
    client.load_model("drained")
    calls = [live.stub.ModelInfer.future(request("drained", 1.0), timeout=PATIENCE_S) for _ in range(20)]
    client.unload_model("drained")
    outcomes = [call.exception(PATIENCE_S) for call in calls]
    # Those that the server had taken are answered; one that came after the unload finds no model.
    for error in outcomes:
        assert error is None or error.code() is grpc.StatusCode.NOT_FOUND, error
    assert refusal(lambda: infer(client, "drained", 1.0))[0] == "NOT_FOUND"
