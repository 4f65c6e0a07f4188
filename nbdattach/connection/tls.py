# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS with a server: the OpenSSL context for a target, the handshake, and its failures in plain words.

Kernel transport (Documentation/networking/tls.rst): OpenSSL hands the keys to the kernel as soon as the handshake is
done, and the socket is a plain one from then on. TLS 1.2 only: TLS 1.3 has key updates and tickets, and the nbd driver
cannot read such records; also, OpenSSL before 3.2 does not hand over the receiving side of TLS 1.3.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any

from nbdattach.connect_options import DEFAULT_TIMEOUT
from nbdattach.connection import certificate, credentials
from nbdattach.connection.credentials import File
from nbdattach.errors import ConnectionLost, MaybeNotInKernel, NotInKernel, TlsFailed
from nbdattach.protocol.target import Target
from nbdattach.text import plain, quoted

# linux/tls.h, linux/socket.h
SOL_TLS = 282
TLS_TX = 1
TLS_RX = 2
_OP_ENABLE_KTLS = 1 << 3  # the name came with Python 3.12
# Ciphers of TLS 1.2 that the kernel's tls module has, with forward secrecy; below, the same with a pre-shared key.
_AES = "ECDHE+AESGCM:DHE+AESGCM"
_CHACHA = "ECDHE+CHACHA20:DHE+CHACHA20"
_CRYPTO = "/proc/crypto"
# Seconds to wait for files that are only read in advance.
_READING = 2.0
# Drivers of the kernel that do AES in C; those that use the processor's instructions are several times faster.
_AES_IN_C = ("aes-generic", "aes-fixed-time")
_PSK_CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256:DHE-PSK-CHACHA20-POLY1305"
)
_SERVER_HELLO, _CERTIFICATE, _CERTIFICATE_REQUEST = 2, 11, 13  # HandshakeType (RFC 5246, 7.4; RFC 8446, 4)
# X509_V_ERR_ of openssl/x509_vfy.h
_NO_CRL, _NOT_YET, _EXPIRED, _CRL_EXPIRED, _SELF_SIGNED, _REVOKED = 3, 9, 10, 12, 18, 23
_UNTRUSTED = (2, 7, 19, 20, 21)  # the issuer is unknown, or has another key than the one of that name
_WRONG_NAME = (62, 64)
# A line of a file of keys; a commented-out line does not match.
# OpenSSL takes no longer names or keys (PSK_MAX_IDENTITY_LEN, PSK_MAX_PSK_LEN).
_PSK_LINE = re.compile(r"([^:#][^:]{0,127}):((?:[0-9A-Fa-f]{2}){1,256})")
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
# The connection ended, politely or not.
_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)
_UNEXPECTED_END = "UNEXPECTED_EOF"
_IN_PYTHON = re.compile(r" \(_ssl\.c:\d+\)$")
# A certificate may have hundreds of names; an error shows so many of them if none is the right one.
_MAX_NAMES = 8


