# SPDX-License-Identifier: GPL-2.0-or-later
"""The handle of one attachment: what `attach` returns, and all that can be done with it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbdattach.attached.state import identity_of
from nbdattach.device import Device, parse_device
from nbdattach.errors import NotAttached
from nbdattach.host import upgrade
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.target import parse_target
from nbdattach.reporter import QUIET, Reporter

if TYPE_CHECKING:
    from nbdattach.attached.status import Status

# How long a detach waits for the kernel, if the user does not say.
DETACH_SECONDS = 60.0


class Attachment:
    """An attached device. As a context manager it detaches at the end.

    `device` is its path, `pid` the process that attached it as the kernel reports it, `notes` messages of the connect
    for the user; `fresh` is False if it was attached before.
    """

    def __init__(self, device: str, pid: int | None, notes: Sequence[str] = (), fresh: bool = True) -> None:
        self.device = device
        self.pid = pid
        self._identity = identity_of(self._device)
        self.notes = tuple(notes)
        self.fresh = fresh

    @classmethod
    def at(cls, device: str) -> Attachment:
        """The attachment that is there now, made by nbdattach or another program. Raises `NotAttached`.

        print(nbdattach.Attachment.at("nbd0").status().target)
        """
        found = parse_device(device)
        pid = Kernel(found).pid
        if pid is None:
            raise NotAttached(found.path)
        return cls(found.path, pid, fresh=False)

    def status(self) -> Status:
        """Its present state from the kernel and our records: the fields of `status --json`. Raises `NotAttached`."""
        from nbdattach.attached.status import status_of

        return status_of(self._device)

    def disconnect(
        self,
        timeout: float = DETACH_SECONDS,
        *,
        force: bool = False,
        if_tag: str | None = None,
        release: bool = False,
        reporter: Reporter = QUIET,
    ) -> str:
        """Detaches once it is safe. Raises `DeviceInUse`, `KernelRefused`; the device then stays attached.

        `timeout` is how long the kernel may take to release it. With `force` it is detached even while it is in use,
        and data that cannot be flushed is lost: `reporter` gets a message for each. With `release` we first release its
        users, from the top: unmount, swapoff, and so on, but never end a process. If this attachment has ended, we
        leave a later one at the device alone. Returns the reason if there was nothing to do, otherwise an empty text.

            try:
                attachment.disconnect()
            except nbdattach.DeviceInUse as error:
                print(error, *error.users, sep="\n")
        """
        from nbdattach.operations import detachment

        return detachment.detach(
            self._device,
            timeout,
            force=force,
            only=self._identity,
            only_tag=if_tag,
            release=release,
            reporter=reporter,
        )

    def reconnect(
        self, target: str | None = None, export: str | None = None, *, trust: bool = False, shared: bool = False
    ) -> str:
        """Hands the device over to a new connection, or to another server of the same data. Netlink only.

        Returns the URI that it is connected to then. Requests in flight are sent again; none fails. A disk whose
        content is not that of the attached one is refused, unless you `trust` it; so is one that another device has
        attached read-write, unless it is `shared`.

            attachment.reconnect("nbd://db2/disk")
        """
        from nbdattach.operations import handover

        named = parse_target(target, export) if target is not None else None
        return handover.reconnect(self._device, named, trust, shared)

    def resize(self) -> str:
        """Gives the device the size that the export now has; returns the outcome as text. Netlink only.

        attachment.resize()
        """
        from nbdattach.operations import handover

        return handover.resize(self._device)

    @property
    def _device(self) -> Device:
        return parse_device(self.device)

    def __enter__(self) -> Attachment:
        try:
            upgrade.load_all()
        except BaseException:  # Ctrl-C: Python does not call `__exit__` then
            self.disconnect()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
