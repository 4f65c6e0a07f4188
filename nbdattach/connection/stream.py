# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door to sockets and TLS: dials a server and drives protocol steps over the connection.

Foreign exceptions (OSError, ssl.SSLError, timeouts) become ours here and nowhere else.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from nbdattach.deadline import Deadline
from nbdattach.errors import BrokenProtocol, ConnectionLost, DeadlinePassed, NbdattachError, NoConnection, TlsFailed
from nbdattach.protocol.steps import Note, Receive, Send, StartTls, Step, Steps, T
from nbdattach.protocol.target import Target
from nbdattach.reporter import Trace
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.connection.certificate import Certificate
    from nbdattach.connection.tls import Handshake

_Address: TypeAlias = tuple[int, Any]

# Addresses from earlier lookups, and lookups under way, by host and port.
_mutex = threading.Lock()
_known: dict[tuple[str, int], list[_Address]] = {}
_asked: dict[tuple[str, int], _Question] = {}
# Seconds to wait for a lookup if an earlier answer is known; less than the monitor's shortest try.
_LOOKUP_PATIENCE = 1.0
# Seconds by which a step may end after the deadline, so that not each one sets its timeout.
_LATE_BY = 0.05


class Stream:
    """One connection to a server, with the deadline of its whole handshake."""

    def __init__(
        self, sock: socket.socket, target: Target, deadline: Deadline, trace: Trace, kernel_tls: bool = False
    ) -> None:
        self.sock = sock
        self._kernel_tls = kernel_tls
        self._tls: Handshake | None = None
        self._heard = self._heard_in_tls = False
        self._target = target
        self._deadline = deadline
        self._trace = trace
        self._doing = "connecting"

    @property
    def uri(self) -> str:
        return self._target.uri

    def run(self, steps: Steps[T]) -> T:
        """Runs the generator's steps in order and returns its result. A `NbdattachError` is thrown into it."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._do(step)
                except NbdattachError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _do(self, step: Step) -> bytes:
        if isinstance(step, Receive):
            return self._receive(step.size)
        if isinstance(step, Send):
            self._send(step.data)
        elif isinstance(step, StartTls):
            self._start_tls(step.hostname)
        elif isinstance(step, Note):
            self._doing = step.text
            self._trace(step.text)
        return b""

    def _receive(self, size: int) -> bytes:
        """Exactly `size` bytes, never one more: the bytes after them may be for the kernel."""
        data = bytearray()
        with self._foreign_errors():
            while len(data) < size:
                self._arm()
                more = self.sock.recv(size - len(data))
                self._acknowledge()
                if not more:
                    raise self._lost("")
                data += more
                self._heard = True
        self._heard_in_tls = self._tls is not None
        return bytes(data)

    def _acknowledge(self) -> None:
        """Makes TCP acknowledge at once: nbd-server delays its next small packet until then, 40 ms for each export."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _send(self, data: bytes) -> None:
        with self._foreign_errors():
            self._arm()
            try:
                self.sock.sendall(data)
            except TimeoutError:
                raise
            except OSError:
                if self._tls:
                    self.sock.recv(1)  # raises the server's TLS alert, if it sent one before it left
                raise

    def _arm(self) -> None:
        remaining = self._deadline.remaining()
        if not remaining:
            raise self._late()
        armed = self.sock.gettimeout()
        if armed is None or not 0 <= armed - remaining < _LATE_BY:
            self.sock.settimeout(remaining)

    def _late(self) -> DeadlinePassed:
        return DeadlinePassed(self._target.uri, self._deadline.seconds, self._doing, silent=not self._heard)

    @contextlib.contextmanager
    def _foreign_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._foreign(error) from error

    def _foreign(self, error: OSError) -> NbdattachError:
        words = error.strerror or str(error)
        if self._tls:
            from nbdattach.connection import openssl_errors  # which TLS has imported by now

            if openssl_errors.is_of_tls(error):
                return self._tls.failures.of(error)
            if openssl_errors.has_ended(error):  # OpenSSL's text for that varies
                words = ""
        return self._lost(f": {words}" if words else "")

    def _lost(self, why: str) -> NbdattachError:
        """A server that asked for our certificate, then closes before any NBD data in TLS, has rejected it."""
        if self._tls and self._tls.failures.may_dislike_us and not self._heard_in_tls:
            return self._tls.failures.closed()
        return ConnectionLost(self._target.uri, self._doing + why)

    def _start_tls(self, hostname: str) -> None:
        """Switches to TLS with a verified server; the plain socket is detached and cannot be used again."""
        from nbdattach.connection import tls  # ssl costs 10 ms, and most connections do without

        try:
            self._arm()
            self._tls = tls.Handshake(self._target, self._kernel_tls, self._deadline.remaining())
            self._require_nothing_unread()
            self._arm()
            self.sock = self._tls.over(self.sock, hostname)
        except TimeoutError:
            raise self._late() from None
        self._trace(" ".join(self.tls or ()) + (", in the kernel" if self._kernel_tls else ""))

    def _require_nothing_unread(self) -> None:
        """Raises if data arrived between the server's NBD_REP_ACK and our ClientHello.

        Such data is plaintext, injected to be mistaken for TLS data.
        """
        self.sock.setblocking(False)
        try:
            early = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(self._target.uri, f"{self._doing}: {error.strerror or error}") from error
        if not early:
            raise ConnectionLost(self._target.uri, self._doing)
        raise TlsFailed(
            self._target.uri,
            "unencrypted data arrived after the server agreed to start TLS",
            "possible man in the middle: check the network path",
        )

    def require_nothing_left(self) -> None:
        """Raises if OpenSSL holds data that we did not ask for: the kernel would miss it and misread the rest."""
        if self._kernel_tls and self.tls and self.sock.pending():  # type: ignore[attr-defined]
            raise BrokenProtocol(self._target.uri, "the server sent more data than requested")

    @property
    def certificate(self) -> Certificate | None:
        """The server's certificate, None if it sent none."""
        if not self._tls:
            return None
        from nbdattach.connection import certificate

        return certificate.of(self.sock)  # type: ignore[arg-type]

    @property
    def tls(self) -> tuple[str, str] | None:
        """Version and cipher, None on a connection in the clear."""
        version = getattr(self.sock, "version", None)
        if version is None:
            return None
        cipher = self.sock.cipher()  # type: ignore[attr-defined]
        return version() or "", cipher[0] if cipher else ""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dial(
    target: Target,
    deadline: Deadline,
    trace: Trace,
    connect_within: float = math.inf,
    kernel_tls: bool = False,
    ready: socket.socket | None = None,
) -> Stream:
    """A connection to the target's server. Raises `NoConnection`, `DeadlinePassed`.

    `connect_within`: seconds that TCP has for each address, within the deadline. `kernel_tls`: if TLS is used, the
    kernel takes it over. `ready`: a connection that was just made there, to be used.
    """
    if ready:
        sock = ready
    elif target.socket:
        trace(f"connecting to {plain(target.socket)}")
        sock = _connect(target, (socket.AF_UNIX, target.socket), deadline.remaining(), deadline.seconds)
    else:
        sock = _connect_to_any(target, _resolve(target, deadline), deadline, connect_within, trace)
    if not target.socket:
        # The kernel sends each request header by itself; waiting to fill a segment costs a round trip.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Stream(sock, target, deadline, trace, kernel_tls)


