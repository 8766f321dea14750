"""Refuses, while a graph is captured on the CPU, what CUDA refuses on a GPU: the host waiting for the device.

Python code is watched by a ``TorchFunctionMode``, for only that tells ``x.cpu()`` from
``x.to(x.device)`` where both do nothing; operators, those of TorchScript too, by a ``TorchDispatchMode``.
Not seen: boolean masks that are assigned to, ``repeat_interleave`` without an output size, and what
extensions do on their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["refusing_host_reads"]

#: Methods that bring a tensor, or what depends on its values, to the host.
_METHODS: Final = frozenset(
    {"cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__int__", "__float__", "__index__"}
)
#: Operators that do, or whose output's shape depends on values.
_OPERATORS: Final = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
    | {"_unique", "_unique2", "unique_dim", "unique_consecutive"}
)
_INDEX_TYPES: Final = (torch.bool, torch.uint8)


@contextlib.contextmanager
def refusing_host_reads() -> Iterator[None]:
    """Within it, what CUDA can't capture raises RuntimeError; afterwards too, if that was swallowed."""
    refusal = _Refusal()
    functions = _Functions(refusal)
    try:
        with functions, _Operators(refusal, functions):
            yield
    except Exception as error:
        if refusal.reason:  # TorchScript passes on that there was an error, and not which
            raise RuntimeError(refusal.reason) from error
        raise
    if refusal.reason:
        raise RuntimeError(refusal.reason)


class _Refusal:
    def __init__(self) -> None:
        self.reason = ""

    def __call__(self, what: str) -> None:
        self.reason = (
            "CUDA error: operation not permitted when stream is capturing (emulated):"
            f" {what} waits for the device"
        )
        raise RuntimeError(self.reason)


class _Functions(TorchFunctionMode):
    #: Whether the operator that comes next is Python's ``x.to(...)``.
    is_moving = False

    def __init__(self, refuse: _Refusal) -> None:
        super().__init__()
        self._refuse = refuse

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = getattr(func, "__name__", "")
        if name in _METHODS:
            self._refuse(name)
        if name == "tensor" and (kwargs or {}).get("device") is not None:
            self._refuse("torch.tensor with a device, a copy from memory that isn't pinned,")
        self.is_moving = name == "to"
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, refuse: _Refusal, functions: _Functions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refuse = refuse
        self._functions = functions

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _OPERATORS:
            self._refuse(name)
        # How TorchScript spells x.cpu(); what Python spells so has been seen as a function.
        if name == "to" and {"device", "layout", "dtype"} <= given.keys() and not self._functions.is_moving:
            self._refuse("cpu")
        if name == "index" and any(each is not None and each.dtype in _INDEX_TYPES for each in args[1]):
            self._refuse("a boolean mask")
        return func(*args, **given)
