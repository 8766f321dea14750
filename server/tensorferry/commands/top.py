"""``tensorferry top``: what the live page shows, in a terminal."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tensorferry.commands.top_feed import Feed, Refused, Watch, first_frame, parse_address
from tensorferry.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_flags", "run"]

#: How often the picture is drawn anew while no frame comes: the terminal may have another size by then.
_REDRAW_S: Final = 0.5

#: Columns of the one picture that goes to a file or a pipe.
_FILE_COLUMNS: Final = 120


def add_flags(parser: argparse.ArgumentParser, address: str) -> None:
    """Declare the command's arguments; ``address`` is the HTTP port that is asked unless told otherwise."""
    parser.add_argument(
        "--http",
        default=address,
        metavar="HOST:PORT",
        help=f"the server's HTTP port (default: {address}, or TENSORFERRY_HTTP)",
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME[/VERSION]",
        help="the model to show in full (default: the busiest)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print one picture and exit, for scripts and logs"
    )
    parser.add_argument("--json", action="store_true", help="print one frame as JSON and exit")


def run(parsed: argparse.Namespace) -> int:
    """Show live what a server does: requests, latencies, batches and queues of each model, once a second.

    It reads /live/events of the server's HTTP port, as the live page does. Ctrl-C ends it.
    """
    host, port = parse_address(parsed.http)
    try:
        with _ended_by_signals():
            if parsed.json:
                print(json.dumps(first_frame(host, port)[-1]))
                return 0
            _check_rich()
            return _once(host, port, parsed.model) if parsed.once else _watch(host, port, parsed.model)
    except Refused as error:
        print(f"tensorferry: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _check_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "`tensorferry top` needs the package rich; run: pip install 'tensorferry[tools]'"
            " (`tensorferry top --json` works without it)"
        ) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end as Ctrl-C does: with the terminal as it was."""

    def interrupt(_: int, __: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _console(is_once: bool) -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if is_once and not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = _FILE_COLUMNS
    return console


def _once(host: str, port: int, model: str) -> int:
    from tensorferry.commands.top_view import picture

    frames = first_frame(host, port)
    console = _console(True)
    watch = Watch(f"{host}:{port}")
    watch.restart(frames)
    console.print(picture(watch, model, console.width, None, console.encoding.startswith("utf")))
    return 0


def _watch(host: str, port: int, model: str) -> int:
    from rich.live import Live

    from tensorferry.commands.top_view import picture

    console = _console(False)
    if not console.is_terminal:
        raise ConfigurationError(
            "`tensorferry top` draws on a terminal, and standard output is none; add --once or --json"
        )
    has_blocks = console.encoding.startswith("utf")
    watch = Watch(f"{host}:{port}")
    with Feed(host, port) as feed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            width, height = console.size
            live.update(picture(watch, model, width, height, has_blocks), refresh=True)
            feed.take(watch, _REDRAW_S)
