# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the TLS files of one target, anew for each connection, so that renewed files are used.

The files may be on the very device that the connection is for, and cannot be read until it is back. So a thread reads
them. If it hangs, the contents from the last time are used. That copy in memory is as secret as the files.

Some files are optional: the list of revoked certificates, and our own certificate. If such a file disappears, it may
be about to be replaced, and without it more would be allowed than before. So the copy in memory stays in use; a new
process starts without it. A file that exists and cannot be read is an error.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nbdattach.errors import TlsFailed
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target
from nbdattach.text import plain

# File names in a directory of certificates, as QEMU and nbdkit have them.
_CA, _CRL, _CERT, _KEY = "ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"
# More than all authorities of a machine in one file.
_MAX_FILE = 16 << 20
# Seconds to wait for the disk if there is a copy to fall back on.
_PATIENCE = 2.0


@immutable
class File:
    path: str
    content: bytes

    @contextmanager
    def for_openssl(self) -> Iterator[str]:
        """A path that leads to just these bytes; OpenSSL and Python take most things from a file only."""
        try:
            number = os.memfd_create("tls")
        except OSError:
            yield self.path
            return
        with open(number, "wb", buffering=0) as memory:
            memory.write(self.content)
            place = f"/proc/self/fd/{number}"
            yield place if os.path.exists(place) else self.path  # early in the boot there is no /proc


@immutable
class Credentials:
    """None for a file that the target does not name or its directory does not have. `cert` comes with `key`."""

    ca: File | None = None
    revoked: File | None = None
    cert: File | None = None
    key: File | None = None
    psk: File | None = None


def of(target: Target, seconds: float) -> Credentials:
    """Raises `TlsFailed` that names the file, and TimeoutError."""
    files = (target.tls_ca, target.tls_certificates, target.tls_cert, target.tls_key, target.tls_psk_file)
    return _shelves.setdefault((*files, target.tls_verify), _Shelf()).read(target, seconds)


def exposed(target: Target) -> list[str]:
    """Files with secrets of the target that every user of this machine can read or overwrite."""
    folder = target.tls_certificates or target.tls_ca
    key = target.tls_psk_file or target.tls_key or target.tls_cert or (f"{folder}/{_KEY}" if folder else "")
    return [key] if key and _is_open_to_others(key) else []


def _is_open_to_others(path: str) -> bool:
    """Judged by its mode and the modes of all folders above it."""
    try:
        place = os.path.realpath(path)
        if not os.stat(place).st_mode & (stat.S_IROTH | stat.S_IWOTH):
            return False
        while place != "/":
            place = os.path.dirname(place)
            if not os.stat(place).st_mode & stat.S_IXOTH:
                return False
    except (OSError, ValueError):
        return False
    return True


class _Reading(threading.Thread):
    """Reads all files once. `found` is None until that is done."""

    def __init__(self, target: Target) -> None:
        super().__init__(daemon=True)
        self._target = target
        self.found: Credentials | TlsFailed | None = None
        self.start()

    def run(self) -> None:
        try:
            self.found = _read_all(self._target)
        except TlsFailed as error:
            self.found = error


class _Shelf:
    """The contents of one set of files, and the thread that hangs in reading them, if any."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._stuck: _Reading | None = None
        self._known: Credentials | None = None

    def read(self, target: Target, seconds: float) -> Credentials:
        with self._mutex:
            reading, patience = self._stuck, 0.0
            if reading is None or not reading.is_alive():
                reading, patience = _Reading(target), _PATIENCE
        reading.join(min(patience, seconds) if self._known else seconds)
        with self._mutex:
            found = reading.found
            self._stuck = reading if found is None else None
            if isinstance(found, Credentials):
                self._known = _with_what_is_gone(found, self._known)
            elif not self._known or (found and not _is_of_the_disk(found)):
                raise found or TimeoutError
            return self._known


def _with_what_is_gone(found: Credentials, before: Credentials | None) -> Credentials:
    if before is None:
        return found
    if found.cert is None:
        found = replace(found, cert=before.cert, key=before.key)
    return replace(found, revoked=found.revoked or before.revoked)


# One for each set of files; a host has few of those.
_shelves: dict[tuple[str | bool, ...], _Shelf] = {}


def _is_of_the_disk(error: TlsFailed) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO


def _read_all(target: Target) -> Credentials:
    if target.tls_psk_file:
        return Credentials(psk=_file(target.tls_psk_file))
    ca = target.tls_ca or target.tls_certificates
    revoked = f"{ca}/{_CRL}"
    cert, key = target.tls_cert, target.tls_key or target.tls_cert
    folder = target.tls_certificates or target.tls_ca
    if not cert and _is_there(f"{folder}/{_CERT}"):
        cert, key = f"{folder}/{_CERT}", f"{folder}/{_KEY}"
    return Credentials(
        ca=_file(f"{ca}/{_CA}" if os.path.isdir(ca) else ca) if ca and target.tls_verify else None,
        revoked=_file(revoked) if ca and target.tls_verify and _is_there(revoked) else None,
        cert=_file(cert) if cert else None,
        key=_file(key) if cert else None,
    )


def _is_there(path: str) -> bool:
    """True also if it cannot be read or is a broken link: only a missing name counts as no file."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    except ValueError:  # no name that a file can have
        return False
    return True


def _file(path: str) -> File:
    try:
        with open(path, "rb") as file:
            return File(path, file.read(_MAX_FILE))
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise TlsFailed(
            plain(path), f"cannot be read: {words}", "is the name correct, and do you have permission to read it?"
        ) from error
