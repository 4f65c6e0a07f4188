# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the kernel's settings of an attached device with the features that its server offers.

Some settings outlive an attachment, in the driver or in the block layer, and any program may change them meanwhile.
With "write through" in queue/write_cache, for one, the kernel completes fsync and sends the server nothing.
"""

from __future__ import annotations

import contextlib

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.constants import NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA

WRITE_BACK = "write back"
WRITE_THROUGH = "write through"


def correct(device: Device, flags: int) -> None:
    """Makes the kernel flush if the server can, and only then. For an attachment that is not in use yet.

    Since Linux 6.12 the kernel waits for all requests in flight first, so it waits for ever if their server is away.
    """
    offered = bool(flags & NBD_FLAG_SEND_FLUSH)
    if Kernel(device).write_back != offered:
        with contextlib.suppress(OSError):  # `differences` reports it
            Kernel(device).set_queue("write_cache", WRITE_BACK if offered else WRITE_THROUGH)


def differences(device: Device, flags: int, max_sectors_kb: int, block_size: int) -> list[str]:
    """A line for each setting that breaks the server's offer, with the remedy if there is one. Only reads.

    `flags` are those of the server, with NBD_FLAG_READ_ONLY if the user asked for that; limits are as attached.
    """
    return [f"{device.path}: {line}" for line in _lines(Kernel(device), flags, max_sectors_kb, block_size)]


def _lines(kernel: Kernel, flags: int, max_sectors_kb: int, block_size: int) -> list[str]:
    queue = f"/sys/block/{kernel.device.name}/queue"
    flush, read_only = bool(flags & NBD_FLAG_SEND_FLUSH), bool(flags & NBD_FLAG_READ_ONLY)
    remedies = (
        (
            flush and not kernel.write_back,
            f"fsync does not reach the server: echo {WRITE_BACK!r} >{queue}/write_cache",
        ),
        (
            kernel.write_back and not flush,
            f"the kernel sends flushes, which the server does not support: echo {WRITE_THROUGH!r} >{queue}/write_cache",
        ),
        (
            kernel.write_back and kernel.sends_fua and not flags & NBD_FLAG_SEND_FUA,
            "the kernel sends writes with FUA, which the server does not support: disconnect it, and connect again",
        ),
        (
            kernel.read_only and not read_only,
            f"the kernel refuses writes, although the server accepts them: blockdev --setrw {kernel.device.path}",
        ),
        (
            read_only and not kernel.read_only,
            "the kernel accepts writes, although the device was attached read-only: disconnect it, and connect again",
        ),
        (
            0 < max_sectors_kb < kernel.max_sectors_kb,
            "the kernel may send larger requests than the server accepts: "
            f"echo {max_sectors_kb} >{queue}/max_sectors_kb",
        ),
        (
            kernel.block_size < block_size,
            f"the kernel may send requests smaller than {block_size} bytes, which the server does not accept",
        ),
    )
    return [line for wrong, line in remedies if wrong]
