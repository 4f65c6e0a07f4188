# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of commands that change an attached device: a planned hand-over to new connections, and a new size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nbdattach.attached.users import kept_open_by, users_of
from nbdattach.attached.uses import opened, refusal
from nbdattach.backends import queue_choice
from nbdattach.connection.client import Connection
from nbdattach.connection.stream import address_of
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError, Refused, TlsFailed
from nbdattach.kernel import unhurried
from nbdattach.kernel.node import Busy, Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor.access import Access
from nbdattach.monitor.connecting import Connecting
from nbdattach.monitor.events import RECONNECTED, RESIZED, TROUBLE, Log
from nbdattach.monitor.links import NOTICED, Gone
from nbdattach.monitor.mending import Mending
from nbdattach.monitor.places import in_use
from nbdattach.protocol.target import Target, target_of

# How long a planned hand-over waits for a moment without requests in flight, so that none has to be sent again.
_QUIET = 1.0
# How long a change of the size waits for such a moment. The kernel itself would wait without limit, and accept no other
# message meanwhile.
_QUIET_FOR_SIZE = 10.0


class Orders:
    """For the thread that mends. Methods return a sentence for the user."""

    def __init__(self, connecting: Connecting, mending: Mending, access: Access, log: Log) -> None:
        self._device = connecting.device
        self._recorded = connecting.recorded
        self._links = connecting.links
        self._connecting = connecting
        self._mending = mending
        self._access = access
        self._log = log
        self._kernel = Kernel(self._device)

    def reconnect(
        self, target: Target | None, any_content: bool = False, is_wanted: Callable[[], bool] = lambda: True
    ) -> str:
        """Hands the device over to new connections, of `target` if it is named. Raises `NbdattachError`, OSError.

        With `any_content` the user says that it is the right disk. It does not move if it `is_wanted` no more: the
        command that asked kept all others away from that export (`operations.handover`), and has ended.
        """
        self._require_replaceable()
        target = self._trusted(target) if target else None
        wanted = target or self._recorded.target
        if self._recorded.record.tls and not wanted.tls:
            cause = "not encrypted, but the device was attached over TLS"
            raise TlsFailed(wanted.uri, cause, "use nbds://, or disconnect it and connect it again without TLS")
        if not (any_content or self._is_lost()):
            self._connecting.remembering.look_now()
        fresh = self._connecting.dial_all(target, self._recorded.record.size, any_content)
        if target:
            if not is_wanted():
                self._connecting.say_goodbye(*fresh)
                raise KernelRefused(self._device.path, "the command that moves it has ended", "it is where it was")
            self._begin(fresh, moving_to=target.uri, moving_trust=target.trust)
        if any_content:
            self._connecting.remembering.forget()
        try:
            self._replace_all(fresh)
        finally:
            if any_content:
                self._connecting.remembering.forget()  # a look at the disk before
        self._recorded.end_move()
        self._log(f"{self._device.name}: reconnected to {wanted.uri}", RECONNECTED)
        return wanted.uri

    def _trusted(self, target: Target) -> Target:
        """One of the attachment's own servers has its options of TLS, unless the user gave others."""
        record = self._recorded.record
        own = target.uri in (record.target, *record.also) and target == target_of(target.uri, None)
        return target_of(target.uri, record.trust) if own else target

    def resize(self) -> str:
        """Asks the server for the size of the export and applies it. Raises `NbdattachError`, OSError."""
        self._require_replaceable()
        if not unhurried.counts_requests(self._device, otherwise=False):
            raise _uncounted(self._device)
        record = self._recorded.record
        probe = self._connecting.dial(None, any_size=True)
        size, block = probe.export.size, record.block_size
        self._connecting.say_goodbye(probe)
        before, wanted = self._kernel.size, size // block * block
        if not wanted:
            raise Refused(record.target, f"the export has {size} bytes, less than a block", "is its image empty?")
        if (size, before) == (record.size, wanted):
            return f"{size} bytes, as before"
        with self._nobody_uses_it() if wanted < before else contextlib.nullcontext():
            fresh = self._connecting.dial_all(None, size)
            if not self._is_lost() and not self._links.await_quiet(_QUIET_FOR_SIZE):
                self._connecting.say_goodbye(*fresh)
                raise _busy(self._device, "the size has not changed")
            self._begin(fresh, new_size=size)
            self._replace_all(fresh)
            self._set_size(wanted)
            self._read_ahead_again()
        self._recorded.note(size=size, new_size=None)
        self._log(f"{self._device.name}: {size} bytes now, {before} before", RESIZED)
        return f"{size} bytes now, {before} before"

    def _is_lost(self) -> bool:
        """Whether a connection is dead: then requests may be waiting for the very server that has the new size."""
        with self._access.kernel_calls():
            return self._links.has_dead()

    def _set_size(self, wanted: int) -> None:
        patience = Deadline(_QUIET_FOR_SIZE)
        while True:
            quiet = self._links.await_quiet(patience.remaining())
            with self._access.kernel_calls():
                if quiet and not self._kernel.pending:
                    self._links.set_size(wanted)
                    return
            if patience.passed:
                raise _busy(self._device, "it has new connections, and its old size")

    def _read_ahead_again(self) -> None:
        """A change of the size may have raised it."""
        wanted = self._recorded.record.read_ahead
        if wanted is None:
            return
        try:
            if not queue_choice.set_read_ahead_again(self._device, wanted):
                self._log(
                    f"{self._device.name}: setting --read-ahead again takes long, because the server is slow", TROUBLE
                )
        except OSError as error:
            self._log(f"{self._device.name}: --read-ahead could not be set again: {error}", TROUBLE)

    def _nobody_uses_it(self) -> contextlib.AbstractContextManager[object]:
        """Claims the device, so that no program uses the part that goes. Raises `DeviceInUse`."""
        users = users_of(self._device)
        if not users:
            with contextlib.suppress(Busy), contextlib.ExitStack() as claimed:
                node = claimed.enter_context(Node.claim(self._device))
                users = opened(kept_open_by(self._device, node.fd, say=lambda line: self._log(line, TROUBLE)))
                if not users:
                    return claimed.pop_all()
        raise refusal(
            self._device,
            f"the export is smaller now, and the device is {users or 'open exclusively'}",
            "release the device first, then resize",
            users.uses,
        )

    def _require_replaceable(self) -> None:
        """Only a process that holds the socket of a living connection can end it. Raises `KernelRefused`."""
        if self._links.complete:
            return
        with self._access.kernel_calls():
            if self._recorded.record.connections == 1 and self._links.has_dead():
                return
        raise KernelRefused(
            self._device.path,
            "the monitor was restarted after the connection was made, so it cannot end that connection",
            "when the server ends it, the monitor makes a new one",
        )

    def _begin(self, fresh: list[Connection], **changes: object) -> None:
        """Records the change that is about to begin and the new server's address; if that fails, nothing changes."""
        record, address = self._recorded.record, address_of(fresh[0].stream.sock)
        uri = changes.get("moving_to")
        try:
            if uri and (uri != record.uri or (address and address != record.address)):
                with self._access.kernel_calls():  # no look is remembered meanwhile
                    self._connecting.remembering.move()
                if uri == record.uri:
                    before = in_use(record).name
                    others = [one for one in record.left if one not in (before, f"{uri} {address}")]
                    changes["left"] = (*others, before)
            self._recorded.begin(address=address, **changes)
        except (OSError, Gone):
            self._connecting.say_goodbye(*fresh)
            raise

    def _replace_all(self, fresh: list[Connection]) -> None:
        """Replaces every connection by a new one; the driver sends requests in flight again over those."""
        with self._access.kernel_calls():
            if not self._links.has_dead():  # if one is dead, requests wait for this very replacement
                self._links.await_quiet(_QUIET)
            self._links.cut()
            noticed = Deadline(NOTICED)  # for all together, because a command that wants to hold the device waits
            taken = [self._connecting.hand_over(connection, noticed) for connection in fresh]
            self._mending.settle_anew()
        if not all(taken):
            cause = "the driver did not accept the new connection"
            raise KernelRefused(self._device.path, cause, "the monitor keeps trying: see nbdattach status")


def _busy(device: Device, so: str) -> NbdattachError:
    cause = f"it has had requests in flight for {_QUIET_FOR_SIZE:g} s, and the kernel would wait for them; {so}"
    return KernelRefused(device.path, cause, f"try again when it is less busy: nbdattach resize {device.path}")


def _uncounted(device: Device) -> NbdattachError:
    cause = (
        "the kernel does not count its requests, so nbdattach cannot see if any are in flight; the size has not changed"
    )
    return KernelRefused(device.path, cause, f"echo 1 >/sys/block/{device.name}/queue/iostats")
