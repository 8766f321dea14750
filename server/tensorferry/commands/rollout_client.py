"""What the rollout commands share: the flags that name a server, the connection, and its errors in words."""

from __future__ import annotations

import argparse
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensorferry.errors import ConfigurationError, TensorferryError

if TYPE_CHECKING:
    import grpc

    from tensorferry.wire import rollout_pb2 as pb

__all__ = ["DEFAULT_SERVER", "CallFailed", "RolloutServer", "add_server_flags", "connected"]

DEFAULT_SERVER: Final = "localhost:8001"

_CONNECT_S: Final = 5.0
#: A change may load a version, which is answered when that is done.
_TIMEOUT_S: Final = 300.0


class CallFailed(TensorferryError):
    """The server couldn't be asked, or refused."""


def add_server_flags(parser: argparse.ArgumentParser, server: str) -> None:
    """Declare the flags that say which server is meant; ``server`` is the default."""
    parser.add_argument(
        "--server", default=server, metavar="HOST:PORT", help="default: %(default)s (TENSORFERRY_SERVER)"
    )
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="use TLS; the authorities to trust, in PEM"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for scripts")


class RolloutServer:
    """A server's rollout calls. Every method raises ``CallFailed`` with what to do about it."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        from tensorferry.wire import rollout_pb2_grpc

        self._stub = rollout_pb2_grpc.ModelRolloutStub(channel)  # type: ignore[no-untyped-call]
        self._address = address

    def status(self, model: str) -> pb.RolloutStatusResponse:
        """Return a model's rollout and its ready versions."""
        from tensorferry.wire import rollout_pb2 as pb

        response: pb.RolloutStatusResponse = self._call(
            self._stub.RolloutStatus, pb.RolloutStatusRequest(model_name=model)
        )
        return response

    def change(self, request: pb.ChangeRolloutRequest) -> pb.RolloutStatusResponse:
        """Change a rollout; return what it is then."""
        response: pb.RolloutStatusResponse = self._call(self._stub.ChangeRollout, request)
        return response

    def report(self, model: str) -> pb.RolloutReportResponse:
        """Return what the arms have answered."""
        from tensorferry.wire import rollout_pb2 as pb

        response: pb.RolloutReportResponse = self._call(
            self._stub.RolloutReport, pb.RolloutReportRequest(model_name=model)
        )
        return response

    def feedback(self, request: pb.RolloutFeedbackRequest) -> int:
        """Feed labels back; return how many of them belong to requests that are remembered."""
        response: pb.RolloutFeedbackResponse = self._call(self._stub.RolloutFeedback, request)
        return response.matched

    def _call(self, method: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - a message
        import grpc

        try:
            return method(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CallFailed(_in_words(error, self._address)) from None


@contextmanager
def connected(parsed: argparse.Namespace) -> Iterator[RolloutServer]:
    """Yield the server that the flags name, connected.

    Raises:
        CallFailed: nothing answers there.
        ConfigurationError: the file of ``--tls-ca`` can't be read.
    """
    import grpc

    if parsed.tls_ca is None:
        channel = grpc.insecure_channel(parsed.server)
    else:
        try:
            authorities = parsed.tls_ca.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"--tls-ca {parsed.tls_ca}: {error.strerror}") from None
        channel = grpc.secure_channel(parsed.server, grpc.ssl_channel_credentials(authorities))
    with channel:
        _connect(channel, parsed.server, has_tls=parsed.tls_ca is not None)
        yield RolloutServer(channel, parsed.server)


def _connect(channel: grpc.Channel, address: str, *, has_tls: bool) -> None:
    """Wait until the channel is connected: afterwards, UNAVAILABLE is the server's own word."""
    import grpc

    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    try:
        while (state := states.get(timeout=_CONNECT_S)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise queue.Empty
    except queue.Empty:
        hint = (
            "does it speak TLS, and is its certificate's name this one?"
            if has_tls
            else ("is it up, and does it speak plain text (else give --tls-ca)?")
        )
        raise CallFailed(f"no server can be reached at {address}: {hint}") from None
    finally:
        channel.unsubscribe(states.put)


def _in_words(error: grpc.RpcError, address: str) -> str:
    import grpc

    code, details = error.code(), error.details()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server at {address} knows no rollouts: it isn't Tensorferry, or is an older one"
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return f"the server at {address} takes no changes: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"no answer from {address} within {_TIMEOUT_S:g} s; a change may still be made: "
            "look with `tensorferry rollout status`"
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return f"the server at {address}: {details} ({code.name})"
    return str(details)
