"""Loads a TorchScript file without stopping the other threads of the process.

``torch.jit.load`` holds the GIL from the first byte to the last: about a second for 400 MB, in
which the loop answers nobody. Nearly all of that is reading and checking the tensors. Here Python
reads them, which releases the GIL, into storages of its own; torch is then given an archive of the
code and the pickles alone, together with those storages, over the way that ``torch.package`` takes
for a model inside a package. The model is the same, bit for bit.

That way isn't public, so everything that is not as expected leads back to ``torch.jit.load``, with
a warning in the log. docs/decisions/0012-loading.md has what was measured, and what else was tried.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import structlog
import torch

__all__ = ["Sizes", "load_module"]

_log = structlog.get_logger("tensorferry.execution")

#: How long torch may go on between two records before the others get the GIL, and for how long.
_TURN_S: Final = 5e-4
_PAUSE_S: Final = 5e-5

_TENSOR: Final = re.compile(r"(data|constants)/(\w+)")
_IN_PACKAGE: Final = ".data/ts_code/"

_MEMOIZE: Final = ("BINPUT", "LONG_BINPUT")
_RECALL: Final = ("BINGET", "LONG_BINGET")
_TO_MARK: Final = ("TUPLE", "SETITEMS", "LIST", "APPENDS", "DICT")
_STORAGE_FIELDS: Final = 5

# torch leaves this without annotations.
_plain_load: Final[Callable[..., torch.jit.ScriptModule]] = torch.jit.load


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is large, in bytes.

    A file with less than ``small`` in tensors is left to ``torch.jit.load``, whose stall is short then.
    ``chunk`` is read and checked at once, while it is in the core's cache; it is far more than what
    reading and checking need to release the GIL. A tensor of at least ``mapped`` has memory of its
    own, which is given back without the GIL.
    """

    small: int = 8 * 2**20
    chunk: int = 2**20
    mapped: int = 2**20


_SIZES: Final = Sizes()


class _NotAsExpectedError(Exception):
    """The file is laid out in a way that this module doesn't know."""


class _DamagedError(RuntimeError):
    """The file isn't what was written."""


def load_module(path: Path, device: str, sizes: Sizes = _SIZES) -> torch.jit.ScriptModule:
    """Load the TorchScript file at ``path`` onto ``device``, as ``torch.jit.load`` does.

    Raises:
        RuntimeError: the file is damaged, or isn't TorchScript.
        OSError: it can't be read, or there is no memory for it.
        ValueError: torch doesn't know the device.
    """
    reason = ""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as zipped:
            archive = _Archive(file, zipped, sizes)
            if archive.tensor_bytes >= sizes.small:
                return _load_in_parts(archive, device)
    except (_DamagedError, OSError, MemoryError):
        raise
    except zipfile.BadZipFile:
        pass  # torch says it better
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    module = _plain_load(str(path), map_location=device)
    if reason:
        _log.warning(
            "model was loaded in one piece; other calls waited for it", path=str(path), reason=reason
        )
    return module


class _Archive:
    """A TorchScript file: a zip archive whose names all begin with the name that it was saved under."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, sizes: Sizes) -> None:
        self._file = file
        self._sizes = sizes
        self._archive = archive
        root = archive.namelist()[0].partition("/")[0] + "/"
        self.records: dict[str, zipfile.ZipInfo] = {}
        for each in archive.infolist():
            if not each.filename.startswith(root):
                raise _NotAsExpectedError(f"record {each.filename!r} is not under {root!r}")
            self.records[each.filename.removeprefix(root)] = each
        self.tensors = {name: each for name, each in self.records.items() if _TENSOR.fullmatch(name)}

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(each.file_size for each in self.tensors.values())

    def read(self, name: str) -> bytes:
        """Return a small record."""
        return self._archive.read(self.records[name])

    def storage(self, name: str) -> torch.Tensor:
        """Return a tensor record's bytes as a tensor of uint8, having checked them."""
        record = self.tensors[name]
        size = record.file_size
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != size:
            raise _NotAsExpectedError(f"record {name!r} is compressed")
        tensor = _empty(size, self._sizes.mapped)
        self._file.seek(self._offset(record))
        view = tensor.numpy().data
        crc = 0
        for start in range(0, size, self._sizes.chunk):
            chunk = view[start : start + self._sizes.chunk]
            _fill(self._file, chunk, name)
            crc = zlib.crc32(chunk, crc)
        if crc != record.CRC:
            raise _DamagedError(f"record {name!r} is damaged: its checksum is not the one that was written")
        return tensor

    def _offset(self, record: zipfile.ZipInfo) -> int:
        """Return where the record's bytes begin: its local header has lengths of its own."""
        self._file.seek(record.header_offset)
        header = self._file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise _DamagedError(f"record {record.filename!r} has no header where the archive says")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return record.header_offset + 30 + lengths


