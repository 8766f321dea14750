"""What of a value may stand in a log: never a tensor, never a secret, never an unbounded text.

Only values of known plain types are shown as they are. Everything else is described: bytes by their length,
whatever has a shape and a dtype (arrays, tensors) by these, any other object by its type's name. So what
nobody thought of is hidden, not shown.
"""

from __future__ import annotations

import datetime
import enum
import math
import numbers
import re
import sys
import traceback
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import PurePath
from typing import Any, Final

from tensorferry.errors import TensorferryError

__all__ = ["HIDDEN", "message_of", "redact", "shown", "text_of", "traceback_of", "without_data"]

#: Stands for what is secret.
HIDDEN: Final = "[hidden]"

#: Characters of a text, by key where one is known to be a client's own.
_LONGEST: Final = 2000
_LONGEST_OF: Final = {"event": 500, "request_id": 128, "trace_id": 64, "model": 256, "peer": 256}
#: Of what an exception says, in which libraries like to print data.
_LONGEST_MESSAGE: Final = 1000
_LONGEST_SEARCHED: Final = 65_536
_LONGEST_KEY: Final = 64
#: Items of a list or a mapping, and how deep they are looked into.
_MOST_ITEMS: Final = 32
_DEEPEST: Final = 4
_LARGEST_BITS: Final = 128
_MOST_FRAMES: Final = 40
_MOST_CAUSES: Final = 5

_SECRET_WORDS: Final = frozenset(
    (
        *("authorization", "auth", "bearer", "jwt", "cookie", "cookies", "signature", "token", "tokens"),
        *("password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"),
        *("apikey", "key", "keys", "pem"),
    )
)
_WORDS: Final = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

#: Secrets inside a text: what follows a telling name, a PEM block, and a URL's password.
_SECRET_TEXT: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]*-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]*(?=@)"
    r"|\b(?:bearer|basic)\s+[\w.~+/=-]{8,}"
    r"|(?P<name>\b[\w-]*(?:authorization|password|passwd|passphrase|secret|token|credential|cookie"
    r"|api[_-]?key|private[_-]?key)s?[\"']?\s*[:=]\s*)(?:(?:bearer|basic)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&)}\]]+)",
    re.IGNORECASE | re.DOTALL,
)

