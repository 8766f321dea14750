"""``tensorferry rollout`` and ``rollback``, as an operator calls them."""

from __future__ import annotations

import json

import grpc
import pytest
from tests.unit.commands.rollout_server import RolloutService, serving

from tensorferry import cli
from tensorferry.commands.rollout import follow
from tensorferry.commands.rollout_client import CallFailed
from tensorferry.rollout import changes, messages
from tensorferry.rollout.state import CanaryState, Guards, Shadow, Share
from tensorferry.wire import rollout_pb2 as pb


@pytest.fixture
def service():
    return RolloutService()


@pytest.fixture
def address(service):
    with serving(service) as address:
        yield address


@pytest.fixture
def call(address, capsys):
    """Call the command line with --server; return status, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments, "--server", address])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def wrong(capsys):
    """Call the command line with what no server has to be asked for; return the error."""

    def wrong(*arguments: str) -> str:
        try:
            status = cli.main([*arguments, "--server", "localhost:1"])
        except SystemExit as left:
            status = left.code
        assert status == 2
        return capsys.readouterr().err

    return wrong


def start_canary(service: RolloutService, stable: int = 3, version: str = "4") -> None:
    service.change(changes.set_label, "stable", stable)
    service.change(changes.start_canary, version, (), 0, 0.0, Guards())


# -- changes


def test_a_label_is_set_and_removed(call, service):
    assert call("rollout", "label", "fraud", "stable", "3") == (0, "fraud: stable set to version 3\n", "")
    assert service.rollout.stable == 3
    assert call("rollout", "label", "fraud", "stable", "--remove")[0] == 0
    assert service.rollout.stable == 0


def test_a_split_is_set_and_cleared(call, service):
    service.change(changes.set_label, "stable", 3)
    status, out, _ = call("rollout", "split", "fraud", "stable=90", "4=10%")
    assert (status, out) == (0, "fraud: split set: version 3 (stable) 90 %, version 4 10 %\n")
    assert service.rollout.split == (Share("stable", 90), Share("4", 10))
    assert call("rollout", "split", "fraud", "--clear")[0] == 0
    assert service.rollout.split == ()


@pytest.mark.parametrize(("flags", "share"), [([], 1.0), (["--share=10%"], 0.1), (["--share=0.5"], 0.5)])
def test_a_shadow_is_set_and_ended(call, service, flags, share):
    assert call("rollout", "shadow", "fraud", "4", *flags)[0] == 0
    assert service.rollout.shadow == Shadow("4", pytest.approx(share))
    assert call("rollout", "shadow", "fraud", "--off")[0] == 0
    assert service.rollout.shadow is None


def test_a_canary_starts_with_the_servers_defaults(call, service):
    service.change(changes.set_label, "stable", 3)
    assert call("rollout", "canary", "fraud", "--to", "4")[0] == 0
    canary = service.rollout.running
    assert canary.steps == changes.STEPS
    assert canary.step_requests == changes.STEP_REQUESTS
    assert canary.guards == Guards()
    assert service.requests[-1].start_canary == pb.StartCanary(target="4", guards=pb.Guards())


def test_a_canary_takes_every_flag(call, service):
    service.change(changes.set_label, "stable", 3)
    flags = (
        "--steps=5%,0.25 --step-requests=500 --step-seconds=30 --max-error-rate-increase=2% "
        "--max-p99-ratio=2.5 --max-score-shift=0.3 --min-requests=200 --score-output=score"
    )
    assert call("rollout", "canary", "fraud", "--to", "4", *flags.split())[0] == 0
    canary = service.rollout.running
    assert canary.steps == (0.05, 0.25)
    assert (canary.step_requests, canary.step_s) == (500, 30.0)
    assert canary.guards == Guards(0.02, 2.5, 0.3, 200, "score")


def test_a_canary_is_promoted(call, service):
    start_canary(service)
    status, out, _ = call("rollout", "promote", "fraud")
    assert (status, out) == (0, "fraud: canary of version 4 promoted: stable moved from version 3 to 4\n")


def test_a_rollback_is_one_command_and_says_what_it_did(call, service):
    start_canary(service)
    status, out, _ = call("rollback", "fraud", "--reason", "too many reviews")
    assert status == 0
    assert out == "fraud: canary of version 4 rolled back to stable version 3: too many reviews\n"
    assert service.rollout.canary.reason == "too many reviews"


def test_a_change_prints_the_state_as_json(call):
    _, out, _ = call("rollout", "label", "fraud", "stable", "3", "--json")
    values = json.loads(out)
    assert values["rollout"]["labels"] == {"stable": "3"}
    assert values["rollout"]["generation"] == "1"
    assert values["rollout"]["previous_stable"] == "0"
    assert values["ready_versions"] == ["3"]


# -- what is wrong


def test_what_the_server_refuses_is_said_as_it_says_it(call):
    status, out, err = call("rollout", "promote", "fraud")
    assert (status, out, err) == (1, "", "tensorferry: no canary runs\n")


def test_a_model_that_is_not_there_is_said(call):
    assert call("rollout", "status", "frd")[::2] == (1, "tensorferry: no model 'frd'\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "takes no changes: told so"),
        (grpc.StatusCode.UNAVAILABLE, "told so (UNAVAILABLE)"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "a change may still be made"),
        (grpc.StatusCode.UNIMPLEMENTED, "knows no rollouts"),
    ],
)
def test_errors_of_the_server_say_where_they_come_from(call, service, address, code, said):
    service.fault = (code, "told so")
    status, _, err = call("rollback", "fraud")
    assert status == 1
    assert said in err
    assert address in err


def test_a_server_without_rollouts_is_told_from_one_that_is_away(capsys):
    with serving(None) as address:
        assert cli.main(["rollout", "status", "fraud", "--server", address]) == 1
    assert "knows no rollouts" in capsys.readouterr().err
    assert cli.main(["rollout", "status", "fraud", "--server", address]) == 1
    assert f"no server can be reached at {address}" in capsys.readouterr().err


def test_the_server_may_come_from_the_environment(address, monkeypatch, capsys):
    monkeypatch.setenv("TENSORFERRY_SERVER", address)
    assert cli.main(["rollout", "status", "fraud"]) == 0
    assert "no rollout yet" in capsys.readouterr().out


def test_authorities_that_cannot_be_read_are_said(wrong, tmp_path):
    missing = tmp_path / "ca.pem"
    assert f"--tls-ca {missing}: No such file" in wrong("rollback", "fraud", "--tls-ca", str(missing))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("label fraud stable", "give a VERSION, or --remove"),
        ("label fraud stable 3 --remove", "give a VERSION, or --remove"),
        ("label fraud stable 0", "0 is no version"),
        ("split fraud", "give shares such as"),
        ("split fraud stable=1 --clear", "give shares such as"),
        ("split fraud stable", "'stable' is no share"),
        ("split fraud stable=most", "'stable=most' is no share"),
        ("shadow fraud", "give a TARGET, or --off"),
        ("shadow fraud 4 --off", "give a TARGET, or --off"),
        ("shadow fraud 4 --share 10", "write 10% or 0.1"),
        ("shadow fraud 4 --share 0%", "above 0"),
        ("canary fraud", "--to"),
        ("canary fraud --to 4 --steps 1%,,2%", "no number above 0"),
        ("canary fraud --to 4 --steps 1%,200%", "at most 100%"),
        ("canary fraud --to 4 --step-requests 0", "from 1 up"),
        ("canary fraud --to 4 --max-p99-ratio nan", "no number above 0"),
    ],
)
def test_a_wrong_call_is_said_before_a_server_is_asked(wrong, arguments, said):
    assert said in wrong("rollout", *arguments.split())


# -- following a canary


class Watched:
    """What ``follow`` is given in the place of a clock and a terminal."""

    def __init__(self, script) -> None:
        self.said: list[str] = []
        self.slept_s = 0.0
        self._script = iter(script)

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def status(self, model: str) -> pb.RolloutStatusResponse:
        rollout = next(self._script)
        if rollout is None:
            raise CallFailed("away")
        return pb.RolloutStatusResponse(rollout=messages.rollout_message(rollout))


def lived(service: RolloutService, *changed) -> list:
    """The states of a rollout as changes are made to it."""
    states = [service.rollout]
    for change, *arguments in changed:
        service.change(change, *arguments)
        states.append(service.rollout)
    return states


def test_a_canary_is_followed_to_its_promotion_event_by_event(service):
    start_canary(service)
    first, *later = lived(service, *[[changes.advance]] * 4)
    watched = Watched([first, later[0], later[0], later[2], later[3]])
    ended = follow(watched, "fraud", first, watched.said.append, watched.sleep)
    assert ended.canary.state is CanaryState.PROMOTED
    assert len(watched.said) == 4
    assert "step 2 of 4, 10 % of the requests" in watched.said[0]
    assert "promoted" in watched.said[-1]


def test_a_canary_is_followed_through_a_restart_of_the_server(service):
    start_canary(service)
    first, last = lived(service, [changes.rollback, "p99 of 9 ms"])
    watched = Watched([None] * 10 + [first] + [None] * 100 + [last])
    ended = follow(watched, "fraud", first, watched.said.append, watched.sleep)
    assert ended.canary.state is CanaryState.ROLLED_BACK
    assert "p99 of 9 ms" in watched.said[0]


def test_a_server_that_stays_away_ends_the_following(service):
    start_canary(service)
    watched = Watched([None] * 1000)
    with pytest.raises(CallFailed, match="away"):
        follow(watched, "fraud", service.rollout, watched.said.append, watched.sleep)
    assert watched.slept_s == 60.0


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ((changes.promote,), 0, "stable moved from version 3 to 4"),
        ((changes.rollback, "scores shifted by 0.4"), 1, "scores shifted by 0.4"),
    ],
)
def test_wait_has_the_exit_status_of_the_canarys_end(call, service, end, status, said):
    service.change(changes.set_label, "stable", 3)
    service.on_status = lambda: service.change(*end) if service.rollout.running else None
    done, out, _ = call("rollout", "canary", "fraud", "--to", "4", "--wait")
    assert done == status
    assert "canary of version 4 started" in out.splitlines()[0]
    assert said in out


def test_wait_with_json_prints_the_last_state_alone(call, service):
    service.change(changes.set_label, "stable", 3)
    service.on_status = lambda: service.change(changes.promote) if service.rollout.running else None
    _, out, err = call("rollout", "canary", "fraud", "--to", "4", "--wait", "--json")
    assert json.loads(out)["rollout"]["canary"]["state"] == "PROMOTED"
    assert "promoted" in err


# -- status


def test_status_says_who_answers_what_runs_and_what_happened(call, service):
    start_canary(service)
    service.change(changes.set_shadow, Shadow("5", 0.1))
    _, out, _ = call("rollout", "status", "fraud")
    assert out.splitlines() == [
        "fraud: change 3",
        "  ready    3, 4, 5",
        "  labels   canary -> 4, stable -> 3",
        "  requests 1 % to version 4 (canary), 99 % to version 3 (stable)",
        "  canary   version 4 runs, step 1 of 4: [1 %], 10 %, 50 %, 100 %; a step lasts 100 of its answers",
        "  guards   errors at most 1 % above stable's, p99 at most 1.5 x stable's, score shift at most 0.2;",
        "           p99 and scores from 100 answers on",
        "  shadow   version 5 gets copies of 10 % of the requests",
        "  rollback would end the canary: all to version 3",
        "",
        "last changes (UTC), newest first:",
        "  2023-11-14 22:13:20  version 5 shadows 10 % of the requests",
        "  2023-11-14 22:13:20  canary of version 4 started beside stable version 3: step 1 of 4, 1 % of the",
        "                       requests",
        "  2023-11-14 22:13:20  stable set to version 3",
    ]


def test_status_says_why_the_last_canary_was_rolled_back(call, service):
    start_canary(service)
    service.change(changes.rollback, "scores shifted by 0.4")
    _, out, _ = call("rollout", "status", "fraud")
    assert "canary   version 4 was rolled back to version 3: scores shifted by 0.4" in out
    assert "rollback nowhere to go" in out


def test_no_line_of_a_status_is_wider_than_100_columns(call, service):
    start_canary(service)
    service.change(changes.rollback, "word " * 99)
    for number in range(30):
        service.change(changes.set_label, f"label-{number}", 3)
    _, out, _ = call("rollout", "status", "fraud")
    assert max(map(len, out.splitlines())) <= 100
