# SPDX-License-Identifier: GPL-2.0-or-later
"""How commands speak with the monitor: one request and one reply over /run/nbdattach/monitor, as JSON.

A request names an action and the device. "watch" also passes the descriptors of the kernel's connections and, if a
relay carries them, last the descriptor for orders to the relay. A reply has "said", or the facts of an error.
"hold" lasts as long as the connection: the monitor does not touch the device until the command that asked has ended
or died.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nbdattach import untrusted_json
from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.error_facts import SAME_VERSION
from nbdattach.errors import NbdattachError
from nbdattach.host import messages, procfs
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target, Trust, target_of

if TYPE_CHECKING:
    from nbdattach.relay.dialer import Relay

PLACE = f"{state.RUN}/monitor"
_MAX_SOCKETS = 64
# A healthy monitor answers at once. Only requests that wait for a server may take longer: those have no limit.
_PATIENCE = 30.0
# While a command holds a device, the monitor checks this often, in seconds, whether the command is stopped (SIGSTOP).
# After so many checks in a row it waits no longer, because only the monitor reconnects the device.
_LOOK_SECONDS = 1.0
_STOPPED_LOOKS = 5
_UCRED = struct.Struct("iII")  # pid, uid, gid


class NoMonitor(NbdattachError):
    """No monitor runs on this host; or if it is `silent`, it runs and does not answer."""

    silent: bool = False

    def __init__(self, cause: str, silent: bool = False) -> None:
        super().__init__("monitor", cause, "nbdattach monitor starts it and shows any error")
        self.silent = silent


@immutable
class Request:
    """A command's request.

    For "reconnect", `target` and `trust` are those of a `Target`, the first as a URI; with `any_content` the disk there
    need not have the content that is remembered. For "watch", `relay` is the pid of a relay.
    """

    do: str  # "watch" | "hold" | "cut" | "reconnect" | "resize" | "ping" | "package"
    device: str = ""
    target: str | None = None
    relay: int = 0
    trust: Trust | None = None
    any_content: bool = False

    @property
    def named_target(self) -> Target | None:
        """The target to connect to; None for the same as before. Raises `Malformed`."""
        return target_of(self.target, self.trust) if self.target else None


@immutable
class _Reply:
    said: str | None = None


# -- the command's side --------------------------------------------------------------------------------------------


def answers() -> bool:
    """Whether a monitor runs."""
    try:
        return ask(Request("ping"), _PATIENCE) != ""
    except NbdattachError:
        return False


def listener() -> int | None:
    """The pid, from the kernel, of the process that should answer; None if no monitor runs."""
    try:
        with _connected(_PATIENCE) as connection:
            return _peer(connection)
    except NbdattachError:
        return None


def _peer(connection: socket.socket) -> int:
    """The process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[0])


def watch(device: Device, sockets: Sequence[socket.socket], relay: Relay | None = None) -> None:
    """Asks the monitor to watch the device, which has these connections. Raises `NoMonitor` and others."""
    numbers = [sock.fileno() for sock in sockets]
    if relay:
        ask(Request("watch", device.name, relay=relay.pid), _PATIENCE, [*numbers, relay.fileno()])
    else:
        ask(Request("watch", device.name), _PATIENCE, numbers)


def cut(device: Device) -> None:
    """Asks the monitor to shut down the device's connections, if it has them. Raises `NbdattachError`."""
    ask(Request("cut", device.name), _PATIENCE)


@contextlib.contextmanager
def hands_off(device: Device, insist: bool = True) -> Iterator[None]:
    """If a monitor runs, it does not touch the device inside this context.

    Raises `NbdattachError` if it runs and does not answer; without `insist` we go on without its answer.
    """
    with contextlib.ExitStack() as held:
        try:
            connection = held.enter_context(_connected(_PATIENCE))
            _send(connection, Request("hold", device.name))
            _reply(connection)
        except NoMonitor as error:
            if error.silent and insist:
                raise NbdattachError(
                    device.path, "the monitor runs but does not answer", "nbdattach doctor shows how to restart it"
                ) from error
        except NbdattachError:
            pass  # it does not watch this one
        yield


def ask(request: Request, patience: float | None = None, descriptors: Sequence[int] = ()) -> str:
    """Returns the monitor's reply. `patience` in seconds. Raises `NbdattachError`: the monitor's, or `NoMonitor`."""
    with _connected(patience) as connection:
        _send(connection, request, descriptors)
        return _reply(connection)


def _connected(patience: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(patience)
        connection.connect(PLACE)
    except OSError as error:
        connection.close()
        raise NoMonitor(f"not running ({error.strerror or error})") from None
    return connection


def _send(connection: socket.socket, request: Request, descriptors: Sequence[int] = ()) -> None:
    try:
        messages.send(connection, request, descriptors, without=() if request.any_content else ("any_content",))
    except OSError as error:
        raise NoMonitor(f"went away ({error.strerror or error})") from None


def _reply(connection: socket.socket) -> str:
    try:
        message, _ = messages.receive(connection)
    except OSError as error:
        raise NoMonitor(f"does not answer ({error})", silent=isinstance(error, TimeoutError)) from None
    if not message:
        raise NoMonitor("went away")
    try:
        reply = messages.answer(_Reply, untrusted_json.parsed(message))
    except ValueError as error:
        raise NoMonitor(f"its reply cannot be read ({error})") from None
    if reply.said is None:
        raise NbdattachError("monitor", "its reply has no result", SAME_VERSION)
    return reply.said


# -- the monitor's side --------------------------------------------------------------------------------------------


class Caller:
    """A command at the other end, which waits for its reply."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self) -> tuple[Request | None, list[int]]:
        """The request and the sockets that came with it, which we now own. None and no sockets if it is malformed."""
        message, descriptors = messages.receive(self._connection, _MAX_SOCKETS)
        with contextlib.suppress(ValueError):
            request = untrusted_json.made_of(Request, untrusted_json.parsed(message), strict=True)
            if all(stat.S_ISSOCK(os.fstat(number).st_mode) for number in descriptors):
                return request, descriptors
        for number in descriptors:
            os.close(number)
        return None, []

    def reply(self, outcome: str | NbdattachError) -> None:
        with contextlib.suppress(OSError):  # it has not waited
            messages.send(self._connection, _Reply(outcome) if isinstance(outcome, str) else outcome)

    @property
    def pid(self) -> int:
        """Of the command; 0 if it is in another pid namespace, so that we cannot see it."""
        return _peer(self._connection)

    @property
    def is_there(self) -> bool:
        """Whether the command still waits for its reply."""
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return not poll.poll(0)

    def wait_until_gone(self) -> bool:
        """Waits until the command closes its end or dies. False if it has been stopped for long and may never end."""
        stopped = 0
        self._connection.settimeout(_LOOK_SECONDS)
        while stopped < _STOPPED_LOOKS:
            try:
                if not self._connection.recv(1):
                    return True
            except TimeoutError:
                stopped = stopped + 1 if procfs.stopped(self.pid) else 0
            except OSError:
                return True
        return False

    def close(self) -> None:
        self._connection.close()


class Door:
    """The socket on which the monitor accepts commands. Only root can reach it through /run/nbdattach."""

    def __init__(self) -> None:
        state.make_run()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PLACE)  # of a monitor that was killed; we hold the lock
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.bind(PLACE)
        os.chmod(PLACE, 0o600)
        self._socket.listen(64)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Caller:
        connection, _ = self._socket.accept()
        connection.settimeout(_PATIENCE)
        return Caller(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(PLACE)
        self._socket.close()
