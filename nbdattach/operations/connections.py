# SPDX-License-Identifier: GPL-2.0-or-later
"""The connections of one attachment: the first, retried for --retry-for, and others that show the same export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nbdattach.connect_options import ConnectOptions
from nbdattach.connection.client import Connection
from nbdattach.errors import BrokenProtocol, NoConnection, Refused, TlsFailed
from nbdattach.operations.patience import Patience
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target, others
from nbdattach.relay.dialer import Carrier
from nbdattach.reporter import Trace, silent

# For --connections auto.
AUTO_CONNECTIONS = 4
# With auto, connections after the first are optional, so we wait no longer than this for a server that may be full.
_AUTO_SECONDS = 3.0
# The errors that we may get if the server accepts no further connection.
_FULL = (NoConnection, Refused, TlsFailed)


@contextmanager
def connected(
    target: Target, options: ConnectOptions, trace: Trace, say: Trace = silent
) -> Iterator[tuple[Target, list[Connection], Export, list[str]]]:
    """All connections of one attachment, and their server: the target, or one of --also.

    We close them at the end, when the kernel has its own references. `say` tells users, once, that no server answers
    yet, and how long it will be tried.
    """
    carrier = Carrier(options.tls_transport)
    try:
        target, first = _first_connection([target, *others(target, options.also)], options, trace, carrier, say)
        connections = [first]
    except BaseException:
        carrier.close()
        raise
    try:
        export = connections[0].export
        _check_size(target, export, options)
        wanted, notes = _how_many(target, export, options)
        connections += _more_connections(target, export, options, wanted - 1, trace, carrier)
        if len(connections) < wanted:
            made = len(connections)
            notes.append(
                f"{target.uri}: the server accepted {made} of {wanted} connections; -C {made} asks for no more"
            )
        for connection in connections:
            connection.stream.sock.settimeout(None)
        yield target, connections, export, notes
    finally:
        for connection in connections:
            connection.stream.close()
        carrier.close()


def _first_connection(
    targets: list[Target], options: ConnectOptions, trace: Trace, carrier: Carrier, say: Trace
) -> tuple[Target, Connection]:
    """To the first target that can be reached. Tries until --retry-for has passed; raises the first one's error."""
    patience = Patience(options.retry_for, say)
    while True:
        failures: list[NoConnection] = []
        for target in targets:
            try:
                return target, _connection(target, options, trace, carrier)
            except NoConnection as error:
                trace(str(error))
                failures.append(error)
        if not patience.goes_on_after(failures[0]):
            raise failures[0]


def _connection(target: Target, options: ConnectOptions, trace: Trace, carrier: Carrier) -> Connection:
    return carrier.dial(target, options.dead_peer, options.connect_timeout, trace, raw_size=options.raw_size)


def _check_size(target: Target, export: Export, options: ConnectOptions) -> None:
    if options.expect_size is not None and options.expect_size != export.size:
        raise Refused(
            target.uri,
            f"the export has {export.size} bytes, --expect-size says {options.expect_size}",
            "is it the right export?",
        )


def _how_many(target: Target, export: Export, options: ConnectOptions) -> tuple[int, list[str]]:
    """The number of connections to make, and a note for the user if it is less than requested."""
    if options.connections == 1 or not export.can_multi_conn:
        notes = []
        if options.connections > 1:
            notes.append(f"{target.uri}: the server allows only one connection, so only one is made")
        return 1, notes
    return options.connections or min(AUTO_CONNECTIONS, os.cpu_count() or 1), []


def _more_connections(
    target: Target, export: Export, options: ConnectOptions, count: int, trace: Trace, carrier: Carrier
) -> list[Connection]:
    """Dials in parallel; each must show the very same export. With --connections auto, fewer than `count` may do."""
    if not count:
        return []
    if not options.connections:
        options = replace(options, connect_timeout=min(options.connect_timeout, _AUTO_SECONDS))
    from concurrent.futures import ThreadPoolExecutor  # most devices have one connection, and it is slow to import

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(_connection, target, options, trace, carrier) for _ in range(count)]
    made = [future.result() for future in futures if not future.exception()]
    failures = [failure for future in futures if (failure := future.exception())]
    if not options.connections:
        for failure in failures:
            trace(str(failure))
        failures = [failure for failure in failures if not isinstance(failure, _FULL)]
    differ = [connection for connection in made if connection.export != export]
    if failures or differ:
        for connection in made:
            connection.stream.close()
    if failures:
        raise failures[0]
    if differ:
        raise BrokenProtocol(target.uri, "the server announced different exports under the same name")
    return made
