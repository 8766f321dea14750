"""The settings that bound connections reach the C core under its own names."""

import pytest

from tensorferry.config import ServerConfig
from tensorferry.transport.grpcio import _limits

NEVER_MS = 2**31 - 1


@pytest.mark.parametrize(
    ("setting", "value", "option", "expected"),
    [
        ("max_concurrent_streams", 7, "grpc.max_concurrent_streams", 7),
        ("idle_timeout_s", 1.5, "grpc.max_connection_idle_ms", 1500),
        ("idle_timeout_s", 0.0, "grpc.max_connection_idle_ms", NEVER_MS),
        ("max_connection_age_s", 3.0, "grpc.max_connection_age_ms", 3000),
        ("max_connection_age_s", 0.0, "grpc.max_connection_age_ms", NEVER_MS),
        ("max_connection_age_s", 1e9, "grpc.max_connection_age_ms", NEVER_MS),
        ("max_connection_age_grace_s", 0.0, "grpc.max_connection_age_grace_ms", 0),
        ("handshake_timeout_s", 2.0, "grpc.server_handshake_timeout_ms", 2000),
        ("keepalive_time_s", 0.0, "grpc.keepalive_time_ms", NEVER_MS),
        ("keepalive_timeout_s", 4.0, "grpc.keepalive_timeout_ms", 4000),
        ("min_ping_interval_s", 0.25, "grpc.http2.min_recv_ping_interval_without_data_ms", 250),
    ],
)
def test_a_limit_reaches_the_core(setting, value, option, expected):
    assert dict(_limits(ServerConfig(**{setting: value})))[option] == expected
