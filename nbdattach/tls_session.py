# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about a connection's TLS that `status` shows and the state file keeps."""

from __future__ import annotations

from nbdattach.immutable import immutable


@immutable
class TlsSession:
    """`version` and `cipher` as OpenSSL names them."""

    version: str
    cipher: str
    transport: str  # "kernel" | "relay"
