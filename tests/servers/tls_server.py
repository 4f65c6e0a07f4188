# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD server over TLS in this process that sends a record of a kind of our choice, in between its replies.

Its own TLS is in the kernel, too: there any type of record can be sent (TLS_SET_RECORD_TYPE in
Documentation/networking/tls.rst). It serves a file, and knows no more of the protocol than the kernel's driver needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

SOL_TLS, TLS_SET_RECORD_TYPE = 282, 1
OP_ENABLE_KTLS = 1 << 3
REPLY = bytes.fromhex("0003e889045565a9")
HAS_FLAGS_FLUSH_MULTI = 1 | 1 << 2 | 1 << 8
READ, WRITE, DISCONNECT, FLUSH = range(4)
STARTTLS, GO, ACK, INFO = 5, 7, 1, 3


class RecordServer:
    """`inject` is sent over the connection once, with the next reply: the type of a record and its content.

    `newest` is TLS 1.3, without the kernel; then `renew_keys` has new keys or a ticket come before each reply.
    """

    def __init__(self, image: Path, certificates: Path, newest: bool = False) -> None:
        self.inject: tuple[int, bytes] | None = None
        self.renew_keys = False
        self.renewed = 0
        self.connections = 0
        self._image = os.open(image, os.O_RDWR)
        self._size = image.stat().st_size
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        if newest:
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2
            self._context.options |= OP_ENABLE_KTLS
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"nbds://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
            _read(sock, 4)
            self._option(sock, STARTTLS)
            inside = self._context.wrap_socket(sock, server_side=True)
            while self._option(inside, GO) != GO:
                pass
            while self._request(inside):
                pass

    def _option(self, sock: socket.socket, wanted: int) -> int:
        _, option, length = struct.unpack(">8sII", _read(sock, 16))
        _read(sock, length)
        assert option == wanted
        if option == GO:
            shown = struct.pack(">HQH", 0, self._size, HAS_FLAGS_FLUSH_MULTI)
            sock.sendall(REPLY + struct.pack(">III", GO, INFO, len(shown)) + shown)
        sock.sendall(REPLY + struct.pack(">III", option, ACK, 0))
        return wanted

    def _request(self, sock: ssl.SSLSocket) -> bool:
        _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", _read(sock, 28))
        data = b""
        if kind == DISCONNECT:
            return False
        if kind == READ:
            data = os.pread(self._image, length, offset)
        elif kind == WRITE:
            os.pwrite(self._image, _read(sock, length), offset)
        if self.renew_keys:
            self.renewed += 1
            _renew_keys(sock, ticket=self.renewed % 2 == 0)
        inject, self.inject = self.inject, None
        if inject:
            number, content = inject
            plain = socket.socket(fileno=os.dup(sock.fileno()))
            with plain:
                plain.sendmsg([content], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes([number]))])
        sock.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
        return True


def _renew_keys(sock: ssl.SSLSocket, ticket: bool) -> None:
    """New keys for us, and a request for new ones of the client; or a ticket. They go out with the next data.

    Python does not do that: the pointer to OpenSSL's object follows the socket in its own (PySSLSocket in _ssl.c).
    """
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libssl." in line)
    openssl = ctypes.CDLL(library)
    place = id(sock._sslobj) + object.__basicsize__  # type: ignore[attr-defined]
    own = ctypes.c_void_p(ctypes.cast(place, ctypes.POINTER(ctypes.c_void_p))[1])
    assert (openssl.SSL_new_session_ticket(own) if ticket else openssl.SSL_key_update(own, 1)) == 1


class ClearServer:
    """Agrees to TLS, sends `words` unencrypted with that, and then nothing more; receives everything."""

    def __init__(self, words: bytes = b"") -> None:
        self.heard = b""
        self._words = words
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"nbds://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), sock:
            sock.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
            _read(sock, 4 + 16)
            sock.sendall(REPLY + struct.pack(">III", STARTTLS, ACK, 0) + self._words)
            while more := sock.recv(4096):
                self.heard += more


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


@contextlib.contextmanager
def record_server(image: Path, certificates: Path, newest: bool = False) -> Iterator[RecordServer]:
    with contextlib.closing(RecordServer(image, certificates, newest)) as server:
        yield server
