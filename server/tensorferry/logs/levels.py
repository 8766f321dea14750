"""Which lines are written and in which form, and how a request changes that: Triton's log settings.

As in Triton each level is on or off by itself, so ``log_warning`` off and ``log_info`` on is a state, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tensorferry.errors import InvalidRequest

__all__ = ["LEVELS", "Levels", "LogSettings"]

#: Least severe first.
LEVELS: Final = ("debug", "info", "warning", "error")

#: A request's name of a form, and ours. Instants are written as ISO 8601 whatever it is called.
_FORMS: Final = {"default": "console", "ISO8601": "console", "console": "console", "json": "json"}

_SWITCHES: Final = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
_LARGEST_VERBOSE: Final = 2**32 - 1


class Levels:
    """Which levels are written, each on or off, and the form: ``console`` or ``json``."""

    __slots__ = ("debug", "error", "form", "info", "verbose", "warning")

    def __init__(self) -> None:
        self.form = "console"
        self.start_at("info")

    def start_at(self, level: str) -> None:
        """Write lines of this level and above. ``level`` is one of LEVELS."""
        lowest = LEVELS.index(level)
        self.verbose = 1 if lowest == 0 else 0
        self.debug, self.info, self.warning, self.error = (number >= lowest for number in range(len(LEVELS)))


class LogSettings:
    """Answers and carries out what the LogSettings call asks (an ``Adjustable``; see ``control``)."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def describe(self, scope: str) -> dict[str, Any]:
        """Return all settings as they are; ``scope`` is "", as there are no settings of a model."""
        levels = self._levels
        return {
            "log_file": "",
            "log_info": levels.info,
            "log_warning": levels.warning,
            "log_error": levels.error,
            "log_verbose_level": levels.verbose,
            "log_format": "json" if levels.form == "json" else "default",
        }

    def apply(self, scope: str, change: Mapping[str, Any]) -> None:
        """Change some settings: all of them, or none.

        Raises:
            InvalidRequest: a setting is unknown, or its value is none of its values; nothing is changed.
        """
        for name, value in change.items():
            self._check(name, value)
        levels = self._levels
        for name, value in change.items():
            if name in _SWITCHES:
                setattr(levels, _SWITCHES[name], value)
            elif name == "log_verbose_level":
                levels.verbose = value
                levels.debug = value >= 1
            elif name == "log_format":
                levels.form = _FORMS[value]

    def _check(self, name: str, value: object) -> None:
        if name in _SWITCHES:
            if not isinstance(value, bool):
                raise InvalidRequest(
                    f"log setting {name!r} is true or false (bool_param), not {_told(value)}"
                )
        elif name == "log_verbose_level":
            is_number = isinstance(value, int) and not isinstance(value, bool)
            if not is_number or not 0 <= int(str(value)) <= _LARGEST_VERBOSE:
                raise InvalidRequest(
                    f"log setting {name!r} is a number from 0 (uint32_param), not {_told(value)};"
                    " from 1 on, debug lines are written"
                )
        elif name == "log_format":
            if not isinstance(value, str) or value not in _FORMS:
                raise InvalidRequest(f"log setting {name!r} is one of {sorted(_FORMS)}, not {_told(value)}")
        elif name == "log_file":
            if value != "":
                raise InvalidRequest(
                    f"log setting {name!r} can only be empty: this server logs to standard error;"
                    " redirect that where the server is started"
                )
        else:
            raise InvalidRequest(
                f"there is no log setting {str(name)[:64]!r}; there are {sorted(self.describe(''))}"
            )


def _told(value: object) -> str:
    return repr(value[:64] if isinstance(value, str) else value) if value is not None else "nothing"
