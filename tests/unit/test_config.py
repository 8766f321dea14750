from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from tensorferry.config import ServerConfig, add_flags, load
from tensorferry.errors import SettingsError

#: A value other than the default, for the settings whose type doesn't suggest one.
CHOICES = {
    "host": "0.0.0.0",
    "model_control_mode": "poll",
    "transport": "grpcio",
    "response_compression": "gzip",
    "log_level": "debug",
    "log_format": "json",
}


def other_than_default(each):
    if isinstance(each.default, str):
        return CHOICES.get(each.name, each.default)
    return each.default / "other" if isinstance(each.default, Path) else each.default + 1


#: ``load_model`` means nothing without explicit control, and has a test of its own.
EXAMPLES = {each.name: other_than_default(each) for each in fields(ServerConfig) if each.name != "load_model"}


def parse(*arguments: str) -> dict[str, str | None]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(arguments))


@pytest.mark.parametrize("name", EXAMPLES)
def test_setting_can_be_given_as_flag_as_variable_and_in_the_file(name, tmp_path):
    value = EXAMPLES[name]
    text = str(value)
    file = tmp_path / "settings.toml"
    file.write_text(f"{name} = {value!r}" if isinstance(value, int | float) else f'{name} = "{text}"')
    flag = f"--{name.replace('_', '-')}"
    for config in (
        load(parse(flag, text), {}),
        load(parse(), {f"TENSORFERRY_{name.upper()}": text}),
        load(parse("--config", str(file)), {}),
        load(parse(), {"TENSORFERRY_CONFIG": str(file)}),
    ):
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(getattr(ServerConfig(), name))


@pytest.mark.parametrize(
    "names", [(), ("fraud",), ("fraud", "churn"), ("*",)], ids=["none", "one", "two", "all"]
)
def test_models_to_load_can_be_given_as_repeated_flags_as_variable_and_in_the_file(names, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f"model_control_mode = 'explicit'\nload_model = {list(names)}\n")
    explicit = ("--model-control-mode", "explicit")
    flags = [part for name in names for part in ("--load-model", name)]
    for config in (
        load(parse(*explicit, *flags), {}),
        load(parse(*explicit), {"TENSORFERRY_LOAD_MODEL": ", ".join(names)}),
        load(parse("--config", str(file)), {}),
    ):
        assert config.load_model == names


def test_nearest_source_wins(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("grpc-port = 1\nhttp_port = 1\nprocesses = 3\n")
    environment = {
        "TENSORFERRY_GRPC_PORT": "2",
        "TENSORFERRY_HTTP_PORT": "2",
        "TENSORFERRY_CONFIG": "/nowhere",
    }
    config = load(parse("--config", str(file), "--grpc-port", "4"), environment)
    assert (config.grpc_port, config.http_port, config.processes) == (4, 2, 3)
    assert config.max_queue_size == ServerConfig().max_queue_size


def test_variables_of_others_are_passed_over():
    assert load({}, {"PATH": "/bin", "TENSORFERRYX": "1"}) == ServerConfig()


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("grpc-port", "65536", "--grpc-port must be a port from 0 (any free one) to 65535, not 65536"),
        ("grpc-port", "-1", "--grpc-port must be a port"),
        ("grpc-port", "http", "--grpc-port must be a whole number, not 'http'"),
        ("grpc-port", "1.5", "--grpc-port must be a whole number"),
        ("grpc-port", "", "--grpc-port must be a whole number"),
        ("transport", "http3", "--transport must be one of auto, grpcio, http2, not 'http3'"),
        ("processes", "0", "--processes must be at least 1, not 0"),
        ("drain-timeout-s", "nan", "--drain-timeout-s must be at least 0"),
        ("drain-timeout-s", "soon", "--drain-timeout-s must be a number"),
        ("max-message-bytes", "1023", "--max-message-bytes must be at least 1024"),
        ("host", "", "--host must not be empty"),
        ("model-repository", "", "--model-repository must not be empty"),
        ("log-level", "INFO", "--log-level must be one of"),
    ],
)
def test_wrong_value_is_refused_with_the_settings_name_and_what_it_may_be(flag, text, says):
    with pytest.raises(SettingsError) as caught:
        load(parse(f"--{flag}={text}"), {})
    assert says in str(caught.value)


def test_unknown_variable_is_refused_and_the_known_ones_listed():
    with pytest.raises(
        SettingsError, match=r"TENSORFERRY_GRPC_PROT in the environment.*TENSORFERRY_GRPC_PORT"
    ):
        load({}, {"TENSORFERRY_GRPC_PROT": "1"})


def test_variable_that_says_which_server_commands_ask_is_no_setting():
    assert load({}, {"TENSORFERRY_SERVER": "localhost:9001"}) == load({}, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grpc_prot = 1", "unknown setting 'grpc_prot'"),
        ("grpc_port = ", "settings.toml"),
        ("grpc_port = true", "grpc_port must be a number or text, not True"),
        ("host = ['a']", "host must be a number or text, not ['a']"),
        ("[host]\na = 1", "host must be a number or text"),
        ("grpc_port = 'x'", "grpc_port must be a whole number, not 'x'"),
        ("processes = 1.5", "processes must be a whole number"),
        ("processes = 0", "--processes must be at least 1"),
        ("\xff", "settings.toml"),
    ],
)
def test_wrong_file_is_refused(tmp_path, text, says):
    file = tmp_path / "settings.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        load(parse("--config", str(file)), {})
    assert says in str(caught.value)


@pytest.mark.parametrize("path", ["missing.toml", "."])
def test_file_that_cannot_be_read_is_refused_by_name(tmp_path, path):
    with pytest.raises(SettingsError, match=f"settings file .*{path}: "):
        load({"config": str(tmp_path / path) if path != "." else "."}, {})


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(FrozenInstanceError):
        ServerConfig().grpc_port = 1  # type: ignore[misc]


def test_help_names_flag_default_and_variable(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for each in fields(ServerConfig):
        assert f"--{each.name.replace('_', '-')}" in text
        default = "none" if each.default == () else each.default
        assert f"(default: {default}; TENSORFERRY_{each.name.upper()})" in text.replace("- ", "-")
