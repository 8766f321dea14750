"""The calls of the service ModelRollout: bytes in, bytes out."""

from __future__ import annotations

import pytest
from tests.unit.live_support import ALL, CONFIG, ask, with_server, write_version

from tensorferry.control.rollout_calls import METHODS, RolloutCalls
from tensorferry.errors import InvalidRequest, NotFound
from tensorferry.rollout.store import RolloutStore
from tensorferry.wire import rollout_pb2 as pb


class Caller:
    """Calls the methods with messages."""

    def __init__(self, server) -> None:
        self.server = server
        self._calls = RolloutCalls(server.coordinator, server.fleet)

    async def call(self, method, response, **fields):
        request = METHODS[method](model_name=fields.pop("model_name", "m"), **fields)
        return response.FromString(await self._calls.call(method, request.SerializeToString()))

    async def change(self, **fields):
        return await self.call("ChangeRollout", pb.RolloutStatusResponse, **fields)

    async def label(self, label, version):
        return await self.change(set_label=pb.SetLabel(label=label, version=version))

    async def status(self, **fields):
        return await self.call("RolloutStatus", pb.RolloutStatusResponse, **fields)

    async def report(self):
        return await self.call("RolloutReport", pb.RolloutReportResponse)

    async def feedback(self, *labels, **fields):
        told = [pb.Label(key=key, value=value) for key, value in labels]
        return await self.call("RolloutFeedback", pb.RolloutFeedbackResponse, labels=told, **fields)

    async def send(self, count):
        for number in range(count):
            await ask(self.server.engine, version="1", key=f"one-{number}".encode())
            await ask(self.server.engine, version="2", key=f"two-{number}".encode())


def with_calls(root, use):
    """Run ``use`` with a caller of a server with the versions 1, 2 and 3."""
    for version in (1, 2, 3):
        write_version(root, version, config=CONFIG + ALL)

    async def called(server):
        await use(Caller(server))

    with_server(root, called)


def test_every_change_has_its_message(tmp_path):
    async def use(caller):
        status = await caller.label("stable", 1)
        assert dict(status.rollout.labels) == {"stable": 1}
        assert list(status.ready_versions) == [1, 2, 3]
        shares = [pb.Share(target="1", weight=3), pb.Share(target="2", weight=1)]
        status = await caller.change(set_split=pb.SetSplit(shares=shares))
        assert [(each.target, each.weight) for each in status.rollout.split] == [("1", 3), ("2", 1)]
        status = await caller.change(set_split=pb.SetSplit())
        assert not status.rollout.split
        status = await caller.change(set_shadow=pb.SetShadow(shadow=pb.Shadow(target="3", share=0.5)))
        assert status.rollout.shadow.target == "3"
        status = await caller.change(set_shadow=pb.SetShadow())
        assert not status.rollout.HasField("shadow")
        status = await caller.change(start_canary=pb.StartCanary(target="2"))
        assert (status.rollout.canary.version, list(status.rollout.canary.steps)) == (2, [0.01, 0.1, 0.5, 1])
        status = await caller.change(promote=pb.Promote())
        assert dict(status.rollout.labels)["stable"] == 2
        status = await caller.change(rollback=pb.Rollback())
        assert dict(status.rollout.labels)["stable"] == 1
        assert status.rollout.history[-1].what.endswith("asked for")
        assert (await caller.status()).rollout == status.rollout
        assert RolloutStore(tmp_path / "m").read().generation == status.rollout.generation
        assert await ask(caller.server.engine) == 1

    with_calls(tmp_path, use)


def test_the_reason_of_a_rollback_is_kept(tmp_path):
    async def use(caller):
        await caller.label("stable", 1)
        await caller.change(start_canary=pb.StartCanary(target="2"))
        status = await caller.change(rollback=pb.Rollback(reason="it looks odd"))
        assert status.rollout.canary.reason == "it looks odd"

    with_calls(tmp_path, use)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, InvalidRequest),
        ({"set_label": pb.SetLabel(label="stable", version=9)}, NotFound),
        ({"set_label": pb.SetLabel(label="stable", version=1), "model_name": "other"}, NotFound),
        ({"rollback": pb.Rollback(), "model_name": "other"}, NotFound),
        ({"promote": pb.Promote()}, InvalidRequest),
        ({"rollback": pb.Rollback()}, InvalidRequest),
        ({"start_canary": pb.StartCanary(target="2")}, InvalidRequest),
    ],
)
def test_a_change_that_can_not_be_made_is_refused_and_changes_nothing(tmp_path, fields, error):
    async def use(caller):
        with pytest.raises(error):
            await caller.change(**fields)
        assert (await caller.status()).rollout.generation == 0
        assert not (tmp_path / "m" / "rollout.json").exists()

    with_calls(tmp_path, use)


def test_the_status_of_an_unknown_model_is_not_found(tmp_path):
    async def use(caller):
        with pytest.raises(NotFound):
            await caller.status(model_name="other")

    with_calls(tmp_path, use)


def test_a_report_compares_the_arms(tmp_path):
    async def use(caller):
        await caller.label("stable", 1)
        assert not (await caller.report()).arms
        await caller.change(start_canary=pb.StartCanary(target="2", steps=[0.25, 1.0]))
        await caller.send(20)
        assert (await caller.feedback(("one-0", 1), ("one-1", 0), ("two-3", 1), ("nobody", 1))).matched == 3
        one, two = (await caller.report()).arms
        told = [(arm.version, arm.requests, arm.share) for arm in (one, two)]
        assert told == [(1, 20, 0.75), (2, 20, 0.25)]
        assert [arm.labelled for arm in (one, two)] == [2, 1]
        assert one.HasField("auc")
        assert not two.HasField("auc")  # of one class alone there is none
        assert [arm.score_mean for arm in (one, two)] == [1.0, 2.0]
        assert one.latency_p50_ms > 0

    with_calls(tmp_path, use)


def test_a_report_has_a_line_for_the_shadow(tmp_path):
    async def use(caller):
        await caller.label("stable", 1)
        await caller.change(set_shadow=pb.SetShadow(shadow=pb.Shadow(target="3", share=1.0)))
        for _ in range(5):
            await ask(caller.server.engine)
        await caller.server.engine.wait_idle()
        one, three = (await caller.report()).arms
        assert (one.version, one.is_shadow, one.requests) == (1, False, 5)
        assert (three.version, three.is_shadow) == (3, True)
        assert three.compared + three.dropped == 5

    with_calls(tmp_path, use)


def test_labels_that_are_neither_0_nor_1_are_refused(tmp_path):
    async def use(caller):
        with pytest.raises(InvalidRequest, match="0 or 1"):
            await caller.feedback(("one-0", 2))
        with pytest.raises(NotFound):
            await caller.feedback(("one-0", 1), model_name="other")

    with_calls(tmp_path, use)
