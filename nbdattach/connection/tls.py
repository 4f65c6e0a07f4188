# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS with a server: the handshake, and whether the kernel has taken it over.

Kernel transport (Documentation/networking/tls.rst): OpenSSL hands the keys to the kernel as soon as the handshake is
done, and the socket is a plain one from then on. TLS 1.2 only: TLS 1.3 has key updates and tickets, and the nbd driver
cannot read such records; also, OpenSSL before 3.2 does not hand over the receiving side of TLS 1.3.

`tls_context` has what we offer and trust, `tls_failures` the errors.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - the module ssl needs it for each name, and an initramfs has only what is imported
import socket
import ssl

from nbdattach.connect_options import DEFAULT_TIMEOUT
from nbdattach.connection import credentials, tls_context
from nbdattach.connection.tls_failures import Failures
from nbdattach.errors import ConnectionLost, NotInKernel, TlsFailed
from nbdattach.protocol.target import Target
from nbdattach.text import quoted

# linux/tls.h, linux/socket.h
SOL_TLS = 282
TLS_TX = 1
TLS_RX = 2
# Seconds to wait for files that are only read in advance.
_READING = 2.0


class Handshake:
    """TLS with the server of one target. Reads its files within `seconds`. Raises `TlsFailed`, TimeoutError.

    `failures` makes errors of what goes wrong in it, or later because of it.
    """

    def __init__(self, target: Target, for_kernel: bool, seconds: float = DEFAULT_TIMEOUT) -> None:
        self._target = target
        self._for_kernel = for_kernel
        files = credentials.of(target, seconds)
        self._context, user = tls_context.make(target, files, for_kernel)
        self.failures = Failures(target, files, for_kernel, user)
        # Only this private hook shows a refused certificate, and whether the server asks for ours. Without the hook,
        # errors say less.
        with contextlib.suppress(AttributeError):
            self._context._msg_callback = self.failures.note_message  # type: ignore[attr-defined]

    def over(self, sock: socket.socket, name: str) -> ssl.SSLSocket:
        """Does the handshake and returns the TLS socket; the server's certificate must have `name`. `sock` is detached.

        Raises `TlsFailed`, `ConnectionLost`, TimeoutError.
        """
        if not name and self._context.check_hostname:
            raise _no_name(self._target)
        self._require_possible_name(name)
        try:
            inside = self._context.wrap_socket(sock, server_hostname=name or None)
        except TimeoutError:
            raise
        except (ssl.SSLError, ConnectionError) as error:
            raise self.failures.of(error) from error
        except OSError as error:  # of the network
            raise ConnectionLost(self._target.uri, f"TLS handshake: {error.strerror or error}") from error
        if self._for_kernel:
            self._require_it_in_kernel(inside)
        return inside

    def rehearse(self) -> None:
        """Makes our ClientHello and sends it nowhere, so that all code and files it needs are read from disk."""
        name = self._target.verified_name or "localhost"
        with contextlib.suppress(ssl.SSLWantReadError, ValueError):
            self._context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name).do_handshake()

    def _require_possible_name(self, name: str) -> None:
        """Raises if no certificate can have this name. wrap_socket refuses it too, but may leave the socket open."""
        try:
            self._context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name or None)
        except (ValueError, ssl.SSLError) as error:
            cause = f"{quoted(name)} cannot be a name in a certificate"
            raise TlsFailed(self._target.uri, cause, "--tls-hostname NAME sets the right one") from error

    def _require_it_in_kernel(self, inside: ssl.SSLSocket) -> None:
        """Raises if the kernel did not take TLS over in both directions: with only one the device would get garbage."""
        for direction, name in ((TLS_TX, "sending"), (TLS_RX, "receiving")):
            try:
                inside.getsockopt(SOL_TLS, direction, 4)
            except OSError as error:
                cipher = _cipher_of(inside)
                inside.close()
                words = f"the kernel did not take over TLS for {name} ({error.strerror})"
                raise NotInKernel(self._target.uri, words + cipher, "modprobe tls; --tls-transport relay") from None
        if inside.pending():
            inside.close()
            raise NotInKernel(self._target.uri, "the server sent data before any request", "is this an NBD server?")


def _cipher_of(sock: ssl.SSLSocket) -> str:
    cipher = sock.cipher()
    return f" with {cipher[0]}" if cipher else ""


def _no_name(target: Target) -> TlsFailed:
    cause = "a Unix socket has no host name to check the certificate against"
    return TlsFailed(target.uri, cause, "--tls-hostname NAME sets the name")


def require_usable(target: Target) -> None:
    """Raises `TlsFailed` if a file that the target names cannot be read or used, or a name is missing. Needs no server.

    A disk that does not answer in time is no reason: the handshake reads the files again.
    """
    if not target.verified_name and target.tls_verify and not target.tls_psk_file:
        raise _no_name(target)
    if target.tls_ca or target.tls_certificates or target.tls_cert or target.tls_key or target.tls_psk_file:
        with contextlib.suppress(TimeoutError):
            Handshake(target, for_kernel=False, seconds=_READING)


def warm_up(target: Target) -> None:
    """Reads the target's files in advance, so that a copy is there when their disk is not."""
    with contextlib.suppress(TlsFailed, TimeoutError):
        Handshake(target, True, _READING).rehearse()
