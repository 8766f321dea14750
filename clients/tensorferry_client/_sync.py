"""The blocking client: a thin shell over ``_calls`` and ``_retry``."""

from __future__ import annotations

import random as randomness
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc

from tensorferry.wire import model_config_pb2
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry_client import _calls
from tensorferry_client._codec import InferResult, Inputs, Parameter, with_routing
from tensorferry_client._errors import DeadlineExceeded, Unavailable, error_of
from tensorferry_client._options import (
    ClientOptions,
    channel_arguments,
    credentials_of,
    metadata_of,
    options_of,
)
from tensorferry_client._retry import Attempts

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A blocking client: one connection, any number of threads. Close it, or use it in a ``with``.

    Every call takes ``timeout_s``, the seconds until it gives up, retries included: None for the
    options' default, ``math.inf`` for no deadline. Every call may raise any :class:`ClientError`.
    ``clock``, ``sleep`` and ``random`` are there for tests.
    """

    def __init__(
        self,
        options: ClientOptions | str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self._options = options_of(options)
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._is_closed = False
        arguments = channel_arguments(self._options)
        if self._options.tls is None:
            self._channel = grpc.insecure_channel(self._options.target, arguments)
        else:
            self._channel = grpc.secure_channel(
                self._options.target, credentials_of(self._options.tls), arguments
            )
        # Made once: a stub's attribute costs the same, and one made anew for each call costs more.
        self._methods = {
            name: self._channel.unary_unary(
                _calls.path_of(name),
                request_serializer=_calls.serialize,
                response_deserializer=response.FromString,
            )
            for name, response in _calls.UNARY_METHODS.items()
        }

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        label: str = "",
        split_key: str = "",
    ) -> InferResult:
        """Run a model.

        Args:
            model: The model's name.
            inputs: Arrays by input name, in the shape and dtype that the model takes. BF16 is given as a
                :class:`TypedArray`.
            version: The model's version; empty for the one that the server chooses.
            outputs: Names of the outputs wanted; None for all.
            request_id: Comes back in the result.
            timeout_s: As for every call.
            parameters: The request's parameters, such as ``{"timeout": 2000}`` (microseconds).
            label: The label of the version that shall answer, in the place of ``version``.
            split_key: Where the server divides requests among versions, the same key is always answered
                by the same one: a card's hash, say. Empty for the request's id.

        Raises:
            ClientError: see the tree in ``_errors``.
        """
        parameters = with_routing(parameters, label, split_key)
        return self._run(_calls.infer(model, inputs, version, outputs, request_id, parameters), timeout_s)

    def server_live(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server's process is up."""
        return self._run(_calls.server_live(), timeout_s)

    def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Return whether every model that should be served is ready."""
        return self._run(_calls.server_ready(), timeout_s)

    def model_ready(self, model: str, version: str = "", *, timeout_s: float | None = None) -> bool:
        """Return whether the model can be run."""
        return self._run(_calls.model_ready(model, version), timeout_s)

    def server_metadata(self, *, timeout_s: float | None = None) -> pb.ServerMetadataResponse:
        """Return the server's name, version and extensions."""
        return self._run(_calls.server_metadata(), timeout_s)

    def model_metadata(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> pb.ModelMetadataResponse:
        """Return the model's versions, and its inputs and outputs with datatypes and shapes."""
        return self._run(_calls.model_metadata(model, version), timeout_s)

    def model_config(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> model_config_pb2.ModelConfig:
        """Return the model's configuration as the server holds it."""
        return self._run(_calls.model_config(model, version), timeout_s)

    def statistics(
        self, model: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> list[pb.ModelStatistics]:
        """Return the counts and times of one model, or of all."""
        return self._run(_calls.statistics(model, version), timeout_s)

    def repository_index(
        self, *, ready_only: bool = False, timeout_s: float | None = None
    ) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """Return every model and version that the server knows, with its state and reason."""
        return self._run(_calls.repository_index(ready_only), timeout_s)

    def wait_until_connected(self, timeout_s: float) -> bool:
        """Wait for a server that answers; return whether one did within ``timeout_s`` seconds."""
        try:
            self._run(_calls.server_live(), timeout_s, wait_for_ready=True)
        except (DeadlineExceeded, Unavailable):
            return False
        return True

    def close(self) -> None:
        """Close the connection; calls on their way raise ``Cancelled``. Closing twice does nothing."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._options.target}, {'closed' if self._is_closed else 'open'}>"

    def _run(self, call: _calls.Call[T], timeout_s: float | None, wait_for_ready: bool = False) -> T:
        if timeout_s is None:
            timeout_s = self._options.default_timeout_s
        attempts = Attempts(self._options.retry, timeout_s, self._clock, self._random)
        method = self._methods[call.method]
        while True:
            if self._is_closed:
                raise RuntimeError("the client is closed; make a new one")
            try:
                response = method(
                    call.request,
                    timeout=attempts.remaining_s(),
                    metadata=metadata_of(self._options),
                    wait_for_ready=wait_for_ready,
                )
            except grpc.RpcError as problem:
                pause_s = attempts.pause_s(error_of(problem))
            else:
                return call.decode(response)
            self._sleep(pause_s)
