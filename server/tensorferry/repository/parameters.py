"""The keys of the ``parameters`` map that Tensorferry knows.

Rules for this file: ``PARAMETERS`` is the only list of them. A parser takes the specification
so far and the value's text, and returns the specification with the value in it; it raises
``ValueError`` with what the value must be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from tensorferry.model import ModelSpec
from tensorferry.repository.source import ConfigSource, quoted, suggestion

__all__ = ["PARAMETERS", "apply_parameters"]

ParameterParser = Callable[[ModelSpec, str], ModelSpec]

# More threads than any machine has cores; torch takes any number and dies of it later.
_MAX_THREADS: Final = 1024


def _intra_op_threads(spec: ModelSpec, text: str) -> ModelSpec:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_THREADS))
    if not is_number or not 1 <= int(text) <= _MAX_THREADS:
        raise ValueError(f"an integer from 1 to {_MAX_THREADS}")
    return replace(spec, intra_op_threads=int(text))


def _inference_mode(spec: ModelSpec, text: str) -> ModelSpec:
    if text.lower() != "true":
        raise ValueError('"true" (this server runs every model in inference mode), or left out')
    return spec


#: Name to parser, for every parameter that is supported.
PARAMETERS: Final[Mapping[str, ParameterParser]] = {
    "INFERENCE_MODE": _inference_mode,
    "INTRA_OP_THREAD_COUNT": _intra_op_threads,
}


def apply_parameters(source: ConfigSource, spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` with the configuration's parameters in it.

    Raises:
        ModelConfigError: an unknown parameter, or a value that it doesn't take.
    """
    for name in sorted(source.config.parameters):
        parser = PARAMETERS.get(name)
        if parser is None:
            what = f"Tensorferry doesn't know the parameter {quoted(name)}; remove it"
            raise source.error(what + suggestion(name, PARAMETERS), "parameters", name)
        text = source.config.parameters[name].string_value
        try:
            spec = parser(spec, text.strip())
        except ValueError as error:
            raise source.error(
                f"the parameter {name} is {quoted(text)}; it must be {error}", "parameters", name
            ) from None
    return spec