def _connect_to_any(
    target: Target, addresses: list[_Address], deadline: Deadline, connect_within: float, trace: Trace
) -> socket.socket:
    """The first address that answers. Each gets its share of the time, so that a dead first one does not use it up."""
    failures: list[NbdattachError] = []
    for tried, address in enumerate(addresses):
        trace(f"connecting to {address[1][0]} port {address[1][1]}")
        try:
            share = deadline.remaining() / (len(addresses) - tried)
            limit = connect_within if connect_within < share else deadline.seconds  # the one that the user set
            return _connect(target, address, min(share, connect_within), limit)
        except NoConnection as failure:
            failures.append(failure)
    raise failures[0]


def _connect(target: Target, address: _Address, seconds: float, limit: float) -> socket.socket:
    """Connects within `seconds`; an error names the `limit` that they were computed from."""
    family, place = address
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(max(seconds, 0.001))
        sock.connect(place)
        ourselves = is_to_itself(sock)
    except OSError as error:
        if sock:
            sock.close()
        if isinstance(error, TimeoutError):
            raise DeadlinePassed(target.uri, limit, "connecting") from None
        raise NoConnection(target.uri, f"cannot connect: {error.strerror or error}", _connect_hint(target)) from error
    if ourselves:
        reset(sock)
        cause = "cannot connect: no server listens, and the kernel connected our socket to itself"
        hint = f"start the server; sysctl net.ipv4.ip_local_reserved_ports={target.port} keeps its port free for it"
        raise NoConnection(target.uri, cause, hint)
    return sock


def is_to_itself(sock: socket.socket) -> bool:
    try:
        return sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername()
    except OSError:  # the server has reset it by now, which the first read says better
        return False


