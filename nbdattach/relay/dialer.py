# SPDX-License-Identifier: GPL-2.0-or-later
"""Dials the server for an attachment, with TLS in the kernel or in a relay process of ours.

The relay is told to dial (`relay.process` tells why it must do that by itself); it gets one end of a pair of Unix
sockets, and the kernel gets the other one. The relay stays ready for further connections, until `close`.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

from nbdattach.connection import client
from nbdattach.connection.client import Connection
from nbdattach.connection.kernel_socket import watch_peer
from nbdattach.connection.stream import Stream
from nbdattach.deadline import Deadline
from nbdattach.error_facts import SAME_VERSION
from nbdattach.errors import DeadlinePassed, KernelRefused, MaybeNotInKernel, NbdattachError, NotInKernel
from nbdattach.host import messages, procfs, programs, systemd
from nbdattach.host.spawn import bare_python, environment
from nbdattach.protocol.target import Target
from nbdattach.relay.orders import Bury, Dial, Dialled, Said, Traced
from nbdattach.reporter import Trace, silent
from nbdattach.text import plain
from nbdattach.untrusted_json import parsed

_T = TypeVar("_T")

START_SECONDS = 30
# Seconds after its own deadline at which a relay counts as stuck.
_GRACE = 5.0
# If a server just closes so many tries in a row, we conclude that it no longer does TLS with the kernel.
_CLOSED = 3
# Seconds that a relay gets if the kernel's part has used up the time of a try.
_LEAST = 1.0


def require_possible(target: Target, transport: str) -> None:
    """Raises `NotInKernel` if the kernel alone may encrypt, as in --tls-transport, and cannot for such a target."""
    if target.tls and target.socket and transport == "kernel":
        cause = "the kernel does TLS only over TCP, not over a Unix socket"
        raise NotInKernel(target.uri, cause, "--tls-transport relay")


class Carrier:
    """Dials, in the kernel or by a relay. Several threads may use it; if a relay dials, they take turns."""

    def __init__(self, wanted: str, relay: Relay | None = None, was_in_kernel: bool = False) -> None:
        """`wanted`: as in --tls-transport. `relay`: one that runs. `was_in_kernel`: the kernel has carried this TLS."""
        self._wanted = wanted
        self._was_in_kernel = was_in_kernel
        self._closed_tries = 0
        self._relay = relay
        self._mutex = threading.Lock()  # around the relay's orders
        self._closed = False

    def dial(
        self,
        target: Target,
        dead_peer: float,
        timeout: float,
        trace: Trace = silent,
        connect_within: float = math.inf,
        raw_size: int | None = None,
        ready: socket.socket | None = None,
    ) -> Connection:
        """A connection that the kernel can take. Times in seconds. Raises `NbdattachError`.

        `ready`: a connection that was just made there, to be used; not if a relay dials (`uses_relay`).
        """
        deadline = Deadline(timeout)
        require_possible(target, self._wanted)
        if not self.uses_relay(target):
            try:
                made = client.connect(target, timeout, trace, connect_within, raw_size, kernel_tls=True, ready=ready)
            except NotInKernel as error:
                if self._wanted == "kernel" or self._may_pass(error):
                    raise
                timeout = max(_LEAST, deadline.remaining())
                trace(f"{error}; so a relay encrypts")
            else:
                self._was_in_kernel, self._closed_tries = made.tls is not None, 0
                watch_peer(made.stream.sock, dead_peer)
                return made
        with self._at_relay():
            made = self._dialled(Dial(target, timeout, dead_peer, connect_within, raw_size), trace)
            self._wanted = "relay"  # from now on; a server that only went away meanwhile would not have answered
            return made

    def uses_relay(self, target: Target) -> bool:
        """Whether a relay dials, as far as is known before."""
        return target.tls and (self._wanted == "relay" or bool(target.socket))

    def get_ready(self, target: Target) -> None:
        """Prepares to dial while the disk that this machine runs from is away. A relay is always ready for that."""
        if target.tls and self._wanted != "relay":
            from nbdattach.connection import tls

            tls.warm_up(target)
            procfs.stay_in_memory()

    def _may_pass(self, error: NotInKernel) -> bool:
        """Whether the error may pass: a server that shuts down or starts up may soon do TLS with the kernel again.

        A relay would carry the rest of the attachment; and if the disk that this machine runs from is away with the
        server, none can be started.
        """
        self._closed_tries += 1
        return self._was_in_kernel and isinstance(error, MaybeNotInKernel) and self._closed_tries < _CLOSED

    def bury(self, deadline: Deadline) -> None:
        """Returns when ended connections can no longer write to the server. A relay that is stuck is killed."""
        with self._at_relay():
            if self._relay:
                self._relay.bury(max(0.1, deadline.remaining()))

    def close(self) -> None:
        """The relay lives on for as long as its connections do. May be called while another thread dials."""
        self._closed = True
        if self._mutex.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._mutex.release()

    @contextlib.contextmanager
    def _at_relay(self) -> Iterator[None]:
        with self._mutex:
            try:
                yield
            finally:
                if self._closed:
                    self._drop()

    def _dialled(self, order: Dial, trace: Trace) -> Connection:
        if self._relay and not self._relay.alive:
            self._drop()
        if not self._relay:
            self._relay = Relay.start(order.target)
        made = self._relay.dial(order, trace)
        trace(f"a relay, process {self._relay.pid}, encrypts")
        return made

    def _drop(self) -> None:
        if self._relay:
            self._relay.close()
            self._relay = None


class _Relayed(Stream):
    """Our end of a relay, with the TLS version and cipher that the relay reported."""

    def __init__(
        self, sock: socket.socket, target: Target, deadline: Deadline, trace: Trace, told: tuple[str, str] | None
    ) -> None:
        super().__init__(sock, target, deadline, trace)
        self._told = told

    @property
    def tls(self) -> tuple[str, str] | None:
        return self._told


class Relay:
    """The relay process, known by the socket that it takes orders from. `pid` is 0 until it has dialled once."""

    def __init__(self, orders: socket.socket, pid: int = 0) -> None:
        self._orders = orders
        self.pid = pid

    @classmethod
    def of(cls, number: int, pid: int) -> Relay:
        """One that another process of ours has started. Takes the descriptor over."""
        return cls(socket.socket(fileno=number), pid)

    @classmethod
    def start(cls, target: Target) -> Relay:
        """Raises `KernelRefused`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            number = theirs.fileno()
            command = bare_python("relay.process", "main", str(number))
            done = programs.run(*command, seconds=START_SECONDS, env=environment(), cwd="/", descriptors=[number])
        except OSError as error:
            ours.close()
            raise KernelRefused(target.uri, f"cannot start the relay: {error}", "--tls-transport kernel") from error
        finally:
            theirs.close()
        if done.returncode:
            ours.close()
            last = done.stderr.strip().rpartition("\n")[2]  # if the interpreter itself has failed
            raise KernelRefused(target.uri, f"the relay died: {plain(last)}", "--tls-transport kernel")
        return cls(ours)

    @property
    def alive(self) -> bool:
        """Whether the relay still takes orders."""
        poll = select.poll()
        poll.register(self._orders.fileno(), 0)
        return not poll.poll(0)

    def fileno(self) -> int:
        return self._orders.fileno()

    def dial(self, order: Dial, trace: Trace) -> Connection:
        """Raises `NbdattachError`: the error that the relay got from the server, or that the relay died."""
        target, timeout = order.target, order.timeout
        kernels, relays = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                made = self._asked(Dialled, order, timeout + _GRACE, [relays.fileno()], trace)
            finally:
                relays.close()
            if not self.pid:
                systemd.give_scope(made.pid, "nbdattach-relay")
            self.pid = made.pid
            return Connection(_Relayed(kernels, target, Deadline(timeout), trace, made.tls), made.export, self)
        except TimeoutError:
            kernels.close()
            self._kill()
            raise DeadlinePassed(target.uri, timeout, "waiting for the relay") from None
        except OSError as error:
            kernels.close()
            words = f"the relay died ({error.strerror or error})"
            raise KernelRefused(target.uri, words, "was it killed? see dmesg") from error
        except BaseException:
            kernels.close()
            raise

    def bury(self, seconds: float) -> None:
        with contextlib.suppress(OSError, NbdattachError):
            try:
                self._asked(Said, Bury(), seconds)
            except TimeoutError:
                self._kill()  # which resets its connections

    def _asked(
        self,
        kind: type[_T],
        order: Dial | Bury,
        patience: float,
        descriptors: Sequence[int] = (),
        trace: Trace = silent,
    ) -> _T:
        """Sends an order and returns the answer. Raises OSError, and `NbdattachError`: the relay's."""
        deadline = Deadline(patience)
        self._orders.settimeout(patience)
        messages.send(self._orders, order, descriptors)
        while True:
            self._orders.settimeout(max(0.001, deadline.remaining()))
            message, _ = messages.receive(self._orders)
            if not message:
                raise ConnectionResetError("no answer")
            try:
                content = parsed(message)
                if not isinstance(content, dict) or "trace" not in content:
                    return messages.answer(kind, content)
                trace(messages.answer(Traced, content).trace)
            except ValueError as error:
                raise NbdattachError("relay", f"its answer cannot be read ({error})", SAME_VERSION) from None

    def _kill(self) -> None:
        """The relay no longer answers; a late answer must not reach us."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._orders.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._orders.close()
