# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach exports of NBD servers to /dev/nbdX.

    with nbdattach.connect("nbd://db1/disk", "/dev/nbd0", read_only=True) as attachment:
        print(attachment.device, attachment.status().size)

Names are loaded when they are first used: the worker and the command line import this package and need little of it.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # the module typing costs the worker 1 MB
if TYPE_CHECKING:
    from nbdattach.api import Attachment, attachments, connect, disconnect, find
    from nbdattach.attached.status import Status
    from nbdattach.errors import (
        BrokenProtocol,
        ConnectionLost,
        DeadlinePassed,
        DeviceInUse,
        KernelRefused,
        Malformed,
        NbdattachError,
        NoConnection,
        NotAttached,
        Refused,
        TlsFailed,
        UnknownExport,
    )
    from nbdattach.reporter import Reporter

__all__ = [
    "Attachment",
    "BrokenProtocol",
    "ConnectionLost",
    "DeadlinePassed",
    "DeviceInUse",
    "KernelRefused",
    "Malformed",
    "NbdattachError",
    "NoConnection",
    "NotAttached",
    "Refused",
    "Reporter",
    "Status",
    "TlsFailed",
    "UnknownExport",
    "attachments",
    "connect",
    "disconnect",
    "find",
]
_HOMES = {
    "Attachment": "api",
    "connect": "api",
    "disconnect": "api",
    "attachments": "api",
    "find": "api",
    "Status": "attached.status",
    "Reporter": "reporter",
    "NbdattachError": "errors",
    "Malformed": "errors",
    "NoConnection": "errors",
    "ConnectionLost": "errors",
    "DeadlinePassed": "errors",
    "Refused": "errors",
    "UnknownExport": "errors",
    "BrokenProtocol": "errors",
    "TlsFailed": "errors",
    "KernelRefused": "errors",
    "DeviceInUse": "errors",
    "NotAttached": "errors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbdattach' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"nbdattach.{_HOMES[name]}"), name)
