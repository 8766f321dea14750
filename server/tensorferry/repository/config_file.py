"""Which file holds a model's configuration, and its text.

Rules for this file: whatever lies in the directory ends as a ``ConfigSource``, as None or
as a ``ModelConfigError``; no other exception leaves it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from tensorferry.errors import ModelConfigError
from tensorferry.repository.pbtxt import parse_pbtxt
from tensorferry.repository.source import ConfigSource
from tensorferry.repository.yaml_file import parse_yaml

__all__ = ["CONFIG_NAMES", "MAX_CONFIG_BYTES", "parse_config_file", "read_config"]

#: A real configuration has a few hundred bytes; parsing is in Python and takes seconds per MiB.
MAX_CONFIG_BYTES: Final = 1 << 20

_PARSERS: Final = {"config.pbtxt": parse_pbtxt, "config.yaml": parse_yaml}
CONFIG_NAMES: Final = tuple(_PARSERS)

# Names that a person may well write, and that would silently leave the model unconfigured.
_NEAR_MISSES: Final = {
    "config.yml": "config.yaml",
    "config.pbtext": "config.pbtxt",
    "config.txt": "config.pbtxt",
}


def read_config(directory: Path) -> ConfigSource | None:
    """Read the configuration in a model's directory; None if it has none.

    Raises:
        ModelConfigError: two configurations, or one that can't be read or parsed.
    """
    found = [directory / name for name in CONFIG_NAMES if os.path.lexists(directory / name)]
    if len(found) > 1:
        what = f"{' and '.join(CONFIG_NAMES)} are both there; keep one"
        raise ModelConfigError(what, directory)
    if found:
        return _PARSERS[found[0].name](_read_text(found[0]), found[0])
    for name, right in _NEAR_MISSES.items():
        if os.path.lexists(directory / name):
            raise ModelConfigError(f"not a name that is read; rename the file to {right}", directory / name)
    return None


def parse_config_file(path: Path) -> ConfigSource:
    """Read a configuration under any name: YAML where that ends in .yaml or .yml, else protobuf's text.

    Raises:
        ModelConfigError: it can't be read or parsed.
    """
    parse = parse_yaml if path.suffix in (".yaml", ".yml") else parse_pbtxt
    return parse(_read_text(path), path)


def _read_text(path: Path) -> str:
    try:
        # Asked first, because opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelConfigError("not a plain file; a model's configuration must be one", path)
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelConfigError(f"can't be read: {error.strerror}", path) from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ModelConfigError(f"larger than {MAX_CONFIG_BYTES} bytes; make it smaller", path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ModelConfigError("not UTF-8 text; save the file as UTF-8", path, line) from None