#: Data as libraries print it: a tensor or an array, a long bytes literal, a long row of numbers.
_DATA_TEXT: Final = re.compile(
    r"(?P<call>\b(?:tensor|array|ndarray))\([^()]*(?:\)|\Z)"
    r"|(?P<literal>\bb)(?:'(?:\\.|[^'\\]){17,}(?:'|\Z)|\"(?:\\.|[^\"\\]){17,}(?:\"|\Z))"
    r"|(?P<row>\[)(?:\s*[-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf)\s*[,\s]){8,}[^\[\]]*(?:\]|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def redact(logger: object, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: make every value one that may be shown, and ``exc_info`` a text."""
    error = _error_of(event_dict.pop("exc_info", None))
    for key, value in event_dict.items():
        event_dict[key] = shown(value, key)
    if error is not None:
        event_dict["exception"] = traceback_of(error)
    return event_dict


def shown(value: object, key: str = "", depth: int = 0) -> Any:  # noqa: ANN401 - what JSON holds
    """Return what may be shown of a value: None, a bool, a number, a text, or lists and dicts of these."""
    if value is None or isinstance(value, bool):
        return value
    if key and _is_secret(key):
        return HIDDEN
    if isinstance(value, str):
        return text_of(value, _LONGEST_OF.get(key, _LONGEST))
    if isinstance(value, BaseException):
        return message_of(value)
    if isinstance(value, enum.Enum):
        return text_of(str(value._name_))
    if isinstance(value, numbers.Number):
        return _number(value)
    if isinstance(value, PurePath | uuid.UUID | datetime.date | datetime.time | datetime.timedelta):
        return text_of(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        return f"<{type(value).__name__} of {size} bytes>"
    if isinstance(value, Mapping | list | tuple | set | frozenset) and not hasattr(value, "dtype"):
        return _collection(value, key, depth)
    return _described(value)


def text_of(text: str, longest: int = _LONGEST) -> str:
    """Return a text without secrets and control characters, cut to ``longest`` characters."""
    head = text[: 2 * longest]  # before the searches: they take time for each character
    head = _SECRET_TEXT.sub(_hidden, str(head))
    if not head.isprintable():
        head = "".join(c if c.isprintable() else repr(c)[1:-1] for c in head)
    if len(text) > 2 * longest or len(head) > longest:
        return f"{head[:longest]}... ({len(text)} characters)"
    return head


def message_of(error: BaseException, longest: int = _LONGEST_MESSAGE) -> str:
    """Return what an exception says, with its type unless it is ours; data in it is left out.

    Of a long message the beginning and the end are kept: TorchScript says last what went wrong.
    """
    try:
        said = str(error)
    except Exception:
        said = "(says nothing: its text can't be made)"
    if len(said) > _LONGEST_SEARCHED:
        said = said[: _LONGEST_SEARCHED // 2] + said[-_LONGEST_SEARCHED // 2 :]
    said = without_data(_SECRET_TEXT.sub(_hidden, said))  # before the cut, which might halve a secret
    if len(said) > longest:
        said = f"{said[: longest // 2]} ... {len(said) - longest} characters ... {said[-longest // 2 :]}"
    said = "\n".join(text_of(line, 2 * longest) for line in said.splitlines())
    if isinstance(error, TensorferryError):
        return said
    name = type(error).__name__
    return f"{name}: {said}" if said else name


def without_data(text: str) -> str:
    """Return a library's text without what looks like tensors, bytes or rows of numbers in it."""
    return _DATA_TEXT.sub(_elided, text)


def traceback_of(error: BaseException) -> str:
    """Return an exception's traceback and its causes', without local variables."""
    parts: list[str] = []
    each: BaseException | None = error
    while each is not None and len(parts) < _MOST_CAUSES:
        frames = _frames_of(each)
        if len(frames) > _MOST_FRAMES:
            half = _MOST_FRAMES // 2
            left_out = f"  ... {len(frames) - _MOST_FRAMES} frames ...\n"
            frames = [*frames[:half], left_out, *frames[-half:]]
        name = type(each).__name__
        said = message_of(each)
        said = said if said.startswith(name) else f"{name}: {said}"
        head = "Traceback (most recent call last):\n" if frames else ""
        parts.append(f"{head}{''.join(frames)}{said}")
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\n\nafter which came:\n\n".join(reversed(parts))


def _frames_of(error: BaseException) -> list[str]:
    try:
        return traceback.format_tb(error.__traceback__)
    except Exception:  # the source has been changed since it was loaded, or the like
        walked = traceback.walk_tb(error.__traceback__)
        return [f'  File "{f.f_code.co_filename}", line {n}, in {f.f_code.co_name}\n' for f, n in walked]


def _error_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return next((each for each in exc_info if isinstance(each, BaseException)), None)
    return sys.exc_info()[1] if exc_info else None


def _is_secret(key: str) -> bool:
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(key[:_LONGEST_KEY]))


def _number(value: Any) -> object:  # noqa: ANN401 - of the numeric tower, which the type checker doesn't know
    if isinstance(value, numbers.Integral):
        number = int(value)  # NumPy's, and an int's subclasses, whose text may be anything
        bits = number.bit_length()
        return number if bits <= _LARGEST_BITS else f"<int of {bits} bits>"
    if isinstance(value, numbers.Real):
        real = float(value)
        return real if math.isfinite(real) else str(real)
    return _described(value)


def _collection(value: Any, key: str, depth: int) -> object:  # noqa: ANN401 - one of several types
    if depth >= _DEEPEST or len(value) > _MOST_ITEMS:
        return f"<{type(value).__name__} of {len(value)} items>"
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[object, object]] = value.items()
        return {_key(name): shown(own, _key(name), depth + 1) for name, own in pairs}
    return [shown(own, key, depth + 1) for own in value]


def _key(name: object) -> str:
    return text_of(name, _LONGEST_KEY) if isinstance(name, str) else str(shown(name))


def _described(value: object) -> str:
    kind = type(value).__qualname__
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is not None and dtype is not None:
            return f"<{kind} {str(dtype)[:32]} {[int(each) for each in shape][:16]}>"
    except Exception:  # an object that only looks like an array
        return f"<{kind}>"
    return f"<{kind}>"


def _hidden(match: re.Match[str]) -> str:
    return (match["name"] or "") + HIDDEN


def _elided(match: re.Match[str]) -> str:
    if match["call"]:
        return f"{match['call']}(...)"
    return "b'...'" if match["literal"] else "[...]"