class Handshake:
    """TLS with the server of one target. Reads its files within `seconds`. Raises `TlsFailed`, TimeoutError."""

    def __init__(self, target: Target, for_kernel: bool, seconds: float = DEFAULT_TIMEOUT) -> None:
        self._target = target
        self._files = credentials.of(target, seconds)
        self._for_kernel = for_kernel
        self._certificate = b""  # the server's, DER
        self._answered = False  # the server chose a version and a cipher
        self._asked = False  # the server wants to see a certificate of ours
        self._user = ""  # the name of the pre-shared key
        self._context = self._made_context()

    def over(self, sock: socket.socket, name: str) -> ssl.SSLSocket:
        """Does the handshake and returns the TLS socket; the server's certificate must have `name`. `sock` is detached.

        Raises `TlsFailed`, `ConnectionLost`, TimeoutError.
        """
        if not name and self._context.check_hostname:
            cause = "which name must the certificate have? a Unix socket has none"
            raise TlsFailed(self._target.uri, cause, "--tls-hostname NAME says it")
        self._see_name_is_possible(name)
        try:
            inside = self._context.wrap_socket(sock, server_hostname=name or None)
        except TimeoutError:
            raise
        except (ssl.SSLError, ConnectionError) as error:
            raise self.failure(error) from error
        except OSError as error:  # of the network
            raise ConnectionLost(self._target.uri, f"TLS handshake: {error.strerror or error}") from error
        if self._for_kernel:
            self._see_it_in_kernel(inside)
        return inside

    def rehearse(self) -> None:
        """Makes our ClientHello and sends it nowhere, so that all code and files it needs are read from disk."""
        name = self._target.verified_name or "localhost"
        with contextlib.suppress(ssl.SSLWantReadError, ValueError):
            self._context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name).do_handshake()

    def _see_name_is_possible(self, name: str) -> None:
        """Raises if no certificate can have this name. wrap_socket refuses it too, but may leave the socket open."""
        try:
            self._context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name or None)
        except (ValueError, ssl.SSLError) as error:
            cause = f"{quoted(name)} is no name that a certificate can have"
            raise TlsFailed(self._target.uri, cause, "--tls-hostname NAME says the right one") from error

    def _see_it_in_kernel(self, inside: ssl.SSLSocket) -> None:
        """Raises if the kernel did not take TLS over in both directions: with only one the device would get garbage."""
        for direction, name in ((TLS_TX, "sending"), (TLS_RX, "receiving")):
            try:
                inside.getsockopt(SOL_TLS, direction, 4)
            except OSError as error:
                cipher = inside_cipher(inside)
                inside.close()
                words = f"the kernel does not take TLS for {name} ({error.strerror})"
                raise NotInKernel(self._target.uri, words + cipher, "modprobe tls; --tls-transport relay") from None
        if inside.pending():
            inside.close()
            raise NotInKernel(self._target.uri, "the server sent data before it was asked", "is this an NBD server?")

    # -- the context for the target --------------------------------------------------------------------------------

    def _made_context(self) -> ssl.SSLContext:
        target = self._target
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The policy of the machine may be stricter (MinProtocol and SECLEVEL in openssl.cnf).
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        context.options |= ssl.OP_NO_RENEGOTIATION  # OpenSSL takes no data from the server in the middle of it
        if self._for_kernel:
            self._see_policy_allows_1_2(context, NotInKernel, "kernel transport needs", "--tls-transport relay")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.options |= _OP_ENABLE_KTLS
            # Most servers take the first of them that they know.
            context.set_ciphers(f"{_CHACHA}:{_AES}" if _kernel_is_slow_at_aes() else f"{_AES}:{_CHACHA}")
        if target.tls_psk_file:
            self._use_psk(context)
        elif target.tls_verify:
            self._trust(context)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if not target.tls_psk_file:
            self._show_ourselves(context)
        # Only this private hook shows a refused certificate, and whether the server asks for ours. Without the hook,
        # errors say less.
        with contextlib.suppress(AttributeError):
            context._msg_callback = self._see_message  # type: ignore[attr-defined]
        return context

    def _see_policy_allows_1_2(
        self, context: ssl.SSLContext, kind: type[TlsFailed], who_needs: str, way_out: str
    ) -> None:
        if context.minimum_version > ssl.TLSVersion.TLSv1_2:
            cause = f"the policy of this machine wants TLS 1.3, and {who_needs} 1.2"
            raise kind(self._target.uri, cause, f"{way_out}; or see MinProtocol in openssl.cnf")

    def _trust(self, context: ssl.SSLContext) -> None:
        ca, revoked = self._files.ca, self._files.revoked
        if not ca:
            context.load_default_certs()
            return
        _load(ca, "CERTIFICATE", lambda path: context.load_verify_locations(cafile=path))
        if revoked:
            _load(revoked, "X509 CRL", lambda path: context.load_verify_locations(cafile=path))
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    @property
    def _revoked_path(self) -> str:
        return plain(self._files.revoked.path) if self._files.revoked else ""

    def _show_ourselves(self, context: ssl.SSLContext) -> None:
        cert, key = self._files.cert, self._files.key
        if not cert or not key:
            return
        _see(cert, "CERTIFICATE")
        _see(key, "PRIVATE KEY")

        def password() -> str:
            hint = "write it without one: openssl pkey -in FILE -out NEW"
            raise TlsFailed(plain(key.path), "the key has a password", hint)

        try:
            with cert.for_openssl() as certs, key.for_openssl() as keys:
                context.load_cert_chain(certs, keys, password)
        except ssl.SSLError as error:
            if "MISMATCH" not in (error.reason or ""):
                raise _damaged(f"{cert.path} or {key.path}" if key != cert else cert.path) from error
            cause = f"this key does not belong to the certificate {plain(cert.path)}"
            raise TlsFailed(plain(key.path), cause, "--tls-cert and --tls-key are made together") from error

    def _use_psk(self, context: ssl.SSLContext) -> None:
        file = self._target.tls_psk_file
        if not hasattr(context, "set_psk_client_callback") or not self._files.psk:
            cause = "pre-shared keys need Python 3.13 or later"
            raise TlsFailed(plain(file), cause, "certificates work here: --tls-ca FILE")
        lines = self._files.psk.content.decode("utf-8", "replace").splitlines()
        found = next(filter(None, (_PSK_LINE.fullmatch(line.strip()) for line in lines)), None)
        if not found:
            hint = "openssl rand -hex 32 makes a key"
            raise TlsFailed(plain(file), "no line USER:KEY with a hexadecimal key", hint)
        self._see_policy_allows_1_2(context, TlsFailed, "keys need", "certificates work: --tls-ca FILE")
        user, key = found[1], bytes.fromhex(found[2])
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_PSK_CIPHERS)
        context.set_psk_client_callback(lambda _hint: (user, key))
        self._user = user

    # -- errors ----------------------------------------------------------------------------------------------------

    def _see_message(self, _conn: Any, direction: str, _version: Any, _kind: Any, message: Any, data: bytes) -> None:
        if direction != "read":
            return
        self._answered = self._answered or message == _SERVER_HELLO
        self._asked = self._asked or message == _CERTIFICATE_REQUEST
        if message != _CERTIFICATE or self._certificate:
            return
        # The message is a length of 3 bytes and a list (RFC 5246, 7.4.2); in TLS 1.3 a context of one byte comes
        # before them (RFC 8446, 4.4.2). The list begins with a length and the server's own certificate.
        body = data[4:]
        place = 3 if int.from_bytes(body[:3], "big") == len(body) - 3 else 4
        length = int.from_bytes(body[place : place + 3], "big")
        self._certificate = body[place + 3 : place + 3 + length]

    def failure(self, error: OSError) -> TlsFailed:
        """OpenSSL's error as ours, with cause and hint."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._not_verified(error)
        if has_ended(error):
            return self.closed()
        reason = _reason(error)

        def is_one_of(reasons: tuple[str, ...]) -> bool:
            return any(one in reason for one in reasons)

        if is_one_of(_NOT_US) or (self._user and is_one_of(_NOT_OUR_KEY)):
            return self._not_us(_words(reason))
        if is_one_of(_VERSION):
            return self._no_version()
        if is_one_of(_NOTHING_IN_COMMON):
            return self._nothing_in_common()
        if "ALERT_" in reason:
            return self._failed(f"the server ended TLS: {_words(reason)}", "its log may tell why")
        if is_one_of(_NO_TLS):
            return self._failed("what the server sent is no TLS", "does something stand between us and it?")
        return self._failed(f"TLS: {plain(str(error))}", "--debug shows each step")

    def closed(self) -> TlsFailed:
        """The error if the server closed the connection in or right after the handshake: GnuTLS sends no reason."""
        if self._asked or (self._user and self._answered):
            return self._not_us("")
        hint = "its log may tell why; does it want a key (--tls-psk)?" if self._answered else self._in_common()
        said = "the server closed the connection in the TLS handshake"
        # A server that finds no common cipher may also just close (nbdkit, with GnuTLS).
        return self._failed(said, hint) if self._answered else self._nothing_for_kernel(said, hint, MaybeNotInKernel)

    @staticmethod
    def is_of_tls(error: OSError) -> bool:
        """Whether the error is of TLS, not of the connection below it."""
        return isinstance(error, ssl.SSLError) and not has_ended(error)

    @staticmethod
    def words(error: OSError) -> str:
        """For an error of the connection below TLS. "" if it just ended: OpenSSL's text for that varies."""
        return "" if has_ended(error) else error.strerror or str(error)

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
            cause = "does not accept" if said else "closed the connection when it was to accept"
            return self._failed(f"the server {cause} {whose}{told}", "does it have the same line in its file?")
        if not self._files.cert:
            cause = f"the server wants a certificate of ours, and we have none{told}"
            if not said:
                cause = "the server asked for a certificate of ours, got none, and closed the connection"
            return self._failed(cause, "--tls-cert FILE and --tls-key FILE show one")
        hint = "is it from an authority that the server trusts? the server's log may tell more"
        if said:
            return self._failed(f"the server does not accept our certificate {self._our_certificate()}{told}", hint)
        cause = "the server closed the connection when it had our certificate"
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
            return self._failed("the server does not do TLS 1.2, which keys need", "certificates work: --tls-ca FILE")
        if self._for_kernel:
            cause = "the server does not do TLS 1.2, which kernel transport needs"
            return self._nothing_for_kernel(cause, "where it does 1.3 only: --tls-transport relay")
        return self._failed("the server does not do TLS 1.2 or later", "older ones are not safe: update the server")

    def _nothing_in_common(self) -> TlsFailed:
        if self._asked and not self._files.cert:
            return self._not_us("it ended the handshake")
        return self._nothing_for_kernel("the server found no way of TLS in common with us", self._in_common())

    def _in_common(self) -> str:
        """The hint if the server did not even answer our ClientHello."""
        if self._user:
            return "does it use pre-shared keys at all, in TLS 1.2?"
        if self._for_kernel:
            return (
                "does it do TLS 1.2 with AES-GCM or ChaCha20-Poly1305? does it want a key (--tls-psk)? "
                "--tls-transport relay can do more"
            )
        return "does it do TLS 1.2 or later? does it want a key (--tls-psk)?"

    def _not_verified(self, error: ssl.SSLCertVerificationError) -> TlsFailed:
        cause, hint = self._why_not_verified(error.verify_code, error.verify_message)
        return self._failed(f"the server is not verified: {cause}", hint)

    def _why_not_verified(self, code: int, message: str) -> tuple[str, str]:
        shown = certificate.describe(self._certificate)
        if code in _WRONG_NAME:
            return self._wrong_name(shown.names), "--tls-hostname NAME, if it is the right server by another name"
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
            return f"its certificate is revoked by {self._revoked_path}", "the server needs a new one"
        if code in (_NO_CRL, _CRL_EXPIRED):
            what = "is too old" if code == _CRL_EXPIRED else "is of another authority"
            cause = f"the list of revoked certificates {self._revoked_path} {what}"
            return cause, "the authority that issued its certificate has a newer one"
        if code == _SELF_SIGNED:
            return "its certificate is self-signed", "--tls-ca FILE with this very certificate trusts it"
        if code in _UNTRUSTED:
            by = f"was issued by {quoted(shown.issuer)}, and" if shown.issuer else "is not trusted:"
            where = f"in {plain(self._files.ca.path)}" if self._files.ca else "that this machine trusts"
            return f"its certificate {by} no authority {where} has signed it", "--tls-ca FILE names whom to trust"
        return f"its certificate is not good for it: {plain(message)}", "openssl x509 -text shows what is in one"

    def _wrong_name(self, names: list[str]) -> str:
        wanted = quoted(self._target.verified_name)
        if not names:
            return f"its certificate is not for {wanted}"
        some = ", ".join(map(quoted, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")
        return f"its certificate is for {some}, not for {wanted}"


def warm_up(target: Target) -> None:
    """Reads the target's files in advance, so that a copy is there when their disk is not."""
    with contextlib.suppress(TlsFailed, TimeoutError):
        Handshake(target, True, _READING).rehearse()


def _kernel_is_slow_at_aes() -> bool:
    """Whether it has AES only in C."""
    try:
        with open(_CRYPTO) as file:
            blocks = file.read().split("\n\n")
    except OSError:
        return False
    drivers = []
    for block in blocks:
        fields = dict(re.findall(r"^(name|driver) *: (.*)$", block, re.MULTILINE))
        if re.search(r"\baes\b", fields.get("name", "")):
            drivers.append(fields.get("driver", ""))
    return bool(drivers) and all(any(slow in driver for slow in _AES_IN_C) for driver in drivers)


def inside_cipher(sock: ssl.SSLSocket) -> str:
    cipher = sock.cipher()
    return f" with {cipher[0]}" if cipher else ""


def has_ended(error: OSError) -> bool:
    """Whether the server or the network ended the connection, without a TLS alert that gives the reason.

    OpenSSL 3.0 and Python have classes for that. OpenSSL 3.5 passes on the system's own errors. With it, a read after a
    failed send raises a plain SSLError with SSL_ERROR_SYSCALL, for an unexpected end and also for a waiting alert.
    """
    if isinstance(error, _ENDED):
        return True
    if not isinstance(error, ssl.SSLError):
        return False
    told = getattr(error, "reason", None)
    return _UNEXPECTED_END in _reason(error) or (error.errno == ssl.SSL_ERROR_SYSCALL and not told)


def forget_errors() -> None:
    """Clears OpenSSL's errors of this thread, so that one connection's error is not reported for the next one.

    OpenSSL keeps errors in a queue for each thread, and looks there when a call has nothing to read yet. Python leaves
    a system's error in it (seen with Python 3.13 and OpenSSL 3.5, 3.14 and 3.15 and OpenSSL 3.6). From then on each
    read of any connection in the thread fails with it. A handshake empties the queue first (state_machine in
    ssl/statem/statem.c), so we begin one that has no peer.
    """
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="nobody"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        nobody.do_handshake()


def _reason(error: OSError) -> str:
    """Such as TLSV1_ALERT_UNKNOWN_CA. Python shows OpenSSL's words for a reason that is newer than Python."""
    return (getattr(error, "reason", None) or _IN_PYTHON.sub("", str(error))).upper().replace(" ", "_")


def _words(reason: str) -> str:
    """TLSV1_ALERT_UNKNOWN_CA: unknown ca."""
    return plain(reason.rpartition("ALERT_")[2].lower().replace("_", " "))


# -- files ---------------------------------------------------------------------------------------------------------


def _load(file: File, what: str, load: Callable[[str], Any]) -> None:
    _see(file, what)
    try:
        with file.for_openssl() as path:
            load(path)
    except ssl.SSLError as error:
        raise _damaged(file.path) from error


def _see(file: File, what: str) -> None:
    """Raises `TlsFailed` if the file has none of it in PEM: OpenSSL has one error for any other content."""
    if not re.search(rb"^-----BEGIN [A-Z0-9 ]*" + what.encode() + rb"-----", file.content, re.MULTILINE):
        name = {"CERTIFICATE": "certificate", "PRIVATE KEY": "key"}.get(what, "list of revoked certificates")
        raise TlsFailed(plain(file.path), f"no {name} in PEM in it", f"it has a line -----BEGIN {what}-----")


def _damaged(path: str) -> TlsFailed:
    return TlsFailed(plain(path), "damaged: OpenSSL cannot use it", "openssl x509 -in FILE -text shows what it can")