def _fill(file: IO[bytes], chunk: memoryview, name: str) -> None:
    done = 0
    while done < len(chunk):
        count = file.readinto(chunk[done:])  # type: ignore[attr-defined]
        if not count:
            raise _DamagedError(f"record {name!r} ends early: the file is cut off")
        done += count


def _empty(size: int, mapped_bytes: int) -> torch.Tensor:
    if size < mapped_bytes:
        return torch.empty(size, dtype=torch.uint8)
    # Torch's allocator would give it back as the module is dropped, with the GIL: 16 ms for 384 MiB.
    return torch.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
    )


def _load_in_parts(archive: _Archive, device: str) -> torch.jit.ScriptModule:
    missing = {"data.pkl", "constants.pkl", "version"} - set(archive.records)
    if missing:
        raise _NotAsExpectedError(f"the archive has no record {min(missing)!r}")
    if "byteorder" in archive.records and archive.read("byteorder") != b"little":
        raise _NotAsExpectedError("its tensors are not little-endian")
    internals: Any = torch._C
    storages = internals.DeserializationStorageContext()
    for name, record in archive.tensors.items():
        if record.file_size:
            folder, _, key = name.partition("/")
            storages.add_storage(_key(folder, key), archive.storage(name))
    reader = internals.PyTorchFileReader(_TakingTurns(_skeleton(archive)))
    module = internals._import_ir_module_from_package(
        internals.CompilationUnit(), reader, storages, torch.device(device), "0"
    )
    wrap: Callable[..., torch.jit.ScriptModule] = torch.jit._recursive.wrap_cpp_module
    return wrap(module)


def _key(folder: str, key: str) -> str:
    return key if folder == "data" else f"{folder}.{key}"


def _skeleton(archive: _Archive) -> bytes:
    """Return the archive without its tensors, laid out as a model inside a package."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as skeleton:
        for name in archive.records:
            if name in ("version", "byteorder"):
                skeleton.writestr(f"model/{name}", archive.read(name))
            elif name == "constants.pkl":
                skeleton.writestr(f"model/{_IN_PACKAGE}0/{name}", _rekeyed(archive.read(name)))
            elif name == "data.pkl":
                skeleton.writestr(f"model/{_IN_PACKAGE}0/{name}", archive.read(name))
            elif name.startswith("code/"):
                skeleton.writestr(f"model/{_IN_PACKAGE}{name}", archive.read(name))
    return content.getvalue()


def _rekeyed(content: bytes) -> bytes:
    """Return the pickle of the constants with other keys for its storages.

    A plain archive counts the storages of its constants and those of its parameters each from 0; a
    package has one namespace for both. A string that came before is taken from the memo, so the
    step that pushes a key is either the string or its number there.
    """
    # Each is (opcode, its argument, the byte that it begins at).
    steps: list[Any] = list(pickletools.genops(content))
    keys = _storage_keys(steps)
    ends = [start for _, _, start in steps[1:]] + [len(content)]
    memo: dict[int, int] = {}  # number -> the step that was memoized
    out = bytearray()
    for index, ((opcode, argument, start), end) in enumerate(zip(steps, ends, strict=True)):
        if opcode.name in _MEMOIZE:
            memo[argument] = index - 1
        source = memo.get(argument, index) if opcode.name in _RECALL else index
        if index in keys:
            out += _pushed(_key("constants", steps[source][1]))
        elif source != index and source in keys:
            raise _NotAsExpectedError("a key of the constants' storages is a string of the model's, too")
        else:
            out += content[start:end]
    return bytes(out)


def _pushed(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded


def _storage_keys(steps: list[Any]) -> set[int]:
    """Return the steps that push a storage's key: the third of ("storage", class, key, device, elements)."""
    keys = set()
    marks: list[int] = []
    begun = -1  # where the tuple began that has just ended
    for index, (opcode, _, _) in enumerate(steps):
        if opcode.name == "MARK":
            marks.append(index)
        elif opcode.name in _TO_MARK:
            begun = marks.pop()
        elif opcode.name == "BINPERSID":
            fields = [at for at in range(begun + 1, index - 1) if steps[at][0].name not in _MEMOIZE]
            if steps[index - 1][0].name != "TUPLE" or len(fields) != _STORAGE_FIELDS:
                raise _NotAsExpectedError("a storage of the constants isn't written as torch does")
            keys.add(fields[2])
    return keys


class _TakingTurns(io.BytesIO):
    """Lets the other threads have the GIL between two reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._since = time.perf_counter()

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        if time.perf_counter() - self._since > _TURN_S:
            time.sleep(_PAUSE_S)
            self._since = time.perf_counter()
        return super().readinto(buffer)
