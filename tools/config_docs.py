"""Write the pages that are made from the code: docs/configuration.md and docs/errors.md.

Run it after changing a setting, an error class or the status table; a test finds stale pages.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.model_docs import model_section

from tensorferry import errors
from tensorferry.config import ENVIRONMENT_PREFIX, ServerConfig, add_flags
from tensorferry.service.status import status_of

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"

_CONFIGURATION_HEAD: Final = """\
# Configuration

<!-- Made by tools/config_docs.py and tools/model_docs.py from the code. Change it there. -->

## The server

Every setting of `tensorferry serve` can be given in three ways; the nearest wins: the flag, then the
environment variable, then the settings file, then the default. The settings file is TOML with one
`name = value` line for each setting, and is named by `--config FILE` or `{prefix}CONFIG`.
A setting that is unknown or doesn't fit ends the start with exit status 2 and a line that says why.

Units are in the names: `_s` seconds, `_bytes` bytes. How a model is served (batch size, queue delay,
worker streams, warm-up) is said in the model's own `config.pbtxt`: [below](#a-model).

| setting in the file | flag | environment variable | default | meaning |
|---|---|---|---|---|
"""

_ERRORS_HEAD: Final = """\
# Errors

<!-- Made by tools/config_docs.py from errors.py and service/status.py of the server. Change them there. -->

What the server raises on purpose, and the gRPC status that a caller gets. Indented names are kinds
of the one above. The message names the model, the tensor, what was expected and what came; it never
holds a traceback. Whatever else goes wrong is INTERNAL with an id that is found in the server's log.

| error | gRPC status | whose fault | does a retry help | meaning |
|---|---|---|---|---|
"""

_ERRORS_TAIL: Final = """
In ModelStreamInfer the same message stands in `error_message`, in the failed request's place, and the
stream goes on.
"""

#: Whose fault, and whether a retry helps: said of a class, it holds for its kinds too.
_ADVICE: Final[dict[type[errors.TensorferryError], tuple[str, str]]] = {
    errors.RequestError: ("the caller's", "no: the same request fails again"),
    errors.Overloaded: ("nobody's", "yes, after a pause: it was not run"),
    errors.Unavailable: ("nobody's", "yes, later or elsewhere: it was not run"),
    errors.DeadlineExceeded: ("nobody's", "with more time"),
    errors.Cancelled: ("nobody's", "the caller knows"),
    errors.ModelFailed: ("the model's", "seldom: the same data fails again"),
    errors.ConfigurationError: ("the operator's", "no: a person has to mend it"),
}


def configuration_page() -> str:
    """Return docs/configuration.md as it should be."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    flags = {action.dest: action.option_strings[0] for action in parser._actions}
    rows = [
        f"| `{each.name}` | `{flags[each.name]}` | `{ENVIRONMENT_PREFIX}{each.name.upper()}`"
        f" | {_default(each)} | {each.metadata['help']} |"
        for each in dataclasses.fields(ServerConfig)
    ]
    head = _CONFIGURATION_HEAD.format(prefix=ENVIRONMENT_PREFIX)
    return head + "\n".join(rows) + "\n" + model_section()


def errors_page() -> str:
    """Return docs/errors.md as it should be."""
    rows = []
    for depth, kind in _tree(errors.TensorferryError):
        fault, retry = next(_ADVICE[each] for each in kind.__mro__ if each in _ADVICE)
        meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split()).replace("``", "`")
        rows.append(
            f"| {'&emsp;' * depth}`{kind.__name__}` | {_status(kind)} | {fault} | {retry} | {meaning} |"
        )
    return _ERRORS_HEAD + "\n".join(rows) + "\n" + _ERRORS_TAIL


#: Each page's file and the function that makes it.
PAGES: Final = {DOCS / "configuration.md": configuration_page, DOCS / "errors.md": errors_page}


def _default(each: dataclasses.Field[object]) -> str:
    value = each.default
    if each.name.endswith("_bytes") and isinstance(value, int):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value % size == 0:
                return f"`{value}` ({value // size} {unit})"
    if value == ():
        return "none"
    return f"`{value}`" if value != "" else "(empty)"


def _status(kind: type[errors.TensorferryError]) -> str:
    if issubclass(kind, errors.ConfigurationError):
        return "none: found before serving"
    if kind.__subclasses__():
        return "that of its kinds"
    return status_of(kind("")).code.name


def _tree(
    kind: type[errors.TensorferryError], depth: int = 0
) -> Iterator[tuple[int, type[errors.TensorferryError]]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield depth, each
            yield from _tree(each, depth + 1)


def main() -> None:
    """Write both pages."""
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
