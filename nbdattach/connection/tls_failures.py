# SPDX-License-Identifier: GPL-2.0-or-later
"""Why TLS with a server failed, in plain words: made of OpenSSL's error and of what the handshake had shown by then."""

from __future__ import annotations

import ssl
from typing import Any

from nbdattach.connection import certificate
from nbdattach.connection.credentials import Credentials
from nbdattach.connection.openssl_errors import has_ended, reason_of, words_of
from nbdattach.errors import MaybeNotInKernel, NotInKernel, TlsFailed
from nbdattach.protocol.target import Target
from nbdattach.text import plain, quoted

_SERVER_HELLO, _CERTIFICATE, _CERTIFICATE_REQUEST = 2, 11, 13  # HandshakeType (RFC 5246, 7.4; RFC 8446, 4)
# X509_V_ERR_ of openssl/x509_vfy.h
_NO_CRL, _NOT_YET, _EXPIRED, _CRL_EXPIRED, _SELF_SIGNED, _REVOKED = 3, 9, 10, 12, 18, 23
_UNTRUSTED = (2, 7, 19, 20, 21)  # the issuer is unknown, or has another key than the one of that name
_WRONG_NAME = (62, 64)
# Reasons of OpenSSL, in this order: the server rejects our certificate; it rejects our pre-shared key, if we use one;
# no common version; no common cipher; the peer does not speak TLS.
_NOT_US = (
    "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE", "CERTIFICATE_REVOKED", "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN", "UNKNOWN_CA", "ACCESS_DENIED",
)  # fmt: skip
_NOT_OUR_KEY = ("UNKNOWN_PSK_IDENTITY", "DECRYPT", "BAD_RECORD_MAC", "ILLEGAL_PARAMETER")
_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW")
_NOTHING_IN_COMMON = ("HANDSHAKE_FAILURE", "INSUFFICIENT_SECURITY", "NO_SHARED_CIPHER", "NO_CIPHERS")
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD", "PACKET_LENGTH", "UNEXPECTED_MESSAGE", "HTTP_REQUEST", "INVALID_ALERT")
# A certificate may have hundreds of names; an error shows so many of them if none is the right one.
_MAX_NAMES = 8


