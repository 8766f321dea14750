"""Where a server listens: addresses as text, and unix sockets with what their files need.

A unix socket's file outlives its server, unlike a port. So a file that is left over is replaced,
one that somebody listens on is left alone, and our own is removed at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from tensorferry.config import UNIX_PREFIX
from tensorferry.errors import SettingsError

__all__ = ["UnixSocket", "address_of", "reason_of"]


def address_of(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason_of(error: OSError) -> str:
    """Say why an address can't be listened on; event loops would name the address once more."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use; stop what listens there, or give another one (0 takes a free one)"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


class UnixSocket:
    """The file of a unix socket that a server listens on. Its permissions are left to the umask."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None

    def clear(self) -> None:
        """Make way for the socket: remove what a dead server has left.

        Raises:
            SettingsError: somebody listens there, or something else is there.
        """
        try:
            is_socket = stat.S_ISSOCK(os.lstat(self._path).st_mode)
            if not is_socket:
                raise self._fault(
                    "something that isn't a socket is there; move it away, or choose another path"
                )
            with socket.socket(socket.AF_UNIX) as probe:
                # It must not wait for a server that is busy: whoever makes it wait is alive.
                probe.setblocking(False)
                found = probe.connect_ex(self._path)
            if found == errno.ECONNREFUSED:
                os.unlink(self._path)
            elif found == errno.EACCES:
                raise self._fault("another user's socket is there; choose another path")
            elif found != errno.ENOENT:
                raise self._fault("another server listens there; stop it, or choose another path")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._fault(error.strerror or str(error)) from None

    def bind(self) -> socket.socket:
        """Make way, and return a socket that is bound and doesn't listen yet.

        Raises:
            SettingsError: as ``clear``, or the directory isn't there or isn't writable.
        """
        self.clear()
        made = socket.socket(socket.AF_UNIX)
        try:
            made.bind(self._path)
        except OSError as error:
            made.close()
            raise self._fault(error.strerror or str(error)) from None
        self.bound()
        return made

    def bound(self) -> None:
        """Remember the file as ours, once it is there."""
        found = os.lstat(self._path)
        self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove the file, unless another server has put its own in its place."""
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)

    def _fault(self, why: str) -> SettingsError:
        return SettingsError(f"can't listen on {UNIX_PREFIX}{self._path} for gRPC: {why}")
