"""The file that a model's rollout survives a restart in: ``<repository>/<model>/rollout.json``.

A change is a read, a new temporary file beside the old one, and a rename over it, all under a lock
that every process takes which writes. So a reader sees the old state or the new one, whole, and so
does the next start, whenever a writer was killed: before the rename the old one stands; after it,
the new one. The file's bytes are on disk before the rename, and the rename before ``update`` returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from tensorferry.errors import InvalidRequest, ModelConfigError, Unavailable
from tensorferry.rollout import messages, rules
from tensorferry.rollout.state import EMPTY, Rollout
from tensorferry.wire import rollout_pb2 as pb

__all__ = ["FILENAME", "HISTORY", "RolloutStore"]

#: The state's file in a model's directory.
FILENAME: Final = "rollout.json"
#: How many events are kept.
HISTORY: Final = 50

#: Hidden, so that the repository doesn't take them for versions. The temporary file's name is fixed:
#: only the lock's holder writes it, and what a killed one left is overwritten.
_LOCK: Final = ".rollout.lock"
_TEMPORARY: Final = ".rollout.json.tmp"


class RolloutStore:
    """One model's state file. Any number of processes and threads may have one at the same time.

    ``on_step`` is told the name of each step of a write before it is taken; for tests.
    """

    def __init__(self, directory: Path, on_step: Callable[[str], None] = lambda step: None) -> None:
        self.path: Final = directory / FILENAME
        self._directory = directory
        self._on_step = on_step

    def read(self) -> Rollout:
        """Return the state; ``EMPTY`` if there is no file. Takes no lock.

        Raises ``ModelConfigError``, which names the file and what is wrong with it.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return EMPTY
        except (OSError, UnicodeDecodeError) as error:
            raise ModelConfigError(f"can't be read: {error}", self.path) from error
        try:
            rollout = messages.rollout_from(json_format.Parse(text, pb.Rollout()))
            rules.check(rollout)
        except (json_format.ParseError, InvalidRequest, ValueError) as error:
            mend = "correct it, or remove the file to serve without a rollout"
            raise ModelConfigError(f"{error}; {mend}", self.path) from error
        return rollout

    def update(self, change: Callable[[Rollout], Rollout]) -> Rollout:
        """Replace the state by what ``change`` makes of it, and return that, with its generation.

        Waits for other writers. Nothing is written if ``change`` raises, or changes nothing.
        Raises ``Unavailable`` if the file can't be written (a full disk, no permission): the state
        is the old one then; and ``ModelConfigError`` as ``read`` does.
        """
        with self._locked():
            before = self.read()
            after = change(before)
            if after == before:
                return before
            after = replace(after, history=after.history[-HISTORY:], generation=before.generation + 1)
            with self._explained():
                self._write(_as_json(after))
        return after

    def _write(self, text: str) -> None:
        temporary = self._directory / _TEMPORARY
        try:
            self._on_step("open")
            with temporary.open("w", encoding="utf-8") as file:
                self._on_step("write")
                file.write(text)
                self._on_step("flush")
                file.flush()
                self._on_step("sync")
                os.fsync(file.fileno())
            self._on_step("replace")
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        # From here on the new state stands. Some network file systems can't sync a directory; all that
        # is lost then is that after a power cut it may be the old state, which is whole.
        self._on_step("sync directory")
        with contextlib.suppress(OSError):
            _sync_directory(self._directory)
        self._on_step("unlock")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; the kernel releases it when its holder dies."""
        with self._explained():
            self._on_step("lock")
            descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self._explained():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"the rollout's state can't be written to {self.path}: {error.strerror or error}. "
                "Nothing has changed; make the directory writable, with room on its disk, and repeat"
            ) from error


def _as_json(rollout: Rollout) -> str:
    message = messages.rollout_message(rollout)
    return json_format.MessageToJson(message, indent=2, preserving_proto_field_name=True) + "\n"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