class Failures:
    """The errors of one handshake. `user`: the name of our pre-shared key; empty without one."""

    def __init__(self, target: Target, files: Credentials, for_kernel: bool, user: str) -> None:
        self._target = target
        self._files = files
        self._for_kernel = for_kernel
        self._user = user
        self.certificate = b""  # the server's, DER
        self._answered = False  # the server chose a version and a cipher
        self._asked = False  # the server wants to see a certificate of ours

    def note_message(self, _conn: Any, direction: str, _version: Any, _kind: Any, message: Any, data: bytes) -> None:
        """Has the signature of a context's `_msg_callback`."""
        if direction != "read":
            return
        self._answered = self._answered or message == _SERVER_HELLO
        self._asked = self._asked or message == _CERTIFICATE_REQUEST
        if message != _CERTIFICATE or self.certificate:
            return
        # The message is a length of 3 bytes and a list (RFC 5246, 7.4.2); in TLS 1.3 a context of one byte comes
        # before them (RFC 8446, 4.4.2). The list begins with a length and the server's own certificate.
        body = data[4:]
        place = 3 if int.from_bytes(body[:3], "big") == len(body) - 3 else 4
        length = int.from_bytes(body[place : place + 3], "big")
        self.certificate = body[place + 3 : place + 3 + length]

    def of(self, error: OSError) -> TlsFailed:
        """OpenSSL's error as ours, with cause and hint."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._not_verified(error)
        if has_ended(error):
            return self.closed()
        reason = reason_of(error)

        def is_one_of(reasons: tuple[str, ...]) -> bool:
            return any(one in reason for one in reasons)

        if is_one_of(_NOT_US) or (self._user and is_one_of(_NOT_OUR_KEY)):
            return self._not_us(words_of(reason))
        if is_one_of(_VERSION):
            return self._no_version()
        if is_one_of(_NOTHING_IN_COMMON):
            return self._nothing_in_common()
        if "ALERT_" in reason:
            return self._failed(f"the server ended TLS: {words_of(reason)}", "see the server's log")
        if is_one_of(_NO_TLS):
            return self._failed("the server's data is not TLS", "is there a proxy or firewall in between?")
        return self._failed(f"TLS: {plain(str(error))}", "--debug shows each step")

    def closed(self) -> TlsFailed:
        """The error if the server closed the connection in or right after the handshake: GnuTLS sends no reason."""
        if self._asked or (self._user and self._answered):
            return self._not_us("")
        hint = (
            "see the server's log; does it require a pre-shared key (--tls-psk)?"
            if self._answered
            else self._in_common()
        )
        said = "the server closed the connection in the TLS handshake"
        # A server that finds no common cipher may also just close (nbdkit, with GnuTLS).
        return self._failed(said, hint) if self._answered else self._nothing_for_kernel(said, hint, MaybeNotInKernel)

    @property
    def may_dislike_us(self) -> bool:
        """Whether the server may have rejected our certificate: it asked for one, or we could not see whether it did.

        In TLS 1.3, and qemu-nbd in any version, the server checks the certificate after the handshake.
        """
        return self._asked or not self._answered

    def _failed(self, cause: str, hint: str) -> TlsFailed:
        return TlsFailed(self._target.uri, cause, hint)

    def _nothing_for_kernel(self, cause: str, hint: str, kind: type[NotInKernel] = NotInKernel) -> TlsFailed:
        """`NotInKernel` if we offered only the kernel's ciphers: the relay can offer more."""
        return (kind if self._for_kernel and not self._user else TlsFailed)(self._target.uri, cause, hint)

    def _not_us(self, said: str) -> TlsFailed:
        """`said` is the server's reason; "" if it only closed the connection."""
        told = f" ({said})" if said else ""
        if self._user:
            whose = f"the key of {quoted(self._user)} from {plain(self._target.tls_psk_file)}"
            cause = "does not accept" if said else "closed the connection instead of accepting"
            return self._failed(f"the server {cause} {whose}{told}", "does it have the same line in its file?")
        if not self._files.cert:
            cause = f"the server requires a client certificate, and none was given{told}"
            if not said:
                cause = "the server asked for a client certificate, got none, and closed the connection"
            return self._failed(cause, "--tls-cert FILE and --tls-key FILE give one")
        hint = "is it from an authority that the server trusts? see the server's log"
        if said:
            return self._failed(
                f"the server does not accept the client certificate {self._our_certificate()}{told}", hint
            )
        cause = "the server closed the connection after it received the client certificate"
        return self._failed(f"{cause} {self._our_certificate()}", hint)

    def _our_certificate(self) -> str:
        ours = self._files.cert
        if not ours:
            return ""
        with ours.for_openssl() as path:
            shown = certificate.describe_file(path)
        facts = [f"issued by {quoted(shown.issuer)}"] if shown.issuer else []
        if shown.until:
            facts.append(f"expired {shown.until}" if certificate.is_past(shown.until) else f"valid until {shown.until}")
        return ", ".join([plain(ours.path), *facts])

    def _no_version(self) -> TlsFailed:
        if self._user:
            return self._failed(
                "the server does not support TLS 1.2, which pre-shared keys need", "certificates work: --tls-ca FILE"
            )
        if self._for_kernel:
            cause = "the server does not support TLS 1.2, which kernel transport needs"
            return self._nothing_for_kernel(cause, "if it supports only TLS 1.3: --tls-transport relay")
        return self._failed(
            "the server does not support TLS 1.2 or later", "older versions are not safe: update the server"
        )

    def _nothing_in_common(self) -> TlsFailed:
        if self._asked and not self._files.cert:
            return self._not_us("it ended the handshake")
        return self._nothing_for_kernel("server and client have no TLS settings in common", self._in_common())

    def _in_common(self) -> str:
        """The hint if the server did not even answer our ClientHello."""
        if self._user:
            return "does it support pre-shared keys with TLS 1.2?"
        if self._for_kernel:
            return (
                "does it support TLS 1.2 with AES-GCM or ChaCha20-Poly1305? does it require a pre-shared key "
                "(--tls-psk)? --tls-transport relay supports more"
            )
        return "does it support TLS 1.2 or later? does it require a pre-shared key (--tls-psk)?"

    def _not_verified(self, error: ssl.SSLCertVerificationError) -> TlsFailed:
        cause, hint = self._why_not_verified(error.verify_code, error.verify_message)
        return self._failed(f"the server is not verified: {cause}", hint)

    def _why_not_verified(self, code: int, message: str) -> tuple[str, str]:
        shown = certificate.describe(self.certificate)
        if code in _WRONG_NAME:
            return self._wrong_name(shown.names), "if it is the right server under another name: --tls-hostname NAME"
        if code == _EXPIRED:
            if shown.until and not certificate.is_past(shown.until):
                return "an authority above its certificate has expired", "the server and --tls-ca need a new one"
            return f"its certificate expired {shown.until}".rstrip(), "the server needs a new one; is the clock right?"
        if code == _NOT_YET:
            if shown.since and certificate.is_past(shown.since):
                return "an authority above its certificate is not valid yet", "is the clock right here? see date"
            since = f" before {shown.since}" if shown.since else " yet"
            return f"its certificate is not valid{since}", "is the clock right here? see date"
        if code == _REVOKED:
            return f"its certificate is revoked by {self._revoked_path()}", "the server needs a new one"
        if code in (_NO_CRL, _CRL_EXPIRED):
            what = "is too old" if code == _CRL_EXPIRED else "is from another authority"
            cause = f"the list of revoked certificates {self._revoked_path()} {what}"
            return cause, "the authority that issued its certificate has a newer one"
        if code == _SELF_SIGNED:
            return "its certificate is self-signed", "to trust it, give this certificate: --tls-ca FILE"
        if code in _UNTRUSTED:
            by = f"was issued by {quoted(shown.issuer)}, and" if shown.issuer else "is not trusted:"
            where = f"in {plain(self._files.ca.path)}" if self._files.ca else "that this machine trusts"
            return (
                f"its certificate {by} no authority {where} has signed it",
                "--tls-ca FILE sets the trusted authorities",
            )
        return f"its certificate cannot be used: {plain(message)}", "openssl x509 -text shows its contents"

    def _wrong_name(self, names: list[str]) -> str:
        wanted = quoted(self._target.verified_name)
        if not names:
            return f"its certificate is not for {wanted}"
        some = ", ".join(map(quoted, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")
        return f"its certificate is for {some}, not for {wanted}"

    def _revoked_path(self) -> str:
        return plain(self._files.revoked.path) if self._files.revoked else ""
