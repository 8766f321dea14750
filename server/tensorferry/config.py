"""The server's settings, declared once.

Each field of :class:`ServerConfig` carries its default, its help and its validator. The command
line's flags, the ``TENSORFERRY_*`` environment variables and the keys of the settings file
(``--config FILE``, TOML) are all made from these fields. The nearest wins: flag, then
environment, then file, then default.

Rules for this file: nothing below ``cli`` reads ``os.environ``; every limit has its unit in its name.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from tensorferry.errors import SettingsError

__all__ = ["ENVIRONMENT_PREFIX", "UNIX_PREFIX", "ServerConfig", "add_flags", "load"]

ENVIRONMENT_PREFIX = "TENSORFERRY_"
#: Variables that are no setting of the server: where the settings file is, and which server commands ask.
_NO_SETTINGS: Final = (f"{ENVIRONMENT_PREFIX}CONFIG", f"{ENVIRONMENT_PREFIX}SERVER")

#: What an address starts with that is a unix socket's path, as in gRPC's targets.
UNIX_PREFIX: Final = "unix:"
#: sockaddr_un holds 108 bytes, the last of them zero.
_MAX_UNIX_PATH_BYTES: Final = 107

Validator = Callable[[Any], str | None]


def _at_least(bound: float) -> Validator:
    return lambda value: None if value >= bound else f"must be at least {bound:g}, not {value:g}"


def _one_of(*choices: str) -> Validator:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}, not {value!r}"


def _port(value: int) -> str | None:
    return None if 0 <= value <= 65535 else f"must be a port from 0 (any free one) to 65535, not {value}"


def _not_empty(value: str) -> str | None:
    return None if str(value) else "must not be empty"


def _address(value: str) -> str | None:
    if not value:
        return "must not be empty"
    if not value.startswith(UNIX_PREFIX):
        return None
    path = value.removeprefix(UNIX_PREFIX)
    if not path.startswith("/"):
        return f"must give the socket's absolute path, as in unix:/run/tensorferry.sock, not {value!r}"
    size = len(os.fsencode(path))
    if size > _MAX_UNIX_PATH_BYTES:
        return f"names a socket by {size} bytes; the limit is {_MAX_UNIX_PATH_BYTES}: choose a shorter path"
    return None


def _setting(default: object, help: str, check: Validator | None = None) -> Any:  # noqa: ANN401 - a field of any type
    return field(default=default, metadata={"help": help, "check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that ``tensorferry serve`` can be told. Constructed valid, or not at all.

    Raises:
        SettingsError: names the setting, what it may be and what it was.
    """

    model_repository: Path = _setting(Path("models"), "directory of models, in Triton's layout", _not_empty)
    model_control_mode: str = _setting(
        "none",
        "none: serve what the repository holds at start; poll: follow its changes; explicit: load and unload"
        " by request",
        _one_of("none", "poll", "explicit"),
    )
    load_model: tuple[str, ...] = _setting(
        (), "with explicit control, a model to load at start (* for all); may be given several times"
    )
    repository_poll_secs: float = _setting(
        15.0, "with poll control, seconds between two looks at the repository", _at_least(0.05)
    )
    memory_reserve_bytes: int = _setting(
        256 * 2**20, "memory that loading a model must leave free, or it is refused", _at_least(0)
    )
    host: str = _setting(
        "127.0.0.1",
        "address to listen on, for gRPC and HTTP; unix:/path/to/socket for gRPC, and HTTP on 127.0.0.1",
        _address,
    )
    grpc_port: int = _setting(8001, "port of the inference service; 0 takes a free one", _port)
    http_port: int = _setting(8002, "port of health and metrics; 0 takes a free one", _port)
    transport: str = _setting(
        "auto", "gRPC transport: auto, grpcio or http2", _one_of("auto", "grpcio", "http2")
    )
    processes: int = _setting(1, "server processes that share the port", _at_least(1))
    tls_certificate: str = _setting(
        "", "PEM file of the server's certificate chain; gRPC then takes TLS alone; empty: plain text"
    )
    tls_key: str = _setting("", "PEM file of the certificate's private key, without a passphrase")
    tls_client_ca: str = _setting(
        "", "PEM file of the authorities that must have signed every caller's certificate; empty: ask none"
    )
    max_message_bytes: int = _setting(64 * 2**20, "largest request or reply", _at_least(1024))
    max_queue_size: int = _setting(
        4096, "requests that may wait for one model, unless its configuration says", _at_least(1)
    )
    max_inflight_bytes: int = _setting(
        2**30, "tensor bytes of all requests waiting or running", _at_least(1024)
    )
    response_cache_bytes: int = _setting(
        64 * 2**20, "answers kept for models with response_cache, per process; 0: none", _at_least(0)
    )
    shared_memory: str = _setting(
        "off",
        "on, or off: whether callers on this machine may register shared memory and leave tensors there."
        " Whoever may call may then have the server read and write any object under /dev/shm that its"
        " user may, by name: turn it on only where all callers are trusted with that",
        _one_of("on", "off"),
    )
    max_connections: int = _setting(10_000, "gRPC connections at once", _at_least(1))
    max_concurrent_streams: int = _setting(1_000, "calls in progress on one connection", _at_least(1))
    max_header_list_bytes: int = _setting(16 * 2**10, "headers of one call", _at_least(1024))
    max_connection_receive_bytes: int = _setting(
        256 * 2**20, "bytes of messages that are partly here, of one connection", _at_least(1024)
    )
    max_connection_send_bytes: int = _setting(
        64 * 2**20,
        "reply bytes that one connection may leave unread before it isn't read from",
        _at_least(1024),
    )
    handshake_timeout_s: float = _setting(10.0, "how long a new connection may say nothing", _at_least(0.1))
    idle_timeout_s: float = _setting(
        0.0, "close a connection without calls after this; 0: never", _at_least(0)
    )
    keepalive_time_s: float = _setting(60.0, "ping a silent peer after this; 0: never", _at_least(0))
    keepalive_timeout_s: float = _setting(20.0, "how long a peer may take to answer a ping", _at_least(0.1))
    min_ping_interval_s: float = _setting(
        5.0, "a peer that pings an idle connection oftener is sent away", _at_least(0)
    )
    max_connection_age_s: float = _setting(
        0.0, "send a connection away after this, so that load spreads anew; 0: never", _at_least(0)
    )
    max_connection_age_grace_s: float = _setting(
        30.0, "how long an aged connection's calls may take to finish", _at_least(0)
    )
    max_resets_burst: int = _setting(1_000, "calls that one peer may reset in a burst", _at_least(1))
    max_resets_per_s: float = _setting(200.0, "calls that one peer may reset, lastingly", _at_least(1))
    max_control_frames_burst: int = _setting(
        1_000, "pings, settings, priorities and empty frames of one peer in a burst", _at_least(1)
    )
    max_control_frames_per_s: float = _setting(100.0, "the same, lastingly", _at_least(1))
    response_compression: str = _setting(
        "identity",
        "compress replies where the caller takes it: identity, gzip or deflate",
        _one_of("identity", "gzip", "deflate"),
    )
    drain_timeout_s: float = _setting(
        30.0, "how long a stopping server waits for calls in flight", _at_least(0)
    )
    monitoring: str = _setting(
        "on",
        "on, or off: without histograms and the live page; the counters stay",
        _one_of("on", "off"),
    )
    trace_endpoint: str = _setting(
        "", "OTLP/HTTP collector that traces are sent to, such as http://localhost:4318; empty: no traces"
    )
    trace_rate: int = _setting(
        1000,
        "one in so many calls is traced that carry no decision of their caller's; 0: only the caller's",
        _at_least(0),
    )
    trace_max_per_s: float = _setting(20.0, "most calls traced per second, whoever asks for it", _at_least(0))
    log_max_lines_per_s: float = _setting(
        20.0, "log lines of one kind, lastingly; what is left out is counted", _at_least(0.1)
    )
    log_level: str = _setting(
        "info", "least severe log line to write", _one_of("debug", "info", "warning", "error")
    )
    log_format: str = _setting("console", "console or json", _one_of("console", "json"))

    def __post_init__(self) -> None:
        for each in fields(self):
            check: Validator | None = each.metadata["check"]
            fault = check(getattr(self, each.name)) if check else None
            if fault:
                raise SettingsError(f"{_flag(each.name)} {fault}")
        fault = _contradiction(self)
        if fault:
            raise SettingsError(fault)

    @property
    def unix_path(self) -> str:
        """The socket's path if gRPC listens on one, or ""."""
        return self.host.removeprefix(UNIX_PREFIX) if self.host.startswith(UNIX_PREFIX) else ""

    @property
    def http_host(self) -> str:
        """The address of the HTTP port: probes and Prometheus speak TCP."""
        return "127.0.0.1" if self.unix_path else self.host


