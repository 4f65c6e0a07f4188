# SPDX-License-Identifier: GPL-2.0-or-later
"""The OpenSSL context for a target: its versions and ciphers, the authorities it trusts, and our certificate or key."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from typing import Any

from nbdattach.connection.credentials import Credentials, File
from nbdattach.errors import NotInKernel, TlsFailed
from nbdattach.protocol.target import Target
from nbdattach.text import plain

# Ciphers of TLS 1.2 that the kernel's tls module has, with forward secrecy; below, the same with a pre-shared key.
_AES = "ECDHE+AESGCM:DHE+AESGCM"
_CHACHA = "ECDHE+CHACHA20:DHE+CHACHA20"
_PSK_CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256:DHE-PSK-CHACHA20-POLY1305"
)
_OP_ENABLE_KTLS = 1 << 3  # the name came with Python 3.12
_CRYPTO = "/proc/crypto"
# Drivers of the kernel that do AES in C; those that use the processor's instructions are several times faster.
_AES_IN_C = ("aes-generic", "aes-fixed-time")
# A line of a file of keys; a commented-out line does not match.
# OpenSSL takes no longer names or keys (PSK_MAX_IDENTITY_LEN, PSK_MAX_PSK_LEN).
_PSK_LINE = re.compile(r"([^:#][^:]{0,127}):((?:[0-9A-Fa-f]{2}){1,256})")


def make(target: Target, files: Credentials, for_kernel: bool) -> tuple[ssl.SSLContext, str]:
    """The context, and the name of the pre-shared key that it uses; empty without one. Raises `TlsFailed`."""
    context, user = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ""
    # The policy of the machine may be stricter (MinProtocol and SECLEVEL in openssl.cnf).
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION  # OpenSSL takes no data from the server in the middle of it
    if for_kernel:
        _use_kernel(context, target)
    if target.tls_psk_file:
        user = _use_psk(context, target, files)
    elif target.tls_verify:
        _trust(context, files)
    else:
        _trust_any(context)
    if not target.tls_psk_file:
        _show_ourselves(context, files)
    return context, user


def _use_kernel(context: ssl.SSLContext, target: Target) -> None:
    _require_1_2_allowed(context, target, NotInKernel, "kernel transport needs", "--tls-transport relay")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= _OP_ENABLE_KTLS
    # Most servers take the first of them that they know.
    context.set_ciphers(f"{_CHACHA}:{_AES}" if _kernel_is_slow_at_aes() else f"{_AES}:{_CHACHA}")


def _require_1_2_allowed(
    context: ssl.SSLContext, target: Target, kind: type[TlsFailed], reason: str, way_out: str
) -> None:
    if context.minimum_version > ssl.TLSVersion.TLSv1_2:
        cause = f"the policy of this machine requires TLS 1.3, and {reason} 1.2"
        raise kind(target.uri, cause, f"{way_out}; or see MinProtocol in openssl.cnf")


def _trust_any(context: ssl.SSLContext) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def _trust(context: ssl.SSLContext, files: Credentials) -> None:
    if not files.ca:
        context.load_default_certs()
        return
    _load(files.ca, "CERTIFICATE", lambda path: context.load_verify_locations(cafile=path))
    if files.revoked:
        _load(files.revoked, "X509 CRL", lambda path: context.load_verify_locations(cafile=path))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _show_ourselves(context: ssl.SSLContext, files: Credentials) -> None:
    cert, key = files.cert, files.key
    if not cert or not key:
        return
    _require_pem(cert, "CERTIFICATE")
    _require_pem(key, "PRIVATE KEY")

    def password() -> str:
        hint = "remove the password: openssl pkey -in FILE -out NEW"
        raise TlsFailed(plain(key.path), "the key has a password", hint)

    try:
        with cert.for_openssl() as certs, key.for_openssl() as keys:
            context.load_cert_chain(certs, keys, password)
    except ssl.SSLError as error:
        if "MISMATCH" not in (error.reason or ""):
            raise _damaged(f"{cert.path} or {key.path}" if key != cert else cert.path) from error
        cause = f"this key does not belong to the certificate {plain(cert.path)}"
        raise TlsFailed(plain(key.path), cause, "--tls-cert and --tls-key are made together") from error


def _use_psk(context: ssl.SSLContext, target: Target, files: Credentials) -> str:
    """Returns the name of the key."""
    file = target.tls_psk_file
    if not hasattr(context, "set_psk_client_callback") or not files.psk:
        cause = "pre-shared keys need Python 3.13 or later"
        raise TlsFailed(plain(file), cause, "certificates work here: --tls-ca FILE")
    lines = files.psk.content.decode("utf-8", "replace").splitlines()
    found = next(filter(None, (_PSK_LINE.fullmatch(line.strip()) for line in lines)), None)
    if not found:
        hint = "openssl rand -hex 32 makes a key"
        raise TlsFailed(plain(file), "no line USER:KEY with a hexadecimal key", hint)
    _require_1_2_allowed(context, target, TlsFailed, "pre-shared keys need", "certificates work: --tls-ca FILE")
    user, key = found[1], bytes.fromhex(found[2])
    _trust_any(context)  # a server without the key cannot complete the handshake
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_PSK_CIPHERS)
    context.set_psk_client_callback(lambda _hint: (user, key))
    return user


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


def _load(file: File, what: str, load: Callable[[str], Any]) -> None:
    _require_pem(file, what)
    try:
        with file.for_openssl() as path:
            load(path)
    except ssl.SSLError as error:
        raise _damaged(file.path) from error


def _require_pem(file: File, what: str) -> None:
    """Raises `TlsFailed` if the file has none of it in PEM: OpenSSL has one error for any other content."""
    if not re.search(rb"^-----BEGIN [A-Z0-9 ]*" + what.encode() + rb"-----", file.content, re.MULTILINE):
        name = {"CERTIFICATE": "certificate", "PRIVATE KEY": "key"}.get(what, "list of revoked certificates")
        raise TlsFailed(
            plain(file.path), f"contains no {name} in PEM format", f"a PEM file has a line -----BEGIN {what}-----"
        )


def _damaged(path: str) -> TlsFailed:
    return TlsFailed(plain(path), "damaged: OpenSSL cannot use it", "openssl x509 -in FILE -text shows a certificate")
