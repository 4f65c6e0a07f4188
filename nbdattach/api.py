"""The Python API: `nbdattach.connect`. The command line does the same through `attachment`."""

from __future__ import annotations

from nbdattach import attachment, detachment
from nbdattach.attachment import Attached
from nbdattach.device import parse_device
from nbdattach.status import Status, status_of
from nbdattach.target import parse_target
from nbdattach.wishes import DEFAULT_TIMEOUT, Wishes


class Attachment:
    """An attached device. As a context manager it detaches at the end."""

    def __init__(self, attached: Attached) -> None:
        self.device = attached.device.path
        self.notes = tuple(attached.notes)
        self._pid = attached.pid

    def status(self) -> Status:
        """What the kernel and our records say of it now. Raises `NotAttached`."""
        return status_of(parse_device(self.device))

    def disconnect(self, timeout: float = detachment.DETACH_SECONDS) -> None:
        """Detaches once it is safe; `timeout` in seconds. Raises `DeviceInUse`, `KernelRefused`; it then stays.

        What has come to the device after this attachment ended is left alone.
        """
        detachment.detach(parse_device(self.device), timeout, expected=self._pid)

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
) -> Attachment:
    """Attaches `target` (and its `export`, where it is no URI) at `device`, or at a free one.

    Sizes in bytes, times in seconds, `connections` 0 for as many as are good. The device is ready when this returns.
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
    )
    place = None if device is None else parse_device(device)
    return Attachment(attachment.attach(parse_target(target, export), place, wishes))
