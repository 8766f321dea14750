"""TLS for both transports: the files are read and proved to fit together before anything listens.

HTTP/2 over TLS is agreed on by ALPN (RFC 9113, section 3.3); a client that doesn't offer ``h2`` is
refused, as grpcio does.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensorferry.config import ServerConfig
from tensorferry.errors import SettingsError

__all__ = ["Tls", "is_http2", "read"]

_H2: Final = "h2"
#: TLS 1.2's suites with forward secrecy and authenticated encryption; HTTP/2 forbids the rest
#: (RFC 9113, appendix A). TLS 1.3 has no others.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class Tls:
    """The files' contents (PEM), for grpcio, and a context made of them, for asyncio."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


def read(config: ServerConfig) -> Tls | None:
    """Read the files that ``config`` names; None for plain text.

    Raises:
        SettingsError: a file can't be read, isn't PEM of its kind, or the key is of another
            certificate. It names the file.
    """
    if not config.tls_certificate:
        return None
    certificate = _contents("--tls-certificate", config.tls_certificate)
    key = _contents("--tls-key", config.tls_key)
    client_ca = _contents("--tls-client-ca", config.tls_client_ca) if config.tls_client_ca else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols([_H2])
    _load_certificate(context, config)
    if client_ca is not None:
        _load_client_ca(context, config.tls_client_ca, client_ca)
    return Tls(certificate, key, client_ca, context)


def is_http2(transport: Any) -> bool:  # noqa: ANN401 - a transport of either loop
    """Tell whether a connection's two ends have agreed on HTTP/2."""
    ssl_object = transport.get_extra_info("ssl_object")
    return ssl_object is not None and ssl_object.selected_alpn_protocol() == _H2


def _contents(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{flag} {path}: {error.strerror}; name a PEM file that the server may read"
        ) from None


def _load_certificate(context: ssl.SSLContext, config: ServerConfig) -> None:
    # OpenSSL's own message doesn't say which of the two files is at fault, so each is looked at first.
    if "BEGIN CERTIFICATE" not in _text(config.tls_certificate):
        raise SettingsError(
            f"--tls-certificate {config.tls_certificate}: there is no PEM certificate in it;"
            " it should hold the server's certificate, and after it those of the authorities between"
        )
    if "PRIVATE KEY-----" not in _text(config.tls_key):
        raise SettingsError(
            f"--tls-key {config.tls_key}: there is no PEM private key in it; convert a DER file with:"
            " openssl pkey -inform DER -in FILE -out FILE.pem"
        )
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key, _no_passphrase)
    except _Encrypted:
        raise SettingsError(
            f"--tls-key {config.tls_key}: the key has a passphrase; take it off with:"
            " openssl pkey -in FILE -out FILE.pem"
        ) from None
    except (OSError, ValueError) as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise SettingsError(
                f"--tls-key {config.tls_key} isn't the key of --tls-certificate {config.tls_certificate};"
                " give the pair that was made together, with the server's own certificate first in its file"
            ) from None
        raise SettingsError(
            f"--tls-certificate {config.tls_certificate} with --tls-key {config.tls_key}: OpenSSL can't"
            f" use them ({error}); find the one at fault with: openssl x509 -noout -in FILE,"
            " openssl pkey -noout -in FILE"
        ) from None


def _load_client_ca(context: ssl.SSLContext, path: str, client_ca: bytes) -> None:
    try:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--tls-client-ca {path}: there is no usable PEM certificate in it ({error}); it should hold"
            " the certificates of the authorities that sign your callers' certificates"
        ) from None
    context.verify_mode = ssl.CERT_REQUIRED


class _Encrypted(Exception):
    """The private key has a passphrase."""


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for it on the terminal.
    raise _Encrypted


def _text(path: str) -> str:
    return Path(path).read_text(encoding="ascii", errors="replace")