def reset(sock: socket.socket) -> None:
    """Closes the socket without TIME_WAIT, so that the server gets its port at once.

    The kernel takes the port of an outgoing connection from a range. If it picks the very port of this host that we
    connect to, the socket connects to itself: that succeeds, and then the server cannot bind its port.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _connect_hint(target: Target) -> str:
    if target.socket:
        return f"is the server running, and do you have permission to open {plain(target.socket)}?"
    return f"is the server running, and does it listen on port {target.port}?"


def _resolve(target: Target, deadline: Deadline) -> list[_Address]:
    """Addresses of the target's host. A name server that is silent must not outlast the deadline.

    If a lookup fails or hangs, addresses from an earlier one are used: the files that a lookup needs may be on the very
    device that is to be connected again.
    """
    with contextlib.suppress(NoConnection):
        return _lookup(target, socket.AI_NUMERICHOST)
    place = (target.host, target.port)
    with _mutex:
        known, asked = _known.get(place), _asked.get(place)
        patience = deadline.remaining()
        if known:  # do not wait again for a lookup that hangs already
            patience = 0.0 if asked else min(patience, _LOOKUP_PATIENCE)
        if asked is None:
            asked = _asked[place] = _Question(target)
    outcome = asked.outcome(patience)
    if isinstance(outcome, list):
        return outcome
    if known:
        return known
    if outcome:  # the error names the target that asked first
        raise NoConnection(target.uri, outcome.cause, outcome.hint)
    raise DeadlinePassed(target.uri, deadline.seconds, f"looking up {target.host}")


class _Question:
    """One lookup, in a thread; while it hangs, other callers wait for it instead of starting the same again."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._answers: list[list[_Address] | NoConnection] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        place = (self._target.host, self._target.port)
        try:
            found = _lookup(self._target, 0)
            with _mutex:
                _known[place] = found
            self._answers.append(found)
        except NoConnection as error:
            self._answers.append(error)
        finally:
            with _mutex:
                _asked.pop(place, None)

    def outcome(self, seconds: float) -> list[_Address] | NoConnection | None:
        """None if there is no outcome in that time."""
        self._thread.join(seconds)
        return self._answers[0] if self._answers else None


def remember(target: Target, address: str) -> None:
    """Keeps a numeric address at which the target was reached, for when its name cannot be looked up."""
    found = numeric(target, address)
    if found:
        with _mutex:
            _known.setdefault((target.host, target.port), [found])


def addresses_of(target: Target, deadline: Deadline) -> list[str]:
    """All numeric addresses of the target's host; none if it cannot be looked up."""
    with contextlib.suppress(NbdattachError):
        found = [_numeric(place) for _, place in _resolve(target, deadline)]
        return list(dict.fromkeys(found))
    return []


def _numeric(place: Any) -> str:
    return socket.getnameinfo(place, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def address_of(sock: socket.socket) -> str | None:
    """The peer's numeric address; None if it has none or is gone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return _numeric(sock.getpeername())
    except OSError:
        return None


def is_here(address: str) -> bool:
    """Whether it is a numeric address of this host: nothing is sent, but the kernel tells from where it would be."""
    try:
        found = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        family, _, _, _, place = found[0]
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(place)
            return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except (OSError, UnicodeError):
        return False


def numeric(target: Target, address: str) -> _Address | None:
    """The target's port at a numeric address; None if that is none."""
    try:
        return _lookup(replace(target, host=address), socket.AI_NUMERICHOST)[0]
    except NoConnection:
        return None


def _lookup(target: Target, flags: int) -> list[_Address]:
    # As bytes, which need no codec for international names: it costs as much as the rest of a look-up.
    host = target.host.encode() if target.host.isascii() else target.host
    try:
        found = socket.getaddrinfo(host, target.port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or str(error)
        hint = "is the name correct?"
        if target.host.startswith("nbd") and target.host[3:].isdigit():
            hint = f"a TARGET is a server; nbdattach status {target.host} shows the device"
        raise NoConnection(target.uri, f"cannot find the host {target.host}: {words}", hint) from error
    return [(family, place) for family, _, _, _, place in found]


def warm_up() -> None:
    """Does one lookup, which loads the libraries for it: later the process may not be able to read its disk."""
    with contextlib.suppress(OSError):
        socket.getaddrinfo(b"localhost", 0, type=socket.SOCK_STREAM)


def prepare(target: Target, deadline: Deadline) -> None:
    """Loads all files that connecting to this target needs. Raises `NbdattachError` if its host cannot be found."""
    if target.tls:
        from nbdattach.connection import tls

        tls.warm_up(target)
    if target.host:
        _resolve(target, deadline)
