"""One file per model format. The table names them; a backend is imported when a model needs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, cast

from tensorferry.errors import ModelLoadError
from tensorferry.model import Model, ModelSpec

__all__ = ["BACKENDS", "opener"]

#: A backend's opener loads a model onto a device: ``open_model(spec, device) -> Model``.
Opener = Callable[[ModelSpec, str], Model]

#: Triton's platform name -> the module that holds its ``open_model``.
BACKENDS: Final = {
    "pytorch_libtorch": "tensorferry.execution.backends.torchscript",
    "torch_aoti": "tensorferry.execution.backends.torch_export",
    "onnxruntime_onnx": "tensorferry.execution.backends.onnxruntime",
    "python": "tensorferry.execution.backends.python",
}

#: Which extra brings a backend's libraries, where it isn't the server's own.
_EXTRAS: Final = {"onnxruntime_onnx": "onnx"}


def opener(spec: ModelSpec) -> Opener:
    """Return the function that loads models like ``spec``.

    Raises:
        ModelLoadError: no such backend, or its libraries aren't installed.
    """
    module = BACKENDS.get(spec.platform)
    if module is None:
        raise ModelLoadError(f"model {spec.name!r}: no platform {spec.platform!r}; known: {sorted(BACKENDS)}")
    try:
        return cast(Opener, importlib.import_module(module).open_model)
    except ImportError as error:
        raise ModelLoadError(
            f"model {spec.name!r}: the backend of {spec.platform} can't be imported ({error});"
            f" install it with: pip install 'tensorferry[{_EXTRAS.get(spec.platform, 'server')}]'"
        ) from error
