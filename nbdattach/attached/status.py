# SPDX-License-Identifier: GPL-2.0-or-later
"""The status of attached devices: the kernel's state, completed by our state files."""

from __future__ import annotations

from nbdattach.attached.state import Record, Trouble, are_hidden, end_of, load, monitor_lives, trouble_of
from nbdattach.attached.users import Census, numbers_of
from nbdattach.device import Device
from nbdattach.errors import NotAttached
from nbdattach.host.open_files import has_open
from nbdattach.host.procfs import alive, group_of, sees_all
from nbdattach.immutable import as_dict, immutable
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.own_server.kept import State, state_of
from nbdattach.server_of_ours import Image, OwnServer


@immutable
class ServerStatus:
    """A server that nbdattach has started for the device. `pid` is None while it is dead."""

    command: list[str]
    pid: int | None
    unit: str | None
    restarts: int


@immutable
class ImageStatus:
    """A disk image; `backing` are the images below it, the nearest first."""

    path: str
    format: str
    backing: list[str]


@immutable
class Status:
    """One attached device; the fields, in this order, are the JSON object of the contract. Sizes in bytes."""

    device: str
    index: int
    state: str  # "connected" | "reconnecting" | "lost"; "unknown" if only root can see which
    tag: str | None
    target: str | None
    export: str | None
    size: int
    block_size: int | None  # None if the kernel does not say it, because it waits for a server
    read_only: bool
    backend: str | None
    connections: int
    tls: dict[str, str] | None
    pid: int | None
    since: str | None
    mounts: list[str]
    holders: list[str]
    also: list[str]  # other servers of the same data, which are not in use
    server: ServerStatus | None
    image: ImageStatus | None
    trouble: dict[str, str | None] | None  # since, next_try, error, if the monitor knows that it is not connected

    @property
    def is_foreign(self) -> bool:
        """Whether there is no record of ours: another program attached it, or it was detached."""
        return self.target is None

    @property
    def has_ended(self) -> bool:
        """Whether it was detached, and a program keeps it there. All other trouble is the monitor's, of ours."""
        return self.is_foreign and self.trouble is not None


def status_of(device: Device, census: Census | None = None) -> Status:
    """With `census`, the mounts are read only once for many devices. Raises `NotAttached`."""
    kernel = Kernel(device)
    pid = kernel.pid
    if pid is None:
        raise NotAttached(device.path)
    record, size, by_netlink = load(device), kernel.size, kernel.by_netlink
    users = (census or Census()).users_of(device)
    trouble = end_of(device) if record is None else _trouble(device) if record.reconnect else None
    return Status(
        device=device.path,
        index=device.index,
        state=trouble.state if trouble else _state(kernel, record, size),
        tag=record.tag if record else kernel.backend,
        target=(record.using or record.target) if record else None,
        export=record.export if record else None,
        size=size,
        # The kernel's is that of the record; to ask for it may take as long as the server is away (`unhurried`).
        block_size=record.block_size if record else _foreign_block_size(device),
        read_only=kernel.read_only,
        backend=record.backend if record else "netlink" if by_netlink else None,
        connections=record.connections if record else kernel.connections,
        tls=as_dict(record.tls) if record and record.tls else None,
        pid=record.pid or record.living_relay if record else None if by_netlink else pid,
        since=record.since if record else None,
        mounts=users.mounts,
        holders=users.holders,
        also=record.others if record else [],
        server=_server(record.server) if record and record.server else None,
        image=_image(record.server.image) if record and record.server and record.server.image else None,
        trouble={"since": trouble.since, "next_try": trouble.next_try, "error": trouble.error} if trouble else None,
    )


def _foreign_block_size(device: Device) -> int | None:
    from nbdattach.attached import foreign_queue  # which starts a process; few hosts have such devices

    return foreign_queue.block_size_of(device)


def _server(server: OwnServer) -> ServerStatus:
    found = state_of(server) or State()
    return ServerStatus([*server.command], found.living_server, server.unit, found.restarts)


def _image(image: Image) -> ImageStatus:
    return ImageStatus(image.path, image.format, [*image.backing])


def _state(kernel: Kernel, record: Record | None, size: int) -> str:
    """As far as the kernel shows it. By netlink it looks the same while the server is away, and after a detach."""
    if not size or not _is_served(kernel, record):
        return "lost"
    return "unknown" if record is None and kernel.by_netlink and are_hidden() else "connected"


def _is_served(kernel: Kernel, record: Record | None) -> bool:
    """An ioctl attachment lives as long as its process; a netlink attachment needs none. In doubt: yes."""
    if kernel.by_netlink:
        return True
    if record and record.pid:
        return alive(record.pid)
    # The pid of a dead worker may be another program's by now, which does not have the device open.
    return not sees_all() or has_open(group_of(kernel.pid or 0), numbers_of(kernel.device))


def _trouble(device: Device) -> Trouble | None:
    """The monitor's report. If the monitor is dead, the state in it still holds: nothing has reconnected it since."""
    trouble = trouble_of(device)
    if trouble and not monitor_lives():
        return Trouble(trouble.state, trouble.since, None, "the monitor is not running")
    return trouble


def all_attached() -> list[Status]:
    """Every attached nbd device of this host, ours or not, by number. Empty if there is no driver."""
    found, census = [], Census()
    for device in sysfs.devices():
        try:
            found.append(status_of(device, census))
        except NotAttached:
            continue
    return found
