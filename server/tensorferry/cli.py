"""The command line: ``tensorferry serve``, and the commands that prepare, watch and steer it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tensorferry import __version__, config
from tensorferry.commands import (
    bench,
    convert,
    feedback,
    models,
    push,
    rollout,
    rollout_client,
    rollout_flags,
)
from tensorferry.commands import check as checks
from tensorferry.commands import top as tops
from tensorferry.errors import ConfigurationError
from tensorferry.simulation import command as simulation

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (0 well, 1 a fault found, 2 a wrong call)."""
    _open_standard_streams()
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except ConfigurationError as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has had enough of it, as `head` does. The interpreter would try to
        # write the rest at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status


def _open_standard_streams() -> None:
    """Put something on the descriptors 0 to 2 that were closed when the process began (``2>&-``).

    The next files to be opened would get these numbers: the event loop's own, and what libraries write to
    standard error would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tensorferry", description="A gRPC inference server with dynamic batching."
    )
    parser.add_argument("--version", action="version", version=f"tensorferry {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="serve a model repository", description="Serve a model repository."
    )
    config.add_flags(serve)
    serve.set_defaults(run=_serve)
    check = commands.add_parser(
        "check", help="validate a model repository without serving it", description=checks.run.__doc__
    )
    checks.add_flags(check)
    check.set_defaults(run=checks.run)
    other = commands.add_parser(
        "convert",
        help="say which formats a model's file can take, or write it in one",
        description=convert.run.__doc__,
    )
    convert.add_flags(other)
    other.set_defaults(run=convert.run)
    info = commands.add_parser(
        "info", help="print the transports that there are, and every version", description=_info.__doc__
    )
    info.add_argument("--json", action="store_true", help="as JSON, for scripts")
    info.set_defaults(run=_info)
    simulate = commands.add_parser(
        "simulate",
        help="simulate a model's batching under load, to choose settings and size machines",
        description=simulation.run.__doc__,
    )
    simulation.add_flags(simulate)
    simulate.set_defaults(run=simulation.run)
    repository = os.environ.get("TENSORFERRY_MODEL_REPOSITORY") or "models"
    publish = commands.add_parser(
        "push", help="publish a model's file as a new version", description=push.run.__doc__
    )
    push.add_flags(publish, repository)
    publish.set_defaults(run=push.run)
    listing = commands.add_parser(
        "models", help="list the models of a repository, and what is live", description=models.run.__doc__
    )
    models.add_flags(listing, repository)
    listing.set_defaults(run=models.run)
    watch = commands.add_parser(
        "top", help="show live in the terminal what a server does", description=tops.run.__doc__
    )
    tops.add_flags(watch, os.environ.get("TENSORFERRY_HTTP") or "127.0.0.1:8002")
    watch.set_defaults(run=tops.run)
    load = commands.add_parser(
        "bench", help="drive load at a running server and measure it", description=bench.run.__doc__
    )
    bench.add_flags(load, os.environ.get("TENSORFERRY_SERVER") or rollout_client.DEFAULT_SERVER)
    load.set_defaults(run=bench.run)
    _add_rollout_commands(commands)
    return parser


def _add_rollout_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    server = os.environ.get("TENSORFERRY_SERVER") or rollout_client.DEFAULT_SERVER
    change = commands.add_parser(
        "rollout",
        help="who answers: labels, split, canary, shadow",
        description=rollout.run.__doc__,
    )
    rollout_flags.add_flags(change, server)
    change.set_defaults(run=rollout.run)
    back = commands.add_parser(
        "rollback",
        help="take a model back, at once",
        description=rollout.run_rollback.__doc__,
    )
    rollout_flags.add_rollback_flags(back, server)
    back.set_defaults(run=rollout.run_rollback)
    labels = commands.add_parser(
        "feedback", help="feed labels back, for the AUC of each version", description=feedback.run.__doc__
    )
    feedback.add_flags(labels, server)
    labels.set_defaults(run=feedback.run)


def _serve(parsed: argparse.Namespace) -> int:
    settings = config.load(vars(parsed), os.environ)
    from tensorferry import logs

    logs.configure(settings.log_level, settings.log_format, settings.log_max_lines_per_s)
    if settings.processes > 1:
        import uvloop

        from tensorferry import supervisor

        uvloop.run(supervisor.supervise(settings))
        return 0
    from tensorferry import app

    return app.run(settings)


def _info(parsed: argparse.Namespace) -> int:
    """Print what this installation and this machine have: for a bug report, or to see why it's slow."""
    from tensorferry import info

    print(info.as_json() if parsed.json else info.as_text())
    return 0
