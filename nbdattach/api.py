"""The Python API: `nbdattach.connect`. The command line does the same through `attachment`."""

from __future__ import annotations

from nbdattach import attachment, detachment, handover
from nbdattach.attachment import Attached
from nbdattach.device import parse_device
from nbdattach.status import Status, status_of
from nbdattach.target import parse_target
from nbdattach.wishes import DEFAULT_DEAD_PEER, DEFAULT_TIMEOUT, Wishes


class Attachment:
    """An attached device. As a context manager it detaches at the end."""

    def __init__(self, attached: Attached) -> None:
        self.device = attached.device.path
        self.notes = tuple(attached.notes)
        self._pid = attached.pid

    def status(self) -> Status:
        """What the kernel and our records say of it now. Raises `NotAttached`."""
        return status_of(parse_device(self.device))

    def disconnect(self, timeout: float = detachment.DETACH_SECONDS, force: bool = False) -> None:
        """Detaches once it is safe; `timeout` in seconds. Raises `DeviceInUse`, `KernelRefused`; it then stays.

        With `force`, what was written and cannot be flushed is lost.

        What has come to the device after this attachment ended is left alone.
        """
        detachment.detach(parse_device(self.device), timeout, expected=self._pid, force=force)

    def reconnect(self, target: str | None = None) -> None:
        """Hands the device over to a new connection, or to another server of the same data. Netlink only."""
        handover.reconnect(parse_device(self.device), parse_target(target) if target else None)

    def resize(self) -> None:
        """Gives the device the size that the export now has. Netlink only."""
        handover.resize(parse_device(self.device))

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
) -> Attachment:
    """Attaches `target` (and its `export`, where it is no URI) at `device`, or at a free one.

    Sizes in bytes, times in seconds, `connections` 0 for as many as are good. The device is ready when this returns.
    `on_loss` is how long requests wait for a server that is away: None for the default, 0 not at all,
    `float("inf")` for ever. With `reconnect` the monitor looks after it, and is started where none runs.
    Raises the subclasses of `NbdattachError`.
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
    )
    place = None if device is None else parse_device(device)
    return Attachment(attachment.attach(parse_target(target, export), place, wishes))
