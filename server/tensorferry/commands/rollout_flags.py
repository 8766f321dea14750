"""The arguments of ``tensorferry rollout`` and ``rollback``, and the requests that they ask for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tensorferry.commands.rollout_client import add_server_flags
from tensorferry.errors import ConfigurationError

if TYPE_CHECKING:
    from tensorferry.wire import rollout_pb2 as pb

__all__ = ["add_flags", "add_rollback_flags", "change_request"]


def add_flags(parser: argparse.ArgumentParser, server: str) -> None:
    """Declare ``rollout``'s commands; ``server`` is the one that is asked unless told otherwise."""
    commands = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    _command(commands, server, "status", "labels, split, canary, shadow, and the last changes")
    _command(commands, server, "report", "requests, latency, scores and AUC of each version")
    _command(commands, server, "promote", "make the canary stable now")
    label = _command(commands, server, "label", "point a label at a version")
    label.add_argument("label", metavar="LABEL", help="such as stable")
    label.add_argument("version", metavar="VERSION", type=int, nargs="?")
    label.add_argument("--remove", action="store_true", help="remove the label")
    split = _command(commands, server, "split", "divide the requests by weight")
    split.add_argument("shares", metavar="TARGET=WEIGHT", nargs="*", help="a version or label, and a weight")
    split.add_argument("--clear", action="store_true", help="all to stable again")
    shadow = _command(commands, server, "shadow", "give a version copies of requests")
    shadow.add_argument("target", metavar="TARGET", nargs="?", help="a version or label")
    shadow.add_argument("--share", type=_share, default=1.0, help="such as 10%%; default: all")
    shadow.add_argument("--off", action="store_true", help="end the shadow")
    _add_canary_flags(_command(commands, server, "canary", "take a version to stable step by step, guarded"))


def add_rollback_flags(parser: argparse.ArgumentParser, server: str) -> None:
    """Declare ``rollback``'s arguments."""
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    parser.add_argument("--reason", default="", help="is kept with the change")
    add_server_flags(parser, server)


def change_request(parsed: argparse.Namespace) -> pb.ChangeRolloutRequest:
    """Return the change that the arguments ask for.

    Raises:
        ConfigurationError: they contradict each other, or lack something.
    """
    from tensorferry.wire import rollout_pb2 as pb

    request = pb.ChangeRolloutRequest(model_name=parsed.model)
    _CHANGES[parsed.what](parsed, request)
    return request


def _label(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    if (parsed.version is None) is not parsed.remove:
        raise ConfigurationError("rollout label: give a VERSION, or --remove")
    if parsed.version is not None and parsed.version < 1:
        raise ConfigurationError(f"rollout label: {parsed.version} is no version; the first is 1")
    request.set_label.label = parsed.label
    request.set_label.version = parsed.version or 0


def _split(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    if bool(parsed.shares) is parsed.clear:
        raise ConfigurationError("rollout split: give shares such as stable=90 canary=10, or --clear")
    request.set_split.SetInParent()
    for text in parsed.shares:
        target, _, weight = text.partition("=")
        try:
            request.set_split.shares.add(target=target, weight=float(weight.removesuffix("%")))
        except ValueError:
            raise ConfigurationError(f"rollout split: {text!r} is no share; write TARGET=WEIGHT") from None


def _shadow(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    if (parsed.target is None) is not parsed.off:
        raise ConfigurationError("rollout shadow: give a TARGET, or --off")
    request.set_shadow.SetInParent()
    if parsed.target is not None:
        request.set_shadow.shadow.target = parsed.target
        request.set_shadow.shadow.share = parsed.share


def _canary(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    canary = request.start_canary
    canary.target = parsed.to
    # What isn't given is left out: the server has the defaults.
    canary.steps.extend(parsed.steps or ())
    canary.step_requests = parsed.step_requests or 0
    canary.step_s = parsed.step_seconds or 0.0
    canary.guards.max_error_rate_increase = parsed.max_error_rate_increase or 0.0
    canary.guards.max_p99_ratio = parsed.max_p99_ratio or 0.0
    canary.guards.max_score_shift = parsed.max_score_shift or 0.0
    canary.guards.min_requests = parsed.min_requests or 0
    canary.guards.score_output = parsed.score_output or ""


def _promote(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    request.promote.SetInParent()


def _rollback(parsed: argparse.Namespace, request: pb.ChangeRolloutRequest) -> None:
    request.rollback.reason = parsed.reason
    request.rollback.SetInParent()


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], server: str, name: str, what: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    add_server_flags(parser, server)
    return parser


def _add_canary_flags(parser: argparse.ArgumentParser) -> None:
    def add(flag: str, kind: Callable[[str], object], metavar: str, text: str) -> None:
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)

    parser.add_argument("--to", required=True, metavar="TARGET", help="the version, or a label on it")
    add("--steps", _shares, "SHARES", "ascending shares of the requests; default: 1%%,10%%,50%%,100%%")
    add("--step-requests", _count, "N", "answers of the canary that a step lasts; default: 100")
    add("--step-seconds", _number, "S", "seconds that a step lasts at least; default: 0")
    add("--max-error-rate-increase", _share, "SHARE", "errors above stable's; default: 1%%")
    add("--max-p99-ratio", _number, "RATIO", "p99 to stable's; default: 1.5")
    add("--max-score-shift", _number, "DISTANCE", "Kolmogorov-Smirnov, to stable's scores; default: 0.2")
    add("--min-requests", _count, "N", "answers before p99 and scores are judged; default: 100")
    add("--score-output", str, "NAME", "default: the first output of floating point")
    parser.add_argument(
        "--wait", action="store_true", help="follow it to its end; exit status 1 if it is rolled back"
    )


def _share(text: str) -> float:
    """Return a share of the requests: "10%" or "0.1"."""
    value = _number(text.removesuffix("%"))
    share = value / 100 if text.endswith("%") else value
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 10% or 0.1; above 0, at most 100%")
    return share


def _shares(text: str) -> list[float]:
    return [_share(part.strip()) for part in text.split(",")]


def _number(text: str) -> float:
    """Return a number above 0: 0 on the wire means the default, which nobody asked for who gives one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


_CHANGES: Final[dict[str, Callable[[argparse.Namespace, pb.ChangeRolloutRequest], None]]] = {
    "label": _label,
    "split": _split,
    "shadow": _shadow,
    "canary": _canary,
    "promote": _promote,
    "rollback": _rollback,
}
