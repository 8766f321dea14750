"""How a client reaches its server, and how a scorer behaves: frozen values, checked when they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import grpc

from tensorferry_client._retry import RetryPolicy

__all__ = [
    "ClientOptions",
    "ScorerTuning",
    "TlsOptions",
    "channel_arguments",
    "credentials_of",
    "metadata_of",
    "options_of",
]

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS to the server. The files are PEM, read when the client is made.

    Attributes:
        root_path: Certificates to trust; None for gRPC's own.
        certificate_path: The client's certificate chain, for mutual TLS.
        key_path: The client's private key; given together with the certificate.
        server_name: The name to expect in the server's certificate, if it isn't that of the target.
    """

    root_path: Path | None = None
    certificate_path: Path | None = None
    key_path: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate_path is None) != (self.key_path is None):
            raise ValueError(
                "mutual TLS takes certificate_path and key_path together; one of them is missing"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Where the server is, and how to talk to it.

    Attributes:
        target: ``host:port``, or any target that gRPC takes (``dns:///...``, ``unix:...``).
        default_timeout_s: Deadline of a call that names none, retries included; None for no deadline.
        retry: What happens when the server is away or overloaded.
        tls: None for plain text.
        max_message_bytes: Bound on one message, in each direction.
        keepalive_s: Seconds without traffic, during a call, before a ping is sent.
        keepalive_timeout_s: Seconds without an answer after which the connection is given up.
        keepalive_without_calls: Ping an idle connection too.
        channel_args: More of gRPC's channel arguments; they overrule those above.
        metadata: Asked for each attempt of a call; the pairs that it returns go with it, such as the trace
            context (``traceparent``) of what the caller does just then. It must be quick, and not raise.
    """

    target: str
    default_timeout_s: float | None = 10.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    tls: TlsOptions | None = None
    max_message_bytes: int = 64 * _MEBIBYTE
    # A server that was not told otherwise allows a ping every 5 minutes and hangs up on a client
    # that sends more (GOAWAY, "too_many_pings"). Lower this only where the server permits it.
    keepalive_s: float = 330.0
    # Also becomes the socket's TCP_USER_TIMEOUT, which is what notices a dead peer within a call.
    keepalive_timeout_s: float = 10.0
    keepalive_without_calls: bool = False
    channel_args: tuple[tuple[str, int | str], ...] = ()
    metadata: Callable[[], Sequence[tuple[str, str | bytes]]] | None = None

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target is empty; give host:port")
        positive = {
            "default_timeout_s": 1.0 if self.default_timeout_s is None else self.default_timeout_s,
            "max_message_bytes": self.max_message_bytes,
            "keepalive_s": self.keepalive_s,
            "keepalive_timeout_s": self.keepalive_timeout_s,
        }
        for name, value in positive.items():
            if not 0 < value < inf:
                raise ValueError(f"{name} is {value}; it must be above 0 and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerTuning:
    """What seldom changes about a scorer.

    Attributes:
        version: The model's version; empty for the one that the server chooses.
        label: The label of the version, in the place of ``version``.
        features: Features in a row.
        input_name: The model's input; None to ask the server, which must then name exactly one.
        output_name: The output with the scores; None likewise.
        connections: Connections to the server, used in turn.
        failures_to_open: Calls in a row that find the server away, after which it isn't asked any more.
        probe_interval_s: Seconds between the calls that find out whether it is back.
        retry: Attempts within the budget. One by default: a few milliseconds have no room for more.
        clock: Seconds that never go back; for tests.
    """

    version: str = ""
    label: str = ""
    features: int = 30
    input_name: str | None = None
    output_name: str | None = None
    connections: int = 1
    failures_to_open: int = 5
    probe_interval_s: float = 1.0
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(max_attempts=1))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        for name, value in {"features": self.features, "connections": self.connections}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; at least 1")
        if self.version and self.label:
            raise ValueError(f"version {self.version!r} and label {self.label!r}: give one of them")


def options_of(options: ClientOptions | str) -> ClientOptions:
    """Return the options; a string is a target with everything else at its default."""
    return ClientOptions(target=options) if isinstance(options, str) else options


def metadata_of(options: ClientOptions) -> tuple[tuple[str, str | bytes], ...] | None:
    """Return what goes with the next attempt; None for nothing."""
    return None if options.metadata is None else tuple(options.metadata())


def channel_arguments(options: ClientOptions) -> list[tuple[str, int | str]]:
    """Return gRPC's channel arguments for the options."""
    arguments: dict[str, int | str] = {
        "grpc.max_send_message_length": options.max_message_bytes,
        "grpc.max_receive_message_length": options.max_message_bytes,
        "grpc.keepalive_time_ms": round(options.keepalive_s * 1000),
        "grpc.keepalive_timeout_ms": round(options.keepalive_timeout_s * 1000),
        "grpc.keepalive_permit_without_calls": int(options.keepalive_without_calls),
        # Otherwise all channels of a process to one target share one connection behind the scenes,
        # and making a second client would buy nothing.
        "grpc.use_local_subchannel_pool": 1,
    }
    if options.tls is not None and options.tls.server_name:
        arguments["grpc.ssl_target_name_override"] = options.tls.server_name
    arguments.update(options.channel_args)
    return list(arguments.items())


def credentials_of(tls: TlsOptions) -> grpc.ChannelCredentials:
    """Read the files and return the channel's credentials.

    Raises:
        OSError: a file can't be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=None if tls.root_path is None else tls.root_path.read_bytes(),
        private_key=None if tls.key_path is None else tls.key_path.read_bytes(),
        certificate_chain=None if tls.certificate_path is None else tls.certificate_path.read_bytes(),
    )
