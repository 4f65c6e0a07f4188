# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that carries TLS if the kernel cannot: dials, does the handshake, and pumps while connections live.

A TLS connection cannot move from one process to another, so the process that pumps must dial. A fork of a command would
keep the command's memory for good, and a fork of the monitor would have its threads and locks. So this is a fresh
interpreter (`python -I -S`), which gets its orders over a Unix socket (`dialer` gives them; `orders` has them).

It lives while a process can still give orders, or a connection lives. So the monitor makes new connections over the
same process: while the disk that this machine runs from is away, no new one could be started.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import contextlib
import gc
import os
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbdattach.connection import client, tls  # noqa: F401 - loaded now: when the relay dials, the disk may be away
from nbdattach.connection.kernel_socket import watch_peer
from nbdattach.connection.stream import warm_up
from nbdattach.error_facts import SAME_VERSION
from nbdattach.errors import NbdattachError
from nbdattach.host import background, kmsg, messages, procfs, storage_daemon
from nbdattach.relay.loop import Pumps
from nbdattach.relay.orders import Dial, Dialled, Said, Traced
from nbdattach.relay.pump import Pump
from nbdattach.untrusted_json import parsed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Bytes; nothing here recurses.
_STACK = 256 << 10


def main(arguments: list[str]) -> None:
    """`arguments`: the descriptor that orders come from."""
    background.leave_parent()
    storage_daemon.outlive()
    # It ends with its connections, and those end with the device.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    background.leave_terminal()
    warm_up()
    threading.stack_size(_STACK)
    procfs.survive()
    gc.freeze()
    try:
        with socket.socket(fileno=int(arguments[0])) as orders:
            serve(orders)
    except Exception as error:
        _log(f"ended by {type(error).__name__}: {error}")
        raise


def serve(orders: socket.socket) -> None:
    """Returns when no process can give orders any more, and no connection is left."""
    pumps = Pumps()
    threading.Thread(target=_Clerk(orders, pumps).work, daemon=True).start()
    pumps.run()


class _Clerk:
    """Takes the orders, one after the other, in a thread of its own: dialling takes time, and the pumps go on."""

    def __init__(self, orders: socket.socket, pumps: Pumps) -> None:
        self._orders = orders
        self._pumps = pumps

    def work(self) -> None:
        try:
            while True:
                message, descriptors = messages.receive(self._orders, 1)
                if not message:
                    break
                with contextlib.ExitStack() as given:
                    sockets = [given.enter_context(socket.socket(fileno=number)) for number in descriptors]
                    messages.send(self._orders, self._answer(message, sockets))
        except OSError:
            pass  # the process that gave the orders has gone
        finally:
            self._pumps.finish()

    def _answer(self, message: bytes, sockets: Sequence[socket.socket]) -> DataclassInstance | NbdattachError:
        try:
            return self._obey(parsed(message), sockets)
        except NbdattachError as error:
            return error
        except (ValueError, TypeError, KeyError, IndexError) as error:
            cause = f"it cannot read the request: {type(error).__name__}: {error}"
            return NbdattachError("relay", cause, SAME_VERSION)

    def _obey(self, order: dict[str, Any], sockets: Sequence[socket.socket]) -> Said | Dialled:
        if order["do"] == "bury":
            seen = threading.Event()
            self._pumps.call(seen.set)
            seen.wait()
            return Said("buried")
        return self._dial(sockets[0], Dial.of(order))

    def _dial(self, kernel: socket.socket, order: Dial) -> Dialled:
        made = client.connect(
            order.target,
            order.timeout,
            lambda line: messages.send(self._orders, Traced(line)),
            connect_within=order.connect_within,
            raw_size=order.raw_size,
        )
        server: Any = made.stream.sock
        watch_peer(server, order.dead_peer)
        pump = Pump(kernel.dup(), server, lambda why: _log(f"{order.target.uri}: {why}"), order.dead_peer)
        self._pumps.add(pump)
        return Dialled(made.export, made.stream.tls, os.getpid())


def _log(line: str) -> None:
    kmsg.write(kmsg.NOTICE, f"relay {os.getpid()}: {line}")
