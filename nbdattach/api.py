# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python API. The command line is a thin layer on it.

    import nbdattach

    with nbdattach.connect("nbd://db1/disk", "/dev/nbd0") as attachment:
        print(attachment.device, attachment.status().size)

Devices are named as on the command line: "/dev/nbd0" or "nbd0". Sizes in bytes, times in seconds. What goes wrong is a
subclass of `NbdattachError`, with `thing`, `cause`, `hint` and `exit_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nbdattach.attached.state import identity_of
from nbdattach.connect_options import DEFAULT_DEAD_PEER, DEFAULT_TIMEOUT, Wishes
from nbdattach.connection.client import silent
from nbdattach.device import Device, parse_device
from nbdattach.errors import NotAttached
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.target import Target, parse_target, with_tls

if TYPE_CHECKING:
    from nbdattach.attached.status import Status

DETACH_SECONDS = 60.0
Say = Callable[[str], None]


class Attachment:
    """An attached device. As a context manager it detaches at the end.

    `device` is its path, `pid` the kernel's name for whoever attached it, `notes` what the user should hear of the
    connect; `fresh` is False where it was attached before.
    """

    def __init__(self, device: str, pid: int | None, notes: Sequence[str] = (), fresh: bool = True) -> None:
        self.device = device
        self.pid = pid
        self._identity = identity_of(self._place)
        self.notes = tuple(notes)
        self.fresh = fresh

    @classmethod
    def at(cls, device: str) -> Attachment:
        """What is attached there now, by whomever. Raises `NotAttached`.

        print(nbdattach.Attachment.at("nbd0").status().target)
        """
        place = parse_device(device)
        pid = Kernel(place).pid
        if pid is None:
            raise NotAttached(place.path)
        return cls(place.path, pid, fresh=False)

    def status(self) -> Status:
        """What the kernel and our records say of it now: the fields of `status --json`. Raises `NotAttached`."""
        from nbdattach.attached.status import status_of

        return status_of(self._place)

    def disconnect(
        self,
        timeout: float = DETACH_SECONDS,
        *,
        force: bool = False,
        if_tag: str | None = None,
        say: Say = silent,
        progress: Callable[[float], None] = lambda _: None,
        trace: Say = silent,
    ) -> str:
        """Detaches once it is safe. Raises `DeviceInUse`, `KernelRefused`; it then stays.

        `timeout` is how long the kernel may take to let go. With `force` it goes under its users, and what cannot be
        flushed is lost: `say` tells each. What has come to the device after this attachment ended is left alone; then
        the reason why there was nothing to do is returned, else an empty text.

            try:
                attachment.disconnect()
            except nbdattach.DeviceInUse as error:
                print(error, *error.users, sep="\n")
        """
        from nbdattach.operations import detachment

        return detachment.detach(
            self._place,
            timeout,
            force=force,
            only=self._identity,
            only_tag=if_tag,
            say=say,
            progress=progress,
            trace=trace,
        )

    def reconnect(self, target: str | None = None, export: str | None = None) -> str:
        """Hands the device over to a new connection, or to another server of the same data. Netlink only.

        The URI that it is connected to then is returned. Requests in flight are sent again; none fails.

            attachment.reconnect("nbd://db2/disk")
        """
        from nbdattach.operations import handover

        return handover.reconnect(self._place, parse_target(target, export) if target is not None else None)

    def resize(self) -> str:
        """Gives the device the size that the export now has, and says what became of it. Netlink only.

        attachment.resize()
        """
        from nbdattach.operations import handover

        return handover.resize(self._place)

    @property
    def _place(self) -> Device:
        return parse_device(self.device)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()


def connect(
    target: str,
    device: str | None = None,
    *,
    export: str | None = None,
    read_only: bool = False,
    block_size: int | None = None,
    connections: int = 0,
    connect_timeout: float = DEFAULT_TIMEOUT,
    retry_for: float = 0.0,
    tag: str = "",
    expect_size: int | None = None,
    swap: bool = False,
    backend: str = "auto",
    on_loss: float | None = None,
    dead_peer: float = DEFAULT_DEAD_PEER,
    io_timeout: float = 0.0,
    reconnect: bool = True,
    size: int | None = None,
    tls: bool = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_hostname: str | None = None,
    tls_psk: str | None = None,
    tls_verify: bool = True,
    tls_transport: str = "auto",
    trace: Say = silent,
) -> Attachment:
    """Attaches `target` (and its `export`, where it is no URI) at `device`, or at a free one.

    Sizes in bytes, times in seconds, `connections` 0 for as many as are good. The device is ready when this returns.
    `on_loss` is how long requests wait for a server that is away: None for the default, 0 not at all,
    `float("inf")` for ever. With `reconnect` the monitor looks after it, and is started where none runs. With `size`
    the server sends no greeting, and the export has that many bytes. `trace` is told each step. Any of `tls_...` but
    the last asks for TLS; `tls_verify` False accepts any certificate.
    Raises the subclasses of `NbdattachError`.

        attachment = nbdattach.connect("db1", "nbd0", export="disk", read_only=True, tag="db")
    """
    wishes = Wishes(
        read_only=read_only,
        block_size=block_size,
        connections=connections,
        connect_timeout=connect_timeout,
        retry_for=retry_for,
        tag=tag,
        expect_size=expect_size,
        swap=swap,
        backend=backend,
        on_loss=on_loss,
        dead_peer=dead_peer,
        io_timeout=io_timeout,
        reconnect=reconnect,
        raw_size=size,
        tls_transport=tls_transport,
    )
    place = None if device is None else parse_device(device)
    where = with_tls(
        parse_target(target, export),
        required=tls,
        ca=tls_ca,
        cert=tls_cert,
        key=tls_key,
        hostname=tls_hostname,
        psk=tls_psk,
        verify=tls_verify,
    )
    return attach(where, place, wishes, trace)


def attach(target: Target, device: Device | None, wishes: Wishes, trace: Say = silent) -> Attachment:
    """`connect`, of what has been parsed already."""
    from nbdattach.operations import attachment

    done = attachment.attach(target, device, wishes, trace)
    return Attachment(done.device.path, done.pid, done.notes, done.fresh)


def disconnect(
    device: str,
    timeout: float = DETACH_SECONDS,
    *,
    force: bool = False,
    if_tag: str | None = None,
    say: Say = silent,
    progress: Callable[[float], None] = lambda _: None,
    trace: Say = silent,
) -> str:
    """Detaches what is attached at the device, as `Attachment.disconnect` does; with `if_tag` only what has that tag.

    Returns why there was nothing to do, an empty text where it was detached. `progress` is called during a long flush
    with the seconds that it has taken.

        nbdattach.disconnect("nbd0", if_tag="db")
    """
    from nbdattach.operations import detachment

    return detachment.detach(
        parse_device(device), timeout, force=force, only_tag=if_tag, say=say, progress=progress, trace=trace
    )


def attachments() -> list[Status]:
    """Every attached nbd device of this host, ours or foreign, by number.

    for one in nbdattach.attachments():
        print(one.device, one.state, one.target)
    """
    from nbdattach.attached.status import all_attached

    return all_attached()


def find(*, tag: str | None = None, target: str | None = None, export: str | None = None) -> list[Attachment]:
    """Attachments of that tag, or of that target.

    for one in nbdattach.find(tag="db"):
        one.disconnect()
    """
    from nbdattach.operations import detachment

    uri = None if target is None else parse_target(target, export).uri
    return [Attachment.at(one.path) for one in detachment.attached_as(tag=tag, target=uri)]
