# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of TLS: NBD servers in this process that say yes to NBD_OPT_STARTTLS, and mean it or not."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import wire
from peer import Serve, drain

STARTTLS = wire.greeting() + wire.ack(wire.STARTTLS)
ASKED = len(wire.client_flags()) + len(wire.option(wire.STARTTLS))
EXPORT = wire.sized(wire.GO) + wire.ack(wire.GO)


def context(
    folder: Path, tls: ssl.TLSVersion | None = None, ciphers: str = "", clients: bool = False
) -> ssl.SSLContext:
    """A server's: of one version only, with these ciphers of TLS 1.2, and for `clients` with a certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers((ciphers or "DEFAULT") + ":@SECLEVEL=0")
    made.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    if tls:
        made.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        made.maximum_version = made.minimum_version = tls
    if clients:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(folder / "ca-cert.pem")
    return made


def secure(made: ssl.SSLContext, said: bytes | None = None) -> Serve:
    """Says yes to TLS, and `said` inside; without it, the export in answer to NBD_OPT_GO or NBD_OPT_INFO."""
    return after_yes(lambda sock: _inside(made, sock, said))


def _inside(made: ssl.SSLContext, sock: socket.socket, said: bytes | None) -> None:
    with made.wrap_socket(sock, server_side=True) as inside:
        if said is None:
            option = int.from_bytes(inside.recv(12)[8:], "big")  # one record has all of it
            said = wire.sized(option) + wire.ack(option)
        inside.sendall(said)
        drain(inside)


def after_yes(do: Serve) -> Serve:
    """The conversation up to the ACK of NBD_OPT_STARTTLS, then `do`."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(STARTTLS[: len(wire.greeting())])
        heard = b""
        while len(heard) < ASKED:
            heard += sock.recv(ASKED - len(heard))
        sock.sendall(STARTTLS[len(wire.greeting()) :])
        do(sock)

    return serve


def answers_hello(junk: bytes) -> Serve:
    """`junk` in answer to the ClientHello."""

    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(junk)
        drain(sock)

    return after_yes(answer)


def trickles(sock: socket.socket) -> None:
    """A record of TLS that never ends, byte by byte."""
    sock.recv(4096)
    for byte in b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + bytes(16000):
        sock.sendall(bytes([byte]))
        time.sleep(0.01)