def _contradiction(config: ServerConfig) -> str | None:
    """Say which settings don't go together, if any."""
    if config.load_model and config.model_control_mode != "explicit":
        return (
            f"--load-model is for --model-control-mode explicit, and it is {config.model_control_mode};"
            " remove --load-model, or change the mode"
        )
    if config.unix_path and config.processes > 1:
        return (
            f"--processes {config.processes} can't share the unix socket of --host {config.host}: the kernel"
            " spreads connections over TCP ports only; use --processes 1, or an address and a port"
        )
    if config.tls_key and not config.tls_certificate:
        return "--tls-key is of no use without --tls-certificate: give both, or neither"
    if config.tls_certificate and not config.tls_key:
        return "--tls-certificate needs its private key: give --tls-key too"
    if config.tls_client_ca and not config.tls_certificate:
        return (
            "--tls-client-ca asks callers for certificates, which needs TLS: give --tls-certificate"
            " and --tls-key too"
        )
    return None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for each setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help="settings file (TOML); flags and environment win over it"
    )
    for each in fields(ServerConfig):
        is_list = _kind(each) is tuple
        default = "none" if is_list else each.default
        parser.add_argument(
            _flag(each.name),
            dest=each.name,
            metavar="NAME" if is_list else _kind(each).__name__.upper(),
            action="append" if is_list else "store",
            default=None,
            help=f"{each.metadata['help']} (default: {default}; {_variable(each.name)})",
        )


