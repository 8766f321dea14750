"""What the service may ask, wherever the coordinator is: the same questions, the same answers."""

from __future__ import annotations

import pytest
from tests.unit.control.support import with_processes
from tests.unit.control.test_coordinator import JSON
from tests.unit.live_support import ask, outcome, with_server, write_version

from tensorferry.control.access import LocalControl
from tensorferry.control.fleet import VersionState
from tensorferry.control.rollout_calls import METHODS, RolloutCalls
from tensorferry.errors import InvalidRequest, NotFound
from tensorferry.wire import rollout_pb2 as pb


def locally(root, use):
    async def used(server):
        control = LocalControl(server.coordinator, RolloutCalls(server.coordinator, server.fleet))
        await use(control, [server.engine])

    with_server(root, used)


def remotely(root, use):
    async def used(parent):
        await use(parent.processes[1].control, parent.engines)

    with_processes(root, used)


@pytest.fixture(params=[locally, remotely], ids=["in this process", "in the parent"])
def with_control(request):
    return request.param


async def answers(engines):
    return {await outcome(ask(engine)) for engine in engines}


def test_the_index_names_every_model_and_version(tmp_path, with_control):
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, name="n")

    async def use(control, engines):
        await control.unload("n", False)
        for engine in engines:
            await engine.wait_retired()
        assert await control.index() == {"m": [VersionState(1, "READY")], "n": []}

    with_control(tmp_path, use)


def test_a_model_is_loaded_with_the_configuration_of_the_request(tmp_path, with_control):
    write_version(tmp_path, 1)

    async def use(control, engines):
        await control.load("m", JSON.replace('"max_batch_size": 4', '"max_batch_size": 3'), {})
        assert {engine.models["m"][1].spec.max_batch_size for engine in engines} == {3}
        await control.load("m", None, {})
        assert {engine.models["m"][1].spec.max_batch_size for engine in engines} == {4}

    with_control(tmp_path, use)


def test_a_model_is_loaded_from_the_files_of_the_request(tmp_path, with_control):
    repository = tmp_path / "repository"
    write_version(repository, 1)
    content = (write_version(tmp_path / "elsewhere", 7) / "model.pt").read_bytes()

    async def use(control, engines):
        await control.load("m", JSON, {"file:7/model.pt": content})
        assert await answers(engines) == {7.0}
        with pytest.raises(InvalidRequest):
            await control.load("m", None, {"file:7/model.pt": content})
        await control.load("m", None, {})
        assert await answers(engines) == {1.0}

    with_control(repository, use)


def test_refusals_keep_their_class(tmp_path, with_control):
    write_version(tmp_path, 1)

    async def use(control, engines):
        with pytest.raises(NotFound, match="'other'"):
            await control.load("other", None, {})
        with pytest.raises(InvalidRequest):
            await control.load("m", "{", {})
        request = METHODS["ChangeRollout"](model_name="m")
        with pytest.raises(InvalidRequest, match="names no change"):
            await control.rollout("ChangeRollout", request.SerializeToString())
        assert await answers(engines) == {1.0}

    with_control(tmp_path, use)


def test_a_rollout_is_changed(tmp_path, with_control):
    for version in (1, 2):
        write_version(tmp_path, version)

    async def use(control, engines):
        change = pb.ChangeRolloutRequest(model_name="m", set_label=pb.SetLabel(label="stable", version=1))
        answer = await control.rollout("ChangeRollout", change.SerializeToString())
        status = pb.RolloutStatusResponse.FromString(answer)
        assert dict(status.rollout.labels) == {"stable": 1}
        assert await answers(engines) == {1.0}

    with_control(tmp_path, use)
