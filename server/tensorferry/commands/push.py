"""``tensorferry push``: a model's file into the repository, as a new version."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensorferry.errors import ConfigurationError, InvalidRequest, TensorferryError

if TYPE_CHECKING:
    from tensorferry.repository.manifest import About
    from tensorferry.repository.publish import Published
    from tensorferry.rollout.state import Rollout
    from tensorferry.rollout.store import RolloutStore

__all__ = ["add_flags", "run"]

_HASH: Final = re.compile(r"([a-z0-9-]+:)?[0-9a-fA-F]{8,128}")
_GIT_PATIENCE_S: Final = 10.0


def add_flags(parser: argparse.ArgumentParser, repository: str) -> None:
    """Declare the command's arguments; ``repository`` is where it publishes unless told otherwise."""
    parser.add_argument(
        "model_file",
        type=Path,
        metavar="MODEL_FILE",
        help="the model (.pt, .pt2, .onnx or .py), or a directory with the model and what it needs",
    )
    parser.add_argument("--name", required=True, help="the model's name in the repository")
    parser.add_argument(
        "--repository", type=Path, default=repository, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration of a new model")
    parser.add_argument(
        "--replace-config", action="store_true", help="put --config in the place of the one that is there"
    )
    parser.add_argument(
        "--golden", type=Path, metavar="FILE", help="inputs and expected outputs (.npz, .json)"
    )
    parser.add_argument("--label", help="point this label at the new version, such as canary")
    parser.add_argument("--git-commit", metavar="SHA", help="default: that of the working directory")
    parser.add_argument(
        "--training-data", metavar="FILE_OR_HASH", help="a file to hash, or a hash that is recorded"
    )
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME=NUMBER", help="such as auc=0.96; repeatable"
    )
    parser.add_argument("--author", help="default: git's user.name, or the login")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="whatever else; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="say what was published as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Publish a model's file as a new version: whole or not at all, with checksums and metadata."""
    from tensorferry.repository.parcel import pack
    from tensorferry.repository.publish import publish
    from tensorferry.rollout.store import RolloutStore

    directory = parsed.repository / parsed.name
    if parsed.replace_config and parsed.config is None:
        raise ConfigurationError("--replace-config needs --config FILE")
    parcel = pack(parsed.model_file, directory, parsed.config, parsed.replace_config, parsed.golden)
    about = _about(parsed)
    store = RolloutStore(directory)
    rollout = store.read()
    above = _highest_named(rollout)
    _check_label(rollout, parsed.label, above)
    published = publish(parcel, parsed.repository, about, above)
    status = 0
    if parsed.label is not None:
        status = _set_label(store, parsed.label, published.version)
    label = parsed.label if status == 0 else None
    print(_as_json(published, label) if parsed.json else _as_text(published, label))
    return status


def _highest_named(rollout: Rollout) -> int:
    """Return the highest version that the rollout speaks of, so that its number isn't used again.

    A label may point at a version that has been deleted; a new version of that number would be live
    the moment it is there.
    """
    canary = rollout.canary
    named = {*rollout.versions, rollout.previous_stable}
    if canary is not None:
        named |= {canary.version, canary.stable_version}
    return max(named)


def _check_label(rollout: Rollout, label: str | None, above: int) -> None:
    """Refuse a label that can't be set, before anything is published."""
    from tensorferry.rollout import changes

    if label is not None:
        try:
            changes.set_label(rollout, label, above + 1, 0)
        except InvalidRequest as error:
            raise ConfigurationError(f"--label {label}: {error}; nothing was published") from None


def _set_label(store: RolloutStore, label: str, version: int) -> int:
    from tensorferry.rollout import changes

    now_ms = time.time_ns() // 1_000_000
    try:
        store.update(lambda rollout: changes.set_label(rollout, label, version, now_ms))
    except TensorferryError as error:
        what = f"version {version} is published, and the label {label} wasn't set"
        print(f"tensorferry: {what}: {error}", file=sys.stderr)
        return 1
    return 0


def _about(parsed: argparse.Namespace) -> About:
    from tensorferry.repository.manifest import About

    commit = parsed.git_commit if parsed.git_commit is not None else _git_commit()
    author = parsed.author if parsed.author is not None else _git("config", "user.name") or _login()
    return About(
        model=parsed.name,
        created=datetime.fromtimestamp(time.time_ns() // 1_000_000_000, UTC),
        author=author,
        git_commit=commit,
        training_data=_training_data(parsed.training_data) if parsed.training_data else "",
        metrics=_metrics(parsed.metric),
        tags=_pairs("--tag", parsed.tag),
    )


def _git_commit() -> str:
    """Return the working directory's commit, marked as git marks it if it isn't what is there; else ""."""
    commit = _git("rev-parse", "HEAD")
    is_changed = bool(commit) and _git("status", "--porcelain", "--untracked-files=no") != ""
    return f"{commit}-dirty" if is_changed else commit


def _git(*arguments: str) -> str:
    # Without the lock that status takes to refresh the index: killed by the timeout, it would stay.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_PATIENCE_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that nobody has named
        return ""


def _training_data(given: str) -> str:
    path = Path(given)
    if path.is_file():
        try:
            with path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from None
    if _HASH.fullmatch(given):
        return given
    what = "is neither a file nor a hash (8 to 128 hexadecimal digits)"
    raise ConfigurationError(f"--training-data {given} {what}; correct the path, or give the hash")


def _metrics(given: Sequence[str]) -> dict[str, float]:
    metrics = {}
    for name, text in _pairs("--metric", given).items():
        try:
            metrics[name] = float(text)
        except ValueError:
            metrics[name] = math.nan
        if not math.isfinite(metrics[name]):
            raise ConfigurationError(f"--metric {name}={text}: must be a number, such as {name}=0.96")
    return metrics


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigurationError(f"{flag} {text}: must be a name and a value, with = between them")
        if name in pairs:
            raise ConfigurationError(f"{flag} {name} is given twice; keep one")
        pairs[name] = value
    return pairs


def _as_text(published: Published, label: str | None) -> str:
    from tensorferry.rollout.state import STABLE

    written = published.manifest
    size_bytes = sum(record.size_bytes for record in written.files.values())
    name, version = written.about.model, published.version
    files = f"{len(written.files)} file{'s' if len(written.files) > 1 else ''}, {size_bytes:,} bytes"
    labelled = f", labelled {label}" if label else ""
    lines = [f"published {name} version {version}: {files}, {written.digest[:12]}{labelled}"]
    if label == STABLE:
        lines.append("next: it answers whoever names no version or label, once a server has taken it")
    elif label:
        lines.append(f"next: callers reach it by the label {label}; tensorferry rollout gives it traffic")
    else:
        lines.append(
            "next: a server loads it by poll, RepositoryModelLoad or restart; see tensorferry models"
        )
    return "\n".join(lines)


def _as_json(published: Published, label: str | None) -> str:
    written = published.manifest
    return json.dumps(
        {
            "model": written.about.model,
            "version": published.version,
            "directory": str(published.directory),
            "digest": written.digest,
            "files": {name: record.size_bytes for name, record in written.files.items()},
            "config": str(published.config) if published.config else None,
            "label": label,
        },
        indent=2,
    )
