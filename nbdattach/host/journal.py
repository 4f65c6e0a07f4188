# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends entries with fields to the journal, without a library (systemd.io/JOURNAL_NATIVE_PROTOCOL). Never waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"


def is_stderr() -> bool:
    """Whether standard error leads to the journal: systemd sets $JOURNAL_STREAM for this question (systemd.exec(5))."""
    try:
        there = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def send(fields: Mapping[str, str]) -> bool:
    """One entry. False if the journal does not take it at once."""
    entry = b"".join(_field(name, value) for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(entry, socket.MSG_DONTWAIT, SOCKET)
    except OSError:
        return False
    return True


def _field(name: str, value: str) -> bytes:
    """NAME=VALUE; a value of several lines has its length before it."""
    data = value.encode(errors="surrogateescape")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
