"""The bridge from gRPC calls to locust's request events. Imported inside locust only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

import grpc.experimental.gevent

# grpc blocks threads of its own in C, where gevent can't reach: without this, one call would stop
# every user. It must come after locust has patched the standard library, which importing locust
# does, and before the first channel. This is the only place that sets it up.
grpc.experimental.gevent.init_gevent()

import grpc  # noqa: E402
from locust import User  # noqa: E402
from locust.env import Environment  # noqa: E402

__all__ = ["BadReply", "GrpcUser"]

#: Users that share a connection: a caller in production keeps several calls in flight on one.
_USERS_PER_CHANNEL: Final = 8


class BadReply(Exception):
    """The call succeeded and the reply isn't what was asked for."""


class _Channels:
    """Hands out channels to ``host``: a new one for every ``_USERS_PER_CHANNEL`` users."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._handed_out = 0
        self._newest: grpc.Channel | None = None

    def take(self) -> grpc.Channel:
        if self._newest is None or self._handed_out % _USERS_PER_CHANNEL == 0:
            # Without a subchannel pool of their own all channels share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._newest = grpc.insecure_channel(self._host, options)
        self._handed_out += 1
        return self._newest


class GrpcUser(User):
    """A user that calls one unary method with ready-made bytes; each call is a locust request.

    ``host`` is the server's ``host:port``. Whatever goes wrong in a call, in the check of its
    reply too, is a failed request.
    """

    abstract = True
    timeout_s = 5.0

    _channels: ClassVar[dict[str, _Channels]] = {}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        assert self.host, "--host HOST:PORT says which server to call"
        self._channel = self._channels.setdefault(self.host, _Channels(self.host)).take()
        self._calls: dict[str, Callable[..., bytes]] = {}

    def call(self, method: str, request: bytes, check: Callable[[bytes], object]) -> None:
        """Call ``method`` ("/package.Service/Name") and tell locust how long it took, in ms.

        ``check`` is given the reply's bytes, outside the measured time, and raises if they are wrong.
        """
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(method)
        event: dict[str, Any] = {
            "request_type": "grpc",
            "name": method.rpartition("/")[2],
            "response_length": 0,
            "exception": None,
        }
        started = time.perf_counter()
        try:
            reply = self._calls[method](request, timeout=self.timeout_s)
            event["response_time"] = 1000.0 * (time.perf_counter() - started)
            event["response_length"] = len(reply)
            check(reply)
        except grpc.RpcError as error:
            event["exception"] = RuntimeError(f"{error.code().name}: {error.details()}")
        except Exception as error:
            event["exception"] = error
        event.setdefault("response_time", 1000.0 * (time.perf_counter() - started))
        self.environment.events.request.fire(**event)
