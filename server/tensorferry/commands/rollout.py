"""``tensorferry rollout`` and ``tensorferry rollback``: who answers whom, asked of a server that runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from tensorferry.commands.rollout_client import CallFailed, RolloutServer, connected
from tensorferry.commands.rollout_flags import change_request

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tensorferry.rollout.state import Rollout
    from tensorferry.wire import rollout_pb2 as pb

__all__ = ["follow", "run", "run_rollback"]

_POLL_S: Final = 0.5
#: How long a canary is followed though the server doesn't answer: long enough for a restart.
_PATIENCE_S: Final = 60.0


def run(parsed: argparse.Namespace) -> int:
    """Ask a server for a model's rollout, or change it. Changes take effect on the next request."""
    if parsed.what in ("status", "report"):
        return _asked(parsed, _status if parsed.what == "status" else _report)
    # The request is made before anybody is asked: what is wrong in the call comes first.
    return _asked(parsed, partial(_change, change_request(parsed)))


def run_rollback(parsed: argparse.Namespace) -> int:
    """Take a model back: end a canary or a split, else move stable to the version before."""
    parsed.what = "rollback"
    return _asked(parsed, partial(_change, change_request(parsed)))


def follow(
    server: RolloutServer,
    model: str,
    started: Rollout,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Rollout:
    """Follow the canary that runs in ``started`` until it ends; return the rollout then.

    Says every event that comes. Raises ``CallFailed`` if the server is silent for a minute.
    """
    from tensorferry.commands.rollout_status import event_text
    from tensorferry.rollout.messages import rollout_from

    seen = rollout = started
    silent_s = 0.0
    while rollout.running is not None:
        if rollout is not started or silent_s:
            sleep(_POLL_S)
        try:
            rollout = rollout_from(server.status(model).rollout)
        except CallFailed:
            if silent_s >= _PATIENCE_S:
                raise
            silent_s += _POLL_S
            continue
        silent_s = 0.0
        fresh = min(max(rollout.generation - seen.generation, 0), len(rollout.history))
        for event in rollout.history[len(rollout.history) - fresh :]:
            say(event_text(event))
        seen = rollout
    return rollout


def _asked(parsed: argparse.Namespace, ask: Callable[[argparse.Namespace, RolloutServer], int]) -> int:
    try:
        with connected(parsed) as server:
            return ask(parsed, server)
    except CallFailed as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        return 1


def _status(parsed: argparse.Namespace, server: RolloutServer) -> int:
    _show(parsed, server.status(parsed.model))
    return 0


def _report(parsed: argparse.Namespace, server: RolloutServer) -> int:
    from tensorferry.commands import rollout_report
    from tensorferry.rollout.messages import rollout_from

    report = server.report(parsed.model)
    if parsed.json:
        print(_as_json(report))
    else:
        rollout = rollout_from(server.status(parsed.model).rollout)
        print(rollout_report.as_text(report, rollout))
    return 0


def _change(request: pb.ChangeRolloutRequest, parsed: argparse.Namespace, server: RolloutServer) -> int:
    status = server.change(request)
    if parsed.what == "canary" and parsed.wait:
        return _wait(parsed, server, status)
    _show(parsed, status, is_brief=True)
    return 0


def _wait(parsed: argparse.Namespace, server: RolloutServer, status: pb.RolloutStatusResponse) -> int:
    from tensorferry.commands.rollout_status import event_text
    from tensorferry.rollout.messages import rollout_from
    from tensorferry.rollout.state import CanaryState

    def say(text: str) -> None:
        print(text, file=sys.stderr if parsed.json else sys.stdout, flush=True)

    started = rollout_from(status.rollout)
    for event in started.history[-1:]:
        say(event_text(event))
    try:
        ended = follow(server, parsed.model, started, say)
    except KeyboardInterrupt:
        print("\nnot followed any more; the canary goes on", file=sys.stderr)
        return 130
    if parsed.json:
        _show(parsed, server.status(parsed.model))
    return 0 if ended.canary is not None and ended.canary.state is CanaryState.PROMOTED else 1


def _show(parsed: argparse.Namespace, status: pb.RolloutStatusResponse, *, is_brief: bool = False) -> None:
    from tensorferry.commands import rollout_status
    from tensorferry.rollout.messages import rollout_from

    rollout = rollout_from(status.rollout)
    if parsed.json:
        print(_as_json(status))
    elif is_brief and rollout.history:
        print(f"{parsed.model}: {rollout.history[-1].what}")
    else:
        print(rollout_status.as_text(parsed.model, rollout, list(status.ready_versions)))


def _as_json(message: Message) -> str:
    from google.protobuf import json_format

    # With every field, so that a script needn't know the defaults of those at 0.
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
