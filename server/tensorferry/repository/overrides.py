"""What a RepositoryModelLoad request can bring: a configuration, and files in place of the repository's.

Triton's client sends both as parameters: ``config`` is the JSON of a ModelConfig, and each
``file:<path>`` holds the content of a file of the model's directory, such as ``file:1/model.pt``.
A configuration alone goes with the repository's own versions. Files make up the whole directory:
they need a configuration, and the repository's versions aren't used.

Rules for this file: what comes from the network names no path outside the directory made for it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from tensorferry.errors import ConfigurationError, InvalidRequest, ModelConfigError
from tensorferry.repository.config_file import MAX_CONFIG_BYTES
from tensorferry.repository.parcel import check_model_name
from tensorferry.repository.source import ConfigSource, quoted
from tensorferry.repository.yaml_file import parse_yaml

__all__ = ["FILE_PREFIX", "MAX_OVERRIDE_FILES", "override_source", "write_files"]

#: How the names of the parameters begin that hold files.
FILE_PREFIX: Final = "file:"

#: A model of a few versions has tens.
MAX_OVERRIDE_FILES: Final = 1000

_MAX_PATH_CHARS: Final = 1000
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,19})")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def override_source(name: str, json_text: str, directory: Path) -> ConfigSource:
    """Parse the configuration that came with a request to load ``name`` from ``directory``.

    Takes what protobuf's JSON may look like, 64-bit integers in quotes included: that is how a
    client gets a configuration that it changes and sends back.

    Raises:
        ModelConfigError: not JSON, an unknown field, or a value of the wrong type, with its line.
    """
    path = directory / f"<configuration of {name} in the load request>"
    if len(json_text) > MAX_CONFIG_BYTES:
        raise ModelConfigError(f"larger than {MAX_CONFIG_BYTES} bytes; make it smaller", path)
    try:
        if not isinstance(json.loads(json_text), dict):
            raise ModelConfigError("not a JSON object", path)
    except json.JSONDecodeError as error:
        raise ModelConfigError(f"not JSON: {error.msg}", path, error.lineno) from None
    except RecursionError:
        raise ModelConfigError("nested too deeply for a model's configuration", path) from None
    except ValueError as error:
        raise ModelConfigError(f"not JSON: {quoted(str(error))}", path) from None
    # JSON's tabs are white space, since a string can't hold one; YAML's are refused.
    return parse_yaml(_STRING.sub(_as_yaml, json_text.replace("\t", " ")), path)


def write_files(
    name: str, files: Mapping[str, bytes], config_json: str | None, into: Path | None = None
) -> Path:
    """Write the files that came with a request to load ``name``; return the model's directory.

    ``files`` has paths inside the model's directory, with or without ``FILE_PREFIX``. The directory
    is ``<into>/<a fresh one>/<name>``, and the caller removes the fresh one when the model is gone;
    ``into`` is the system's directory for temporary files where it is None.

    Raises:
        InvalidRequest: no configuration came with the files, there are too many, or a path isn't
            one inside the directory. Nothing is written.
        ConfigurationError: they can't be written; what was is removed.
    """
    try:
        check_model_name(name)
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
    if not config_json:
        raise InvalidRequest(
            f"the request to load {name} has files and no configuration; add the parameter 'config'"
        )
    if len(files) > MAX_OVERRIDE_FILES:
        raise InvalidRequest(
            f"the request to load {name} has {len(files)} files, and {MAX_OVERRIDE_FILES} is the most"
        )
    contents = {_safe(key): content for key, content in files.items()}
    _check_tree(contents)
    if not any(path.parts[0].isdecimal() and len(path.parts) > 1 for path in contents):
        raise InvalidRequest(
            f"the files to load {name} hold no version; name them such as {FILE_PREFIX}1/model.pt"
        )
    return _write(name, contents, into or Path(tempfile.gettempdir()))


def _write(name: str, contents: Mapping[PurePosixPath, bytes], into: Path) -> Path:
    fresh: Path | None = None
    try:
        fresh = Path(tempfile.mkdtemp(prefix="tensorferry-load-", dir=into))
        for path, content in contents.items():
            target = fresh / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        what = error.strerror or str(error)
        raise ConfigurationError(
            f"{into}: the files to load {name} can't be written: {what}; make room there, or make it writable"
        ) from error
    return fresh / name


def _safe(key: str) -> PurePosixPath:
    text = key.removeprefix(FILE_PREFIX)
    path = PurePosixPath(text)
    # Equal only if there is no "//", no "/./" and no slash at the end, which would name a file twice.
    is_plain = str(path) == text and bool(path.parts) and not path.is_absolute() and "\\" not in text
    if not is_plain or any(part.startswith(".") for part in path.parts):
        what = "it must lie inside the model's directory, and no part of it may begin with a dot"
        raise InvalidRequest(f"the parameter {quoted(key)} names no file to load: {what}")
    if not text.isprintable() or len(text) > _MAX_PATH_CHARS:
        what = f"it must be printable, and of at most {_MAX_PATH_CHARS} characters"
        raise InvalidRequest(f"the parameter {quoted(key)} names no file to load: {what}")
    return path


def _check_tree(paths: Mapping[PurePosixPath, bytes]) -> None:
    for path in paths:
        for parent in path.parents:
            if parent in paths:
                raise InvalidRequest(f"{str(parent)!r} is a file in the request, and a directory of {path}")


def _as_yaml(match: re.Match[str]) -> str:
    """Return a JSON string as YAML that means the same to the configuration's reader.

    It knows each field's type, so that an integer needs no quotes, whichever the field; and it takes
    each escape for a character, where JSON writes one in two.
    """
    if _INTEGER.fullmatch(match[1]):
        return match[1]
    if _SURROGATE.search(match[0]):
        return json.dumps(json.loads(match[0]), ensure_ascii=False)
    return match[0]