def load(flags: Mapping[str, str | list[str] | None], environment: Mapping[str, str]) -> ServerConfig:
    """Build the settings from parsed flags (None where not given), the environment and the file.

    Raises:
        SettingsError: a value that doesn't fit, an unknown key in the file, or an unknown
            ``TENSORFERRY_*`` variable.
    """
    file = flags.get("config") or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    values: dict[str, object] = dict(_from_file(Path(str(file)))) if file else {}
    values |= _from_environment(environment)
    for each in fields(ServerConfig):
        flag = flags.get(each.name)
        if flag is not None:
            text = ",".join(flag) if isinstance(flag, list) else flag
            values[each.name] = _parse(each, text, _flag(each.name))
    return ServerConfig(**values)  # type: ignore[arg-type]  # each value was parsed to its field's type


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    by_variable = {_variable(each.name): each for each in fields(ServerConfig)}
    values: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _NO_SETTINGS:
            continue
        each = by_variable.get(variable)
        if each is None:
            raise SettingsError(
                f"unknown setting {variable} in the environment; known: {_listed(by_variable)}"
            )
        values[each.name] = _parse(each, text, variable)
    return values


def _from_file(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from None
    by_name = {each.name: each for each in fields(ServerConfig)}
    values: dict[str, object] = {}
    for key, value in table.items():
        each = by_name.get(key.replace("-", "_"))
        if each is None:
            raise SettingsError(f"settings file {path}: unknown setting {key!r}; known: {_listed(by_name)}")
        if _kind(each) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SettingsError(f"settings file {path}: {key} must be a number or text, not {value!r}")
        values[each.name] = _parse(each, str(value), f"settings file {path}: {key}")
    return values


def _parse(each: Field[object], text: str, where: str) -> object:
    kind: Callable[[str], object] = _kind(each)
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is Path and not text:
        raise SettingsError(f"{where} must not be empty")  # Path("") would be the working directory
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{where} must be {_described(kind)}, not {text!r}") from None


def _kind(each: Field[object]) -> type[Any]:
    assert each.default is not MISSING, "a setting has a default"
    # pathlib hands out PosixPath; settings are plain Paths.
    return Path if isinstance(each.default, Path) else type(each.default)


def _described(kind: object) -> str:
    return "a whole number" if kind is int else "a number" if kind is float else "text"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
