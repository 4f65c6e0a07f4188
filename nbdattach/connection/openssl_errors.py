# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenSSL's errors: what they say, whether they are only the end of a connection, and the queue that keeps them."""

from __future__ import annotations

import contextlib
import re
import ssl

from nbdattach.text import plain

# The connection ended, politely or not.
_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)
_UNEXPECTED_END = "UNEXPECTED_EOF"
_IN_PYTHON = re.compile(r" \(_ssl\.c:\d+\)$")


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
    return _UNEXPECTED_END in reason_of(error) or (error.errno == ssl.SSL_ERROR_SYSCALL and not told)


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


def is_of_tls(error: OSError) -> bool:
    """Whether the error is of TLS, not of the connection below it."""
    return isinstance(error, ssl.SSLError) and not has_ended(error)


def reason_of(error: OSError) -> str:
    """Such as TLSV1_ALERT_UNKNOWN_CA. Python shows OpenSSL's words for a reason that is newer than Python."""
    return (getattr(error, "reason", None) or _IN_PYTHON.sub("", str(error))).upper().replace(" ", "_")


def words_of(reason: str) -> str:
    """TLSV1_ALERT_UNKNOWN_CA: unknown ca."""
    return plain(reason.rpartition("ALERT_")[2].lower().replace("_", " "))
