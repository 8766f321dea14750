"""A new version into a repository, whole or not at all.

The version is built in a hidden directory, ``.incoming-<random>``, which no scan looks into, on the
same file system; everything in it is on disk before one ``rename`` makes it visible under the next
free number. For a new model the directory that is renamed is the model's, with configuration and
version in it. So whoever reads the repository, and whoever starts after a crash, sees the version
as it is meant or doesn't see it. A lock in the hidden directory says that its owner lives: what a
killed push left is removed by a later one, and a push that runs never is.

Rules for this file: nothing that is visible is written to. It is replaced by a rename, or left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorferry.errors import ConfigurationError
from tensorferry.repository import manifest
from tensorferry.repository.manifest import About, Manifest
from tensorferry.repository.parcel import Parcel, check_model_name

__all__ = ["INCOMING_PREFIX", "STALE_S", "Published", "publish"]

#: How the hidden directories' names begin.
INCOMING_PREFIX: Final = ".incoming-"

#: How old a hidden directory that nobody holds must be before it is removed. Its lock says the same;
#: the hour is for a file system whose locks other machines don't see.
STALE_S: Final = 3600

_LOCK: Final = ".lock"
# Numbers that two pushes at once may race for; each loses to at most every other one.
_MAX_RACES: Final = 1000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Published:
    """What is there now. ``config`` is the configuration that was written; None if none was."""

    version: int
    directory: Path
    manifest: Manifest
    config: Path | None = None


def publish(
    parcel: Parcel, repository: Path, about: About, above: int = 0, on_step: OnStep = lambda step: None
) -> Published:
    """Write a new version of the model ``about.model`` and return it; it is on disk by then.

    Args:
        parcel: What to write.
        repository: The model repository; the model's directory in it is made if it isn't there.
        about: What the manifest says; ``created`` is taken for the present time.
        above: The version's number is above this one, and above all that are there.
        on_step: Told the name of each step before it is taken; for tests.

    Raises:
        ConfigurationError: the repository isn't there or can't be written, the disk is full, or the
            model has another configuration. Nothing is left behind.
    """
    check_model_name(about.model)
    if not repository.is_dir():
        raise ConfigurationError(f"{repository}: no such directory; create it, or correct the path")
    push = _Push(parcel, repository / about.model, about, above, on_step)
    try:
        with _incoming(push.model if push.model.is_dir() else repository, on_step) as directory:
            _remove_stale((repository, push.model), about.created.timestamp())
            return push.commit(directory / "model", push.build(directory / "model"))
    except OSError as error:
        raise ConfigurationError(_explained(error, repository)) from error


@dataclass(frozen=True, slots=True)
class _Push:
    """One push. ``staged`` is a model directory under a hidden one: what a new model would look like."""

    parcel: Parcel
    model: Path
    about: About
    above: int
    on_step: OnStep

    def build(self, staged: Path) -> Manifest:
        """Copy everything, and bring it to the disk."""
        version = self._version_in(staged)
        version.mkdir(parents=True)
        for name, source in self.parcel.files.items():
            (version / name).parent.mkdir(parents=True, exist_ok=True)
            self._copy(source, version / name)
        if self.parcel.config is not None:
            self._copy(self.parcel.config, staged / self.parcel.config_name)
        self.on_step("write manifest")
        written = manifest.write(version, self.about)
        self.on_step("sync directories")
        for root, _, _ in os.walk(staged, topdown=False):
            _sync(Path(root))
        return written

    def commit(self, staged: Path, written: Manifest) -> Published:
        """Make what was built visible, as the model or as a version of it."""
        if not self.model.is_dir() and self._commit_model(staged):
            version = self.above + 1
            is_configured = self.parcel.config is not None
        else:
            version, is_configured = self._commit_into_model(staged)
        config = self.model / self.parcel.config_name if is_configured else None
        return Published(version, self.model / str(version), written, config)

    def _version_in(self, staged: Path) -> Path:
        return staged / str(self.above + 1)

    def _copy(self, source: Path, target: Path) -> None:
        self.on_step(f"copy {target.name}")
        shutil.copyfile(source, target)
        self.on_step(f"sync {target.name}")
        _sync(target)

    def _commit_model(self, staged: Path) -> bool:
        """Rename a whole new model into place; False if another push has made one meanwhile."""
        self.on_step("rename model")
        try:
            staged.rename(self.model)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return False
        self.on_step("sync repository")
        _sync(self.model.parent)
        return True

    def _commit_into_model(self, staged: Path) -> tuple[int, bool]:
        # The configuration goes first where it can mislead nobody; else last, since a new version
        # under the old configuration fails alone, and old versions under the new one all fail.
        is_empty = not _numbers(self.model)
        is_configured = is_empty and self._commit_config(staged)
        version = self._commit_version(self._version_in(staged))
        is_configured = is_configured or self._commit_config(staged)
        self.on_step("sync model")
        _sync(self.model)
        return version, is_configured

    def _commit_version(self, staged: Path) -> int:
        for _ in range(_MAX_RACES):
            version = max([self.above, *_numbers(self.model)]) + 1
            self.on_step("rename version")
            try:
                staged.rename(self.model / str(version))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                continue
            return version
        raise ConfigurationError(f"{self.model}: {_MAX_RACES} other pushes were faster; try again")

    def _commit_config(self, staged: Path) -> bool:
        """Rename the configuration into place; False if there is none, or it is there already."""
        if self.parcel.config is None:
            return False
        target, new = self.model / self.parcel.config_name, staged / self.parcel.config_name
        if not new.exists() or (target.exists() and target.read_bytes() == new.read_bytes()):
            return False
        self.on_step("rename configuration")
        new.replace(target)
        return True


def _numbers(model: Path) -> list[int]:
    """Every number that a file or a directory of the model has for a name."""
    return [int(name) for name in os.listdir(model) if name.isascii() and name.isdecimal()]


@contextlib.contextmanager
def _incoming(parent: Path, on_step: OnStep) -> Iterator[Path]:
    """Give a hidden directory that nobody else touches, and remove what is left in it afterwards."""
    on_step("make directory")
    directory = Path(tempfile.mkdtemp(prefix=INCOMING_PREFIX, dir=parent))
    try:
        on_step("lock")
        with (directory / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
            on_step("remove directory")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_stale(parents: tuple[Path, ...], now_s: float) -> None:
    for parent in parents:
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(parent)):
                is_ours = entry.name.startswith(INCOMING_PREFIX) and entry.is_dir(follow_symlinks=False)
                if is_ours and now_s - entry.stat().st_mtime > STALE_S:
                    _remove_unheld(Path(entry.path))


def _remove_unheld(directory: Path) -> None:
    try:
        with (directory / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
    except FileNotFoundError:  # killed before it had a lock, an hour ago
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can't sync a directory, and have nothing to offer instead.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _explained(error: OSError, repository: Path) -> str:
    where = error.filename2 or error.filename or repository
    nothing = "nothing was published"
    if error.errno in _FULL:
        return f"{repository}: no room for the version ({error.strerror}); make some; {nothing}"
    if error.errno == errno.EROFS or isinstance(error, PermissionError):
        return f"{where}: {error.strerror}; push as a user who may write there; {nothing}"
    return f"{where}: {error.strerror or error}; {nothing}"
