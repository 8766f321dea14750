"""One copy of a model for all streams of a device (``ENABLE_WEIGHT_SHARING``).

Shared is what loading makes: the module with its weights, laid out and checked. Each stream has its own
way of calling it (``torch_tuning.tuned``) and its own buffers. A model whose runs leave traces in it
can't be shared, as one stream's run would change another's answer:

* TorchScript: ``torch.jit.freeze`` makes a constant of every attribute that no method changes. If the
  frozen graph still reads or writes an attribute, running changes it.
* exported programs: an operator that writes to its argument (its schema says so) is followed back over
  the operators that return views; if it leads to a weight, a buffer or a constant, running changes it.

Either way the streams are then given copies of their own, with a warning.

Ownership: the registry holds the copies weakly, so that a copy is freed with the last model that uses
it. A lock for each key lets the streams that load at the same time wait for the first of them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import torch

from tensorferry.execution.backends.torch_tuning import Call
from tensorferry.model import ModelSpec

__all__ = ["Prepared", "changed_by_program", "changed_by_script", "prepared_once"]

_log = structlog.get_logger("tensorferry.execution")


@dataclass(eq=False)
class Prepared:
    """A loaded, checked module.

    ``spec`` is completed; ``order`` and ``owned`` are those of ``TorchModel``. ``changed`` says what
    running it changes in it; "" if nothing. Only asked where it is to be shared.
    """

    call: Call
    spec: ModelSpec
    order: list[int]
    owned: list[torch.Tensor]
    changed: str = field(default="")


class _KeyLock:
    """A lock that can be referred to weakly."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_guard: Final = threading.Lock()
_locks: Final[weakref.WeakValueDictionary[Hashable, _KeyLock]] = weakref.WeakValueDictionary()
_shared: Final[weakref.WeakValueDictionary[Hashable, Prepared]] = weakref.WeakValueDictionary()


def prepared_once(spec: ModelSpec, device: str, prepare: Callable[[ModelSpec, str], Prepared]) -> Prepared:
    """Return ``prepare(spec, device)``, or what another stream of the same device has from it.

    The call of a shared one keeps it alive. Without ``shares_weights`` nothing is shared.

    Raises:
        Exception: whatever ``prepare`` raises; the next stream tries again.
    """
    if not spec.tuning.shares_weights:
        return prepare(spec, device)
    key = (spec, device, _identity(spec))
    with _guard:
        lock = _locks.setdefault(key, _KeyLock())
    with lock.lock:
        found = _shared.get(key)
        if found is not None:
            return _held(found)
        made = prepare(spec, device)
        if made.changed:
            _log.warning(
                "weights aren't shared: every stream has its own",
                model=spec.name,
                version=spec.version,
                reason=made.changed,
            )
            return made
        _shared[key] = made
        return _held(made)


def changed_by_script(module: torch.jit.ScriptModule) -> str:
    """Say what running a TorchScript module changes in it; "" if nothing."""
    freeze: Callable[..., torch.jit.ScriptModule] = torch.jit.freeze
    try:
        frozen = freeze(module, optimize_numerics=False)
    except Exception as error:
        return f"torch can't tell what its runs change: {str(error).strip().splitlines()[:1]}"
    graph: Any = frozen.graph
    found = [*graph.findAllNodes("prim::SetAttr"), *graph.findAllNodes("prim::GetAttr")]
    # A submodule is read on the way to what is changed in it.
    names = [node.s("name") for node in found if node.kind() == "prim::SetAttr" or not _reads_module(node)]
    return f"its runs change the attribute {(names or [found[0].s('name')])[0]!r}" if found else ""


def changed_by_program(module: torch.fx.GraphModule) -> str:
    """Say what running an exported program's module changes in it; "" if nothing."""
    for node in module.graph.nodes:
        if node.op in ("call_module", "call_method"):
            return f"torch can't tell what {str(node.target)!r} in it changes"
        for written in _written(node):
            root = _root(written)
            if root is not None:
                return f"its runs change {str(root.target)!r}"
    return ""


def _reads_module(node: Any) -> bool:  # noqa: ANN401 - a node of torch's, for which it has no name
    return bool(node.output().type().kind() == "ClassType")


def _held(shared: Prepared) -> Prepared:
    """Return ``shared`` with a call that keeps the registry's own object alive."""

    def call(*inputs: torch.Tensor) -> object:
        return shared.call(*inputs)

    return Prepared(call, shared.spec, shared.order, shared.owned)


def _identity(spec: ModelSpec) -> tuple[int, int, int]:
    """Tell a file from the one that has replaced it, where ``spec.content`` doesn't."""
    about = spec.path.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _written(node: torch.fx.Node) -> list[torch.fx.Node]:
    return _arguments(node, lambda argument: argument.alias_info is not None and argument.alias_info.is_write)


def _root(written: torch.fx.Node) -> torch.fx.Node | None:
    """Follow views back to the weight, buffer or constant that they are of; None if it is none."""
    seen: set[torch.fx.Node] = set()
    ahead = [written]
    while ahead:
        node = ahead.pop()
        if node.op == "get_attr":
            return node
        if node in seen or node.op != "call_function":
            continue  # an input leads nowhere
        seen.add(node)
        has_schema = _schema(node) is not None
        ahead += _arguments(node, _may_alias) if has_schema else node.all_input_nodes
    return None


def _may_alias(argument: Any) -> bool:  # noqa: ANN401 - torch has no name for it
    return argument.alias_info is not None


def _arguments(node: torch.fx.Node, is_wanted: Callable[[Any], bool]) -> list[torch.fx.Node]:
    """Return the nodes that stand for those arguments of an operator that are wanted."""
    found: list[torch.fx.Node] = []
    schema = _schema(node)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        if not is_wanted(argument):
            continue
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [each for each in values if isinstance(each, torch.fx.Node)]
    return found


def _schema(node: torch.fx.Node) -> Any:  # noqa: ANN401
    """Return what an operator's schema is; None where it has none, as ``operator.getitem``."""
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None
