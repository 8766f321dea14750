"""Show what is going on: live bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

__all__ = ["Step", "Steps"]

_PLAIN_EVERY_S = 2.0


class Step:
    """One thing that is being done. ``at`` says how far it is; ``detail`` what came of it."""

    def __init__(self, show: Show, name: str, total: int | None) -> None:
        self.detail = ""
        self._show = show
        self._name = name
        self._total = total
        show.begin(name, total)

    def at(self, done: int) -> None:
        """Show that ``done`` of the total are done, or more where the total was a guess."""
        self._show.update(self._name, done, self._total)


class Show:
    """How steps appear. This one prints lines: when a step begins, every other second, and at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line = 0.0

    def begin(self, name: str, total: int | None) -> None:
        """Show that a step has begun."""
        del total
        self._next_line = time.monotonic() + _PLAIN_EVERY_S
        self._print(f"{name} ...")

    def update(self, name: str, done: int, total: int | None) -> None:
        """Show how far the step is."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PLAIN_EVERY_S
            self._print(f"  {name}: {_count(done, total)}")

    def end(self, name: str, seconds: float, detail: str) -> None:
        """Show that the step is done."""
        self._print(f"{name}: {detail or 'done'} ({seconds:.1f} s)")

    def close(self) -> None:
        """Leave the terminal as it was."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveShow(Show):
    """Bars that move, one for each step, and a line for each step that is done."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
        )
        # Four times a second: the display shares the machine with what it displays.
        self._progress = Progress(*columns, console=console, refresh_per_second=4, transient=True)
        self._task: TaskID | None = None
        self._progress.start()

    def begin(self, name: str, total: int | None) -> None:
        """Add a bar; without a total it only pulses."""
        self._task = self._progress.add_task(name, total=total, count="")

    def update(self, name: str, done: int, total: int | None) -> None:
        """Move the bar."""
        del name
        assert self._task is not None
        total = max(done, total) if total else None
        self._progress.update(self._task, completed=done, total=total, count=_count(done, total))

    def end(self, name: str, seconds: float, detail: str) -> None:
        """Put a line in the bar's place."""
        assert self._task is not None
        self._progress.remove_task(self._task)
        super().end(name, seconds, detail)

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()


class Steps:
    """The steps of the demonstration, for the length of a ``with`` block."""

    def __init__(self, console: Console) -> None:
        self._show = LiveShow(console) if console.is_terminal else Show(console)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self._show.close()

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Show a step while the block runs. A step that raises has no end line: the error speaks."""
        began = time.monotonic()
        step = Step(self._show, name, total)
        yield step
        self._show.end(name, time.monotonic() - began, step.detail)


def _count(done: int, total: int | None) -> str:
    return f"{done:,} of {max(done, total):,}" if total else f"{done:,}"
