"""``tensorferry models``: what is in a repository, and what a server makes of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensorferry.errors import ConfigurationError

if TYPE_CHECKING:
    from tensorferry.repository import RepositoryModel
    from tensorferry.rollout.state import Rollout

__all__ = ["Row", "add_flags", "as_table", "run"]

_SERVER_PATIENCE_S: Final = 10.0
_NARROWEST_CHARS: Final = 100
_DIGEST_CHARS: Final = 8
_NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """A version, or a model that has none (version ""). ``is_served`` is what the repository asks for.

    ``digest`` and what follows it up to ``tags`` are the manifest's; empty without one. ``state`` and
    ``reason`` are the server's, "" where none was asked. ``fault`` is what is wrong on disk.
    """

    model: str
    version: str
    format: str = ""
    size_bytes: int = 0
    digest: str = ""
    pushed: str = ""
    author: str = ""
    git_commit: str = ""
    training_data: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    is_served: bool = False
    fault: str = ""
    state: str = ""
    reason: str = ""


def add_flags(parser: argparse.ArgumentParser, repository: str) -> None:
    """Declare the command's arguments; ``repository`` is what it lists unless told otherwise."""
    parser.add_argument(
        "--repository", type=Path, default=repository, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="ask this server what is live")
    parser.add_argument(
        "--verify", action="store_true", help="read every file and compare it with its checksum"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for scripts, with all that is known")


def run(parsed: argparse.Namespace) -> int:
    """List every model and version: what it is, who published it, which labels it has, what is served."""
    from tensorferry.repository import model_directories

    rows: list[Row] = []
    for directory in model_directories(parsed.repository, may_be_empty=True):
        rows += _rows(directory, parsed.verify)
    if parsed.server is not None:
        rows = _with_states(rows, _ask(parsed.server))
    if parsed.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif rows:
        print(as_table(rows, shutil.get_terminal_size().columns))
    else:
        print(f"{parsed.repository} holds no model; publish one with tensorferry push MODEL_FILE --name NAME")
    return 1 if parsed.verify and any(row.fault for row in rows) else 0


def as_table(rows: list[Row], width_chars: int) -> str:
    """Return rows as an aligned table; faults and reasons in lines of their own.

    Metrics are the last column if every line fits in the width (100 characters, if it is less than
    that), and lines of their own if not: numbers that are cut are worse than none.
    """
    has_states = any(row.state for row in rows)
    last = "STATE" if has_states else "SERVED"
    head = ("MODEL", "VERSION", "LABELS", "FORMAT", "SIZE", "DIGEST", "PUSHED (UTC)", "BY", last)
    table = _aligned(head, [_cells(row, has_states) for row in rows])
    metrics = [" ".join(f"{name}={value:.6g}" for name, value in row.metrics.items()) for row in rows]
    gap = max(map(len, table)) + 2
    is_inline = any(metrics) and gap + max(map(len, metrics)) <= max(width_chars, _NARROWEST_CHARS)
    shown = [f"{table[0]:{gap}}METRICS" if is_inline else table[0]]
    for row, line, numbers in zip(rows, table[1:], metrics, strict=True):
        shown.append(f"{line:{gap}}{numbers}".rstrip() if is_inline else line)
        notes = (row.fault, row.reason) if is_inline else (numbers, row.fault, row.reason)
        shown += [f"    {text}" for text in dict.fromkeys(notes) if text]
    # What others wrote into manifests must not write to the terminal.
    return "\n".join(_printable(line) for line in shown)


def _aligned(head: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if name in ("VERSION", "SIZE") else cell.ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in [head, *lines]
    ]


def _cells(row: Row, has_states: bool) -> list[str]:
    suffix = os.path.splitext(row.format)[1].removeprefix(".")
    return [
        _cut(row.model, 24),
        row.version or _NOTHING,
        ",".join(row.labels) or _NOTHING,
        suffix or row.format or _NOTHING,
        _size(row.size_bytes) if row.version else _NOTHING,
        row.digest[:_DIGEST_CHARS] or _NOTHING,
        row.pushed[:16].replace("T", " ") or _NOTHING,
        _cut(row.author, 12) or _NOTHING,
        (row.state or _NOTHING) if has_states else "yes" if row.is_served else "no",
    ]


def _rows(directory: Path, is_verified: bool) -> list[Row]:
    from tensorferry.errors import ModelConfigError
    from tensorferry.repository import Pinned, read_model
    from tensorferry.rollout.state import Rollout
    from tensorferry.rollout.store import RolloutStore

    rollout, fault = Rollout(), ""
    try:
        rollout = RolloutStore(directory).read()
    except ModelConfigError as error:
        fault = str(error)
    model = read_model(directory, Pinned(rollout.versions, is_exclusive=rollout.stable != 0))
    if not model.available:
        return [Row(model.name, "", fault=str(model.error) if model.error else fault)]
    rows = [_row(model, version, rollout, is_verified) for version in model.available]
    whole = str(model.error) if model.error is not None and not model.faults else fault
    if whole:
        rows[-1] = dataclasses.replace(rows[-1], fault=rows[-1].fault or whole)
    return rows


def _row(model: RepositoryModel, version: int, rollout: Rollout, is_verified: bool) -> Row:
    from tensorferry.repository import manifest
    from tensorferry.repository.versions import files_in

    directory = model.directory / str(version)
    row = Row(
        model=model.name,
        version=str(version),
        format=_format(model, directory),
        labels=tuple(sorted(label for label, of in rollout.labels.items() if of == version)),
        is_served=any(spec.version == version for spec in model.versions),
        fault=str(model.faults.get(version, "")),
    )
    try:
        size_bytes = sum(status.st_size for name, status in files_in(directory) if name != manifest.FILENAME)
        row = dataclasses.replace(row, size_bytes=size_bytes)
        found = manifest.read(directory)
        if found is None:
            return dataclasses.replace(row, digest=manifest.digest_of(directory)) if is_verified else row
        about = found.about
        row = dataclasses.replace(
            row,
            digest=found.digest,
            pushed=about.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            author=about.author,
            git_commit=about.git_commit,
            training_data=about.training_data,
            metrics=about.metrics,
            tags=about.tags,
        )
        if is_verified:
            manifest.verify(directory)
    except (ConfigurationError, OSError) as error:
        return dataclasses.replace(row, fault=row.fault or str(error))
    return row


def _format(model: RepositoryModel, directory: Path) -> str:
    """Return the name of the model's file, which says the format; "" if it isn't there."""
    from tensorferry.repository.formats import format_in

    own = format_in(directory).filename
    for name in (model.config.default_model_filename, own):
        if name and os.path.lexists(directory / name):
            return name
    return "ensemble" if model.config.platform == "ensemble" else ""


def _ask(server: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (model, version) -> (state, reason) of everything in a server's index."""
    import grpc

    from tensorferry.wire import open_inference_pb2 as pb
    from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

    try:
        with grpc.insecure_channel(server) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=_SERVER_PATIENCE_S)
    except grpc.RpcError as error:
        what = f"{error.code().name}: {error.details()}"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            what = "UNAVAILABLE: is it up, and does it speak plain text there?"
        raise ConfigurationError(f"the server at {server} gave no index: {what}") from None
    return {(each.name, each.version): (each.state, each.reason) for each in index.models}


def _with_states(rows: list[Row], index: Mapping[tuple[str, str], tuple[str, str]]) -> list[Row]:
    """Return the rows with the server's states, and rows for what the server alone knows."""
    left = dict(index)
    found = []
    for row in rows:
        state, reason = left.pop((row.model, row.version), ("", ""))
        found.append(dataclasses.replace(row, state=state, reason=reason))
    for (model, version), (state, reason) in left.items():
        found.append(Row(model, version, state=state, reason=reason))
    return sorted(found, key=lambda row: (row.model, int(row.version) if row.version.isdecimal() else 0))


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line)


def _cut(text: str, width_chars: int) -> str:
    return text if len(text) <= width_chars else text[: width_chars - 3] + "..."
