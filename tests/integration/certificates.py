"""Authorities and certificates for tests of TLS, made by the ``openssl`` command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """A server's pair, a caller's pair, the authority that signed each, and one that signed neither."""

    server: Pair
    server_ca: Path
    caller: Pair
    caller_ca: Path
    stranger_ca: Path
    stranger: Pair


def make_certificates(directory: Path) -> Certificates:
    """Make them all, good for a day, for ``localhost`` and 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl (the command) isn't here: apt-get install openssl")
    authorities = {name: _authority(directory, name) for name in ("server", "caller", "stranger")}
    signed = {name: _signed(directory, name, authority) for name, authority in authorities.items()}
    return Certificates(
        server=signed["server"],
        server_ca=authorities["server"].certificate,
        caller=signed["caller"],
        caller_ca=authorities["caller"].certificate,
        stranger_ca=authorities["stranger"].certificate,
        stranger=signed["stranger"],
    )


def encrypted(key: Path) -> Path:
    """Write the key again, under a passphrase."""
    target = key.with_suffix(".encrypted")
    _openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(target))
    return target


def _authority(directory: Path, name: str) -> Pair:
    pair = Pair(directory / f"{name}-ca.pem", directory / f"{name}-ca.key")
    _request(pair, f"/CN={name} authority", "basicConstraints=critical,CA:TRUE")
    return pair


def _signed(directory: Path, name: str, by: Pair) -> Pair:
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    _request(pair, f"/CN={name}", names, "-CA", str(by.certificate), "-CAkey", str(by.key))
    return pair


def _request(pair: Pair, subject: str, extension: str, *more: str) -> None:
    files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
    _openssl("req", "-x509", *_KEY, *files, "-subj", subject, "-days", "1", "-addext", extension, *more)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
