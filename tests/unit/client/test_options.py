"""Options are checked when they are made, and become gRPC's channel arguments."""

import math
from pathlib import Path

import pytest

from tensorferry_client import ClientOptions, ScorerTuning, TlsOptions
from tensorferry_client._options import channel_arguments, options_of


def test_a_string_is_a_target():
    assert options_of("host:1") == ClientOptions(target="host:1")


def test_messages_of_64_mebibytes_pass_both_ways():
    arguments = dict(channel_arguments(ClientOptions(target="host:1")))
    assert arguments["grpc.max_send_message_length"] == 64 * 1024 * 1024
    assert arguments["grpc.max_receive_message_length"] == 64 * 1024 * 1024


def test_pings_stay_below_what_an_untuned_server_allows():
    arguments = dict(channel_arguments(ClientOptions(target="host:1")))
    assert arguments["grpc.keepalive_time_ms"] > 300_000
    assert arguments["grpc.keepalive_permit_without_calls"] == 0


def test_the_callers_channel_arguments_overrule():
    options = ClientOptions(
        target="host:1", channel_args=(("grpc.keepalive_time_ms", 7), ("grpc.other", "x"))
    )
    arguments = channel_arguments(options)
    assert dict(arguments)["grpc.keepalive_time_ms"] == 7
    assert dict(arguments)["grpc.other"] == "x"
    assert len(arguments) == len(dict(arguments))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": ""},
        {"default_timeout_s": 0},
        {"default_timeout_s": math.nan},
        {"max_message_bytes": 0},
        {"keepalive_s": -1},
        {"keepalive_timeout_s": math.inf},
    ],
)
def test_a_wrong_option_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClientOptions(**({"target": "host:1"} | wrong))


def test_no_default_timeout_is_allowed():
    assert ClientOptions(target="host:1", default_timeout_s=None).default_timeout_s is None


def test_half_of_a_key_pair_is_refused():
    with pytest.raises(ValueError, match="together"):
        TlsOptions(key_path=Path("key.pem"))


@pytest.mark.parametrize("name", ["features", "connections"])
def test_a_wrong_tuning_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=name):
        ScorerTuning(**{name: 0})
