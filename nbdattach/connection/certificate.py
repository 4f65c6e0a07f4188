# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a certificate's names and dates for messages, never to verify it; one that cannot be read is no error."""

from __future__ import annotations

import ipaddress
import os
import ssl
from datetime import UTC, datetime
from typing import Any

from nbdattach.text import plain


class Certificate:
    """Names, issuer, and the times of its validity, RFC 3339 in UTC; all empty if it could not be read."""

    def __init__(self, fields: dict[str, Any]) -> None:
        alternatives = [
            _address(value) if kind == "IP Address" else value
            for kind, value in fields.get("subjectAltName", ())
            if kind in ("DNS", "IP Address")
        ]
        self.names = [plain(name) for name in alternatives or _common_names(fields.get("subject", ()))]
        self.issuer = plain(next(iter(_common_names(fields.get("issuer", ()))), ""))
        self.since = _when(fields.get("notBefore"))
        self.until = _when(fields.get("notAfter"))


def describe(certificate: bytes) -> Certificate:
    """A certificate in DER. Python reads an unverified one only from a file, so we write it to a file in memory."""
    try:
        file = os.memfd_create("certificate")
        with open(file, "w") as pem:
            pem.write(ssl.DER_cert_to_PEM_cert(certificate))
            pem.flush()
            return describe_file(f"/proc/self/fd/{file}")
    except (OSError, ValueError):
        return Certificate({})


def describe_file(path: str) -> Certificate:
    """The first certificate of a PEM file."""
    try:
        return Certificate(ssl._ssl._test_decode_cert(path))  # type: ignore[attr-defined]
    except Exception:  # a private function: it may go or change. Then the message has fewer facts.
        return Certificate({})


def of(sock: ssl.SSLSocket) -> Certificate | None:
    """The server's certificate, on an open connection; None if both sides use a pre-shared key instead."""
    shown = sock.getpeercert(binary_form=True)
    return describe(shown) if shown else None


def is_past(moment: str) -> bool:
    return moment != "" and moment < datetime.now(UTC).isoformat()


def _common_names(parts: Any) -> list[str]:
    return [value for part in parts for key, value in part if key == "commonName"]


def _address(text: str) -> str:
    """As people write it; Python's own form of ::1 is 0:0:0:0:0:0:0:1."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text


def _when(text: str | None) -> str:
    if not text:
        return ""
    seconds = ssl.cert_time_to_seconds(text)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
