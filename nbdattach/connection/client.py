# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks a server without the kernel's driver: its list, one export, a check; and connects for an attachment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbdattach.connect_options import DEFAULT_TIMEOUT
from nbdattach.connection.stream import Stream, dial
from nbdattach.content.reading import Look, T, run
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError, TlsFailed
from nbdattach.immutable import immutable
from nbdattach.protocol import handshake, transmission
from nbdattach.protocol.constants import NBD_FLAG_HAS_FLAGS
from nbdattach.protocol.export import Export, Listed
from nbdattach.protocol.target import Target
from nbdattach.reporter import Trace, silent
from nbdattach.tls_session import TlsSession

if TYPE_CHECKING:
    from socket import socket

    from nbdattach.connection.certificate import Certificate
    from nbdattach.relay.dialer import Relay

# As large as a page: the kernel reads no less of a device that has one, and takes no server that allows less.
CHECK_READ = 4096
MAX_READ = 32 << 10
CHECK_COOKIE = 0x6E62646174746163  # "nbdattac", to be known in a capture


@immutable
class Inspected:
    """One export; the TLS version and cipher it was learnt over, and the server's certificate, None without one."""

    export: Export
    tls: tuple[str, str] | None
    certificate: Certificate | None = None


@immutable
class Checked:
    """Times in milliseconds, None for a step that was not reached; `error` is None if all is well."""

    handshake_ms: float | None
    read_ms: float | None
    error: NbdattachError | None


@immutable
class Connection:
    """A stream in the transmission phase of `export`, ready for the kernel; and the relay at its other end."""

    stream: Stream
    export: Export
    relay: Relay | None = None

    @property
    def tls(self) -> TlsSession | None:
        """None without TLS."""
        if self.stream.tls is None:
            return None
        version, cipher = self.stream.tls
        return TlsSession(version, cipher, "relay" if self.relay else "kernel")


def list_exports(target: Target, timeout: float = DEFAULT_TIMEOUT, trace: Trace = silent) -> list[Listed]:
    """The exports of the target's server. `timeout` in seconds, for all of it. Raises `NbdattachError`."""
    with dial(target, Deadline(timeout), trace) as stream:
        return stream.run(handshake.catalogue(target))


def inspect(target: Target, timeout: float = DEFAULT_TIMEOUT, trace: Trace = silent) -> Inspected:
    """The target's export. `timeout` in seconds, for all of it. Raises `NbdattachError`."""
    with dial(target, Deadline(timeout), trace) as stream:
        export = stream.run(handshake.inspect(target))
        return Inspected(export, stream.tls, stream.certificate)


def connect(
    target: Target,
    timeout: float = DEFAULT_TIMEOUT,
    trace: Trace = silent,
    connect_within: float = math.inf,
    raw_size: int | None = None,
    kernel_tls: bool = False,
    ready: socket | None = None,
) -> Connection:
    """A connection in the transmission phase. Raises `NbdattachError`.

    `timeout` in seconds, for all of it; `connect_within`, for TCP alone. `raw_size`: the size in bytes of an export
    without a handshake. `kernel_tls`: if the target wants TLS, the kernel encrypts.
    `ready`: a connection that was just made there, to be used; it is closed if that fails.
    """
    if raw_size is not None and target.tls:
        raise no_tls_without_handshake(target)
    stream = dial(target, Deadline(timeout), trace, connect_within, kernel_tls, ready)
    try:
        if raw_size is not None:
            return Connection(stream, Export(target.export, raw_size, NBD_FLAG_HAS_FLAGS, "none"))
        export = stream.run(handshake.enter(target))
        stream.require_nothing_left()
        return Connection(stream, export)
    except BaseException:
        stream.close()
        raise


def no_tls_without_handshake(target: Target) -> TlsFailed:
    """The error for --no-handshake and TLS."""
    return TlsFailed(target.uri, "TLS needs the handshake", "leave out TLS or --no-handshake")


def check(
    target: Target,
    attachable: Callable[[str, Export], int],
    timeout: float = DEFAULT_TIMEOUT,
    trace: Trace = silent,
) -> Checked:
    """Handshake, then one read of the export's beginning. A `NbdattachError` is not raised, but is in the result.

    `attachable` has the rules of an attachment: it gets the target's URI and the export, returns how many bytes a
    device would have, and raises `NbdattachError` if there can be none.
    """
    began = time.monotonic()
    handshake_ms: float | None = None
    try:
        connection = connect(target, timeout, trace)
        handshake_ms = _ms_since(began)
        with connection.stream as stream:
            read_ms = _checked_read(stream, connection.export, attachable)
    except NbdattachError as error:
        return Checked(handshake_ms, None, error)
    return Checked(handshake_ms, read_ms, None)


def look(connection: Connection, steps: Look[T]) -> T:
    """Runs a look at the export's content, within the deadline of the connection. Raises `NbdattachError`.

    After `Refused`, which is the server's error of a read, the connection is still of use.
    """
    stream, sizes = connection.stream, connection.export.block_size
    most = min(sizes.maximum if sizes else MAX_READ, MAX_READ)
    found = run(steps, lambda wanted: stream.run(transmission.read_all(stream.uri, wanted, most, CHECK_COOKIE)))
    stream.require_nothing_left()
    return found


def _checked_read(stream: Stream, export: Export, attachable: Callable[[str, Export], int]) -> float:
    """The milliseconds of one read. Leaves the server politely, also if the export cannot be attached."""
    try:
        length = min(CHECK_READ, attachable(stream.uri, export))
    except NbdattachError:
        stream.run(transmission.disconnect())
        raise
    began = time.monotonic()
    stream.run(transmission.read(stream.uri, 0, length, CHECK_COOKIE))
    took = _ms_since(began)
    stream.run(transmission.disconnect())
    return took


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)
