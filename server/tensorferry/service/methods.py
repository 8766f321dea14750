"""The method table: what a transport serves, and what it must give to a handler.

There are two kinds of handler:

* ``UnaryHandler``, for the hot path: a plain function that gets a call and the request's bytes.
  It answers by ``call.reply`` or ``call.fail``, now or later; no task, no future.
* ``grpc.RpcMethodHandler``, for everything else: the servicer style of ``grpc.aio`` (coroutines
  and async generators with a ``ServicerContext``), so that the ready-made health and reflection
  servicers run unchanged on every transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc

__all__ = ["MethodTable", "ServicerCollector", "UnaryCall", "UnaryHandler"]


class UnaryCall(Protocol):
    """One unary call, as a transport gives it to a ``UnaryHandler``. Used on the loop thread.

    ``deadline`` is an instant of ``time.monotonic()`` in seconds, infinite if there is none.
    ``on_cancel``, set by the handler, is called at most once, when the caller goes away before
    the outcome. ``reply`` or ``fail`` is called exactly once; after a cancellation both do nothing.
    ``traceparent`` and ``tracestate`` are the caller's headers as they came, unchecked, where the server
    traces; else None.
    """

    deadline: float
    on_cancel: Callable[[], None] | None

    @property
    def traceparent(self) -> bytes | None:
        """The caller's trace context."""
        ...

    @property
    def tracestate(self) -> bytes | None:
        """What goes with it."""
        ...

    def reply(self, message: bytes) -> None:
        """Send the serialised response, and status OK."""
        ...

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error."""
        ...


UnaryHandler = Callable[[UnaryCall, bytes], None]

#: Path ("/package.Service/Method") -> handler.
MethodTable = dict[str, "UnaryHandler | grpc.RpcMethodHandler[Any, Any]"]


class ServicerCollector:
    """Stands in for a server in generated ``add_...Servicer_to_server`` functions; keeps the handlers.

    A hand-made table instead of the generated registration: grpc.aio from 1.84 on serves
    registered methods at a cost of 7-34 % per call (docs/performance.md).
    """

    def __init__(self) -> None:
        self.methods: MethodTable = {}

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Take the service's handlers apart; called by generated code."""
        for handler in handlers:
            # The dictionary that grpc.method_handlers_generic_handler was given.
            self.methods.update(handler._method_handlers)  # type: ignore[attr-defined]

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Called by generated code; the same handlers again."""
