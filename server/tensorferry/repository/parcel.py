"""What a push brings: which files go into the version under which names, checked before one is copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorferry.errors import ConfigurationError, ModelConfigError
from tensorferry.repository.config_file import CONFIG_NAMES, parse_config_file, read_config
from tensorferry.repository.formats import FORMATS, Format, configured_format
from tensorferry.repository.manifest import FILENAME
from tensorferry.repository.source import ConfigSource, quoted
from tensorferry.repository.spec import build_spec, complete_config
from tensorferry.repository.versions import GOLDEN_NAMES, files_in

__all__ = ["Parcel", "check_model_name", "pack"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of a version: path inside its directory -> where to copy it from.

    ``config`` is the configuration to write beside the version; None for none. Unless
    ``replace_config``, a model that has another one keeps it, and the push is refused.
    """

    files: Mapping[str, Path]
    format: Format
    config: Path | None = None
    replace_config: bool = False

    @property
    def config_name(self) -> str:
        """The configuration's name in the model's directory; "" for none."""
        if self.config is None:
            return ""
        return "config.yaml" if self.config.suffix in (".yaml", ".yml") else "config.pbtxt"

    def check_config(self, model: Path) -> None:
        """Check that the configuration may be written to the directory ``model``.

        Raises:
            ConfigurationError: the model has another, and it isn't to be replaced; or in the other syntax.
        """
        if self.config is None or not model.is_dir():
            return
        for name in CONFIG_NAMES:
            if name != self.config_name and os.path.lexists(model / name):
                what = f"the model has a {name}, and {self.config} would be its {self.config_name}"
                raise ConfigurationError(f"{model}: {what}; keep to one syntax, or remove {name} first")
        if self.replace_config:
            return
        existing = model / self.config_name
        if existing.exists():
            if existing.read_bytes() != self.config.read_bytes():
                raise ConfigurationError(
                    f"{existing} differs from {self.config}; give --replace-config to replace it"
                )
        elif any(name.isdecimal() for name in os.listdir(model)):
            what = f"{model}: its versions are served without a configuration"
            raise ConfigurationError(f"{what}; give --replace-config to give them this one")


def pack(
    source: Path,
    model: Path,
    config: Path | None = None,
    replace_config: bool = False,
    golden: Path | None = None,
) -> Parcel:
    """Decide what a version consists of, and check it against the model's configuration.

    Args:
        source: The model's file, or a directory that holds it and whatever it needs.
        model: The model's directory, which need not be there.
        config: A configuration for the model; its own, if it has one, counts where this is None.
        replace_config: Whether ``config`` may take the place of another.
        golden: The version's golden file, ``.npz`` or ``.json``.

    Raises:
        ConfigurationError: a file that isn't there or isn't of a format that is served, or a
            configuration that can't be or that asks for another format.
    """
    check_model_name(model.name)
    settings = _config_for(model, config)
    own = _format_of(source, settings)
    if source.is_dir():
        files = _directory_files(source)
    else:
        files = {(settings.config.default_model_filename if settings else "") or own.filename: source}
    if golden is not None:
        files[_golden_name(golden, files)] = golden
    parcel = Parcel(dict(sorted(files.items())), own, config, replace_config)
    parcel.check_config(model)
    return parcel


def check_model_name(name: str) -> None:
    """Check that a name can be a model's directory.

    Raises:
        ConfigurationError: it can't.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        rule = "it must not be empty, begin with a dot or hold slashes or characters that can't be printed"
        raise ConfigurationError(f"the model's name is {quoted(name)}; {rule}")


def _config_for(model: Path, given: Path | None) -> ConfigSource | None:
    if given is not None:
        source: ConfigSource | None = parse_config_file(given)
    else:
        source = read_config(model) if model.is_dir() else None
    if source is not None:
        # For its errors: a model that couldn't be read wouldn't be served, whatever its version.
        build_spec(source, complete_config(source, model.name, source.path.parent))
    return source


def _format_of(source: Path, settings: ConfigSource | None) -> Format:
    if not source.exists():
        raise ConfigurationError(f"{source}: no such file; correct the path")
    configured = configured_format(settings) if settings else None
    if configured is not None and not configured.filename:
        raise ConfigurationError(f"{source}: the model is an {configured.platform}, and has no file")
    filename = settings.config.default_model_filename if settings else ""
    if source.is_dir():
        return _format_in_directory(source, configured, filename)
    own = next((each for each in FORMATS if each.filename and _suffix(each) == source.suffix), None)
    if own is None:
        known = ", ".join(f"{_suffix(each)} ({each.platform})" for each in FORMATS if each.filename)
        what = f"the suffix {quoted(source.suffix)} is none of {known}"
        raise ConfigurationError(f"{source}: {what}; rename the file, or give a directory that holds it")
    if configured is not None and own != configured:
        what = f"is {own.platform} by its suffix, and the model's configuration says {configured.platform}"
        raise ConfigurationError(f"{source}: {what}; correct one of the two")
    return own


def _format_in_directory(source: Path, configured: Format | None, filename: str) -> Format:
    among = [configured] if configured else [each for each in FORMATS if each.filename]
    for each in among:
        if (source / (filename or each.filename)).is_file():
            return each
    wanted = filename or " or ".join(each.filename for each in among)
    raise ConfigurationError(f"{source}: holds no {wanted}; add the model's file under that name")


def _suffix(of: Format) -> str:
    return os.path.splitext(of.filename)[1]


def _directory_files(source: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    try:
        for name, status in files_in(source):
            if name == FILENAME:  # that of the version it was copied from
                continue
            if not stat.S_ISREG(status.st_mode):
                raise ModelConfigError("a link to a directory, or no plain file; leave it out", source / name)
            files[name] = source / name
    except OSError as error:
        raise ConfigurationError(f"{error.filename or source}: can't be read: {error.strerror}") from None
    return files


def _golden_name(golden: Path, files: Mapping[str, Path]) -> str:
    name = f"golden{golden.suffix}"
    if name not in GOLDEN_NAMES:
        raise ConfigurationError(f"{golden}: a golden file is .npz or .json; convert it to one of them")
    if not golden.is_file():
        raise ConfigurationError(f"{golden}: no such file; correct the path")
    there = [each for each in GOLDEN_NAMES if each in files]
    if there:
        raise ConfigurationError(f"{golden}: the directory has a {there[0]}; leave out one of the two")
    return name
