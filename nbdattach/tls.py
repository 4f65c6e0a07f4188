"""The one door to `ssl`: contexts with what a target asks for, the TLS handshake, and its failures in plain words.

Kernel transport (Documentation/networking/tls.rst): OpenSSL hands the keys to the kernel as soon as the handshake is
done, and the socket is a plain one from then on. TLS 1.2 only: 1.3 has key updates and tickets, records that the nbd
driver cannot read; 1.2 has none of them, and OpenSSL before 3.2 does not hand over the receiving side of 1.3.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbdattach.errors import NotInKernel, TlsFailed
from nbdattach.target import Target
from nbdattach.wiretext import plain, quoted

# linux/tls.h, linux/socket.h
SOL_TLS = 282
TLS_TX = 1
TLS_RX = 2
_OP_ENABLE_KTLS = 1 << 3  # the name came with Python 3.12
# What the kernel's tls module takes of TLS 1.2, with forward secrecy; and the same with a pre-shared key.
_KERNEL_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:@SECLEVEL=1"
_PSK_CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256:DHE-PSK-CHACHA20-POLY1305"
)
# File names in a directory of certificates, as QEMU and nbdkit have them.
_CA, _CERT, _KEY = "ca-cert.pem", "client-cert.pem", "client-key.pem"
_CERTIFICATE = 11  # HandshakeType of a message with a certificate chain (RFC 5246, 7.4)
_EXPIRED, _NOT_YET, _REVOKED = 10, 9, 23  # X509_V_ERR_ of openssl/x509_vfy.h
_UNTRUSTED = (18, 19, 20, 21, 2)
_WRONG_NAME = (62, 64)
_PSK_LINE = re.compile(r"([^:]+):([0-9A-Fa-f]{2,})")
# Reasons of OpenSSL by which a server says that it does not like who we are.
_NOT_US = (
    "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED", "ACCESS_DENIED", "UNKNOWN_PSK_IDENTITY", "UNSUPPORTED_CERTIFICATE",
)  # fmt: skip


class Handshake:
    """TLS with the server of one target. Files are read anew for each, so that renewed certificates are seen."""

    def __init__(self, target: Target, for_kernel: bool) -> None:
        self._target = target
        self._for_kernel = for_kernel
        self._certificate = b""  # the server's, DER
        self._context = self._made_context()

    def over(self, sock: socket.socket, name: str) -> ssl.SSLSocket:
        """The socket inside TLS with a server whose certificate has this name; the plain one is detached.

        Raises `TlsFailed`, TimeoutError.
        """
        if not name and self._context.check_hostname:
            cause = "which name must the certificate have? a Unix socket has none"
            raise TlsFailed(self._target.uri, cause, "--tls-hostname NAME says it")
        try:
            inside = self._context.wrap_socket(sock, server_hostname=name or None)
        except TimeoutError:
            raise
        except (ssl.SSLError, ValueError, OSError) as error:
            raise self.failure(error) from error
        if self._for_kernel:
            self._see_it_in_kernel(inside)
        return inside

    def _see_it_in_kernel(self, inside: ssl.SSLSocket) -> None:
        """Asked for each direction: a socket that is in the kernel in one only would give the device garbage."""
        for direction, name in ((TLS_TX, "sending"), (TLS_RX, "receiving")):
            try:
                inside.getsockopt(SOL_TLS, direction, 4)
            except OSError as error:
                inside.close()
                words = f"the kernel does not take TLS for {name} ({error.strerror})"
                cipher = inside_cipher(inside)
                raise NotInKernel(self._target.uri, words + cipher, "modprobe tls; --tls-transport relay") from None
        if inside.pending():
            inside.close()
            raise NotInKernel(self._target.uri, "the server sent data before it was asked", "is this an NBD server?")

    # -- what is asked for -----------------------------------------------------------------------------------------

    def _made_context(self) -> ssl.SSLContext:
        target = self._target
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # OpenSSL takes no data from the server in the middle of it
        if self._for_kernel:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.options |= _OP_ENABLE_KTLS
            context.set_ciphers(_KERNEL_CIPHERS)
        if target.tls_psk_file:
            self._use_psk(context)
        elif target.tls_verify:
            self._trust(context)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._show_ourselves(context)
        # The certificate of a server that is refused is nowhere else to be had; without it the words are fewer.
        with contextlib.suppress(AttributeError):
            context._msg_callback = self._see_message  # type: ignore[attr-defined]
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        ca = self._target.tls_ca or self._target.tls_certificates
        if not ca:
            context.load_default_certs()
            return
        file = f"{ca}/{_CA}" if os.path.isdir(ca) else ca
        self._load(file, lambda: context.load_verify_locations(cafile=file))

    def _show_ourselves(self, context: ssl.SSLContext) -> None:
        cert, key = self._target.tls_cert, self._target.tls_key
        folder = self._target.tls_certificates or self._target.tls_ca
        if not cert and os.path.isdir(folder) and os.path.exists(f"{folder}/{_CERT}"):
            cert, key = f"{folder}/{_CERT}", f"{folder}/{_KEY}"
        if cert:

            def password() -> str:
                raise TlsFailed(
                    key or cert, "the key has a password", "write it without one: openssl pkey -in ... -out"
                )

            self._load(key or cert, lambda: context.load_cert_chain(cert, key or None, password))

    def _load(self, file: str, load: Any) -> None:
        try:
            with open(file, "rb"):
                pass
            load()
        except ssl.SSLError as error:
            reason = (
                "the key does not belong to the certificate" if "MISMATCH" in (error.reason or "") else "no PEM file"
            )
            raise TlsFailed(
                file, f"cannot be used for TLS: {reason}", "openssl x509 -in FILE -text shows one"
            ) from error
        except OSError as error:
            raise TlsFailed(
                file, f"cannot be read: {error.strerror}", "is the name spelled right, and may you?"
            ) from error

    def _use_psk(self, context: ssl.SSLContext) -> None:
        file = self._target.tls_psk_file
        if not hasattr(context, "set_psk_client_callback"):
            raise TlsFailed(file, "pre-shared keys need Python 3.13 or later", "certificates work here: --tls-ca FILE")
        try:
            with open(file) as lines:
                found = next(filter(None, (_PSK_LINE.fullmatch(line.strip()) for line in lines)), None)
        except (OSError, UnicodeError) as error:
            raise TlsFailed(file, f"cannot be read: {error}", "psktool -u NAME -p FILE makes one") from error
        if not found:
            raise TlsFailed(file, "no line USER:KEY with a hexadecimal key", "psktool -u NAME -p FILE makes one")
        user, key = found[1], bytes.fromhex(found[2])
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_PSK_CIPHERS)
        context.set_psk_client_callback(lambda _hint: (user, key))

    # -- what went wrong -------------------------------------------------------------------------------------------

    def _see_message(self, _conn: Any, direction: str, _version: Any, _kind: Any, message: Any, data: bytes) -> None:
        if direction != "read" or message != _CERTIFICATE or self._certificate:
            return
        # A list, which fills the message but for its length (RFC 5246, 7.4.2); in TLS 1.3 a context of one byte comes
        # before it (RFC 8446, 4.4.2). In it a length and the server's own certificate come first.
        body = data[4:]
        place = 3 if int.from_bytes(body[:3], "big") == len(body) - 3 else 4
        length = int.from_bytes(body[place : place + 3], "big")
        self._certificate = body[place + 3 : place + 3 + length]

    def failure(self, error: Exception) -> TlsFailed:
        """The error in words that say what to do."""
        uri, target = self._target.uri, self._target
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._not_verified(error)
        reason = (getattr(error, "reason", None) or "").upper()
        if any(word in reason for word in _NOT_US):
            ours = "our certificate" if target.tls_cert or target.tls_certificates else "us without a certificate"
            words = reason.lower().replace("_", " ")
            return TlsFailed(
                uri, f"the server does not accept {ours} ({words})", "--tls-cert FILE --tls-key FILE give one"
            )
        kind = NotInKernel if self._for_kernel else TlsFailed  # we offer more where it is not for the kernel
        if "HANDSHAKE_FAILURE" in reason or "NO_SHARED_CIPHER" in reason or "NO_CIPHERS" in reason:
            hint = "does it want a client certificate (--tls-cert), a key (--tls-psk), or TLS 1.3 only?"
            return kind(uri, "the server found no way of TLS in common with us", hint)
        if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
            ours = "TLS 1.2, which kernel transport needs" if self._for_kernel else "TLS 1.2 or later"
            return kind(uri, f"the server does not do {ours}", "--tls-transport relay can do TLS 1.3")
        if "WRONG_VERSION_NUMBER" in reason or "RECORD" in reason:
            return TlsFailed(uri, "what the server sent is no TLS", "does something stand between us and it?")
        if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
            return kind(  # nbdkit does so where it finds no version in common
                uri,
                "the server closed the connection in the TLS handshake",
                "its log may tell; does it want a certificate?",
            )
        return TlsFailed(uri, f"TLS: {plain(str(error))}", "--debug shows each step")

    def _not_verified(self, error: ssl.SSLCertVerificationError) -> TlsFailed:
        shown = describe(self._certificate)
        code, name = error.verify_code, self._target.verified_name
        hint = "--tls-ca FILE names the authority that you trust"
        if code in _WRONG_NAME:
            names = ", ".join(map(quoted, shown.names)) or "nobody"
            cause, hint = (
                f"its certificate is for {names}, not for {quoted(name)}",
                "--tls-hostname NAME says another name",
            )
        elif code == _EXPIRED:
            cause, hint = f"its certificate expired {shown.until or 'some time ago'}", "the server needs a new one"
        elif code == _NOT_YET:
            cause, hint = (
                f"its certificate is valid from {shown.since or 'later'} only",
                "is the clock right here? see date",
            )
        elif code == _REVOKED:
            cause, hint = "its certificate has been revoked", "the server needs a new one"
        elif code in _UNTRUSTED:
            by = f"{quoted(shown.issuer)}, " if shown.issuer else ""
            who = "itself" if code == 18 else f"{by}an authority that is not trusted here"
            cause = f"its certificate was issued by {who}"
        else:
            cause = f"its certificate does not do: {plain(error.verify_message)}"
        return TlsFailed(self._target.uri, f"the server is not verified: {cause}", hint)


class Certificate:
    """What a certificate tells of itself; empty where nobody could read it. Times are RFC 3339 in UTC."""

    def __init__(self, fields: dict[str, Any]) -> None:
        alternatives = [value for kind, value in fields.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        common = [value for part in fields.get("subject", ()) for key, value in part if key == "commonName"]
        self.names = [plain(name) for name in alternatives or common]
        issuer = [value for part in fields.get("issuer", ()) for key, value in part if key == "commonName"]
        self.issuer = plain(issuer[0]) if issuer else ""
        self.since = _when(fields.get("notBefore"))
        self.until = _when(fields.get("notAfter"))


def describe(certificate: bytes) -> Certificate:
    """A certificate in DER. Python reads one that it has not verified from a file only."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        try:
            Path(file.name).write_text(ssl.DER_cert_to_PEM_cert(certificate))
            return Certificate(ssl._ssl._test_decode_cert(file.name))  # type: ignore[attr-defined]
        except (AttributeError, ValueError, OSError):
            return Certificate({})


def certificate_of(sock: ssl.SSLSocket) -> Certificate:
    """The server's, on a living connection."""
    return describe(sock.getpeercert(binary_form=True) or b"")


def inside_cipher(sock: ssl.SSLSocket) -> str:
    cipher = sock.cipher()
    return f" with {cipher[0]}" if cipher else ""


def _when(text: str | None) -> str:
    if not text:
        return ""
    seconds = ssl.cert_time_to_seconds(text)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
