# SPDX-License-Identifier: GPL-2.0-or-later
"""Computes the kernel's settings from the server's offer and the user's options. Arithmetic only, no I/O.

`connect` refuses an export that does not fit by `plan`; `check` and `info` ask `plan` too, so that they never disagree.
"""

from __future__ import annotations

import errno

from nbdattach.errors import KernelRefused, Malformed, NbdattachError, Refused
from nbdattach.immutable import immutable
from nbdattach.option_values import BLOCK_SIZES
from nbdattach.protocol.constants import NBD_FLAG_READ_ONLY, NBD_FLAG_ROTATIONAL, NBD_FLAG_SEND_WRITE_ZEROES
from nbdattach.protocol.export import Export

SECTOR = 512
# The smallest page of a Linux machine; limits that hold here also hold on machines with larger pages.
PAGE = 4096
# loff_t: a signed 64-bit number of bytes.
MAX_SIZE = 2**63 - 1
# Flags that the driver of 6.12 switches on and can never switch off: it would send the next server at the same device
# requests that it does not know. To write zeroes is slower without them, but wrong requests would be worse.
_STICKY_FLAGS = NBD_FLAG_ROTATIONAL | NBD_FLAG_SEND_WRITE_ZEROES
# Largest request if the server sets no limit. We do not rely on the driver's default (128 KiB on 6.1, 1280 KiB on
# 6.12), because a value written to the queue for an earlier attachment outlives it.
MAX_REQUEST_KB = 1024


@immutable
class Geometry:
    """Sizes in bytes. `tail` is the part after the last whole block, which cannot be reached."""

    blocks: int
    block_size: int
    tail: int
    max_sectors_kb: int
    flags: int

    @property
    def size(self) -> int:
        return self.blocks * self.block_size

    @property
    def lack(self) -> str:
        """What the user should know of the tail; empty without one."""
        return f"the last {self.tail} bytes are less than a block and cannot be reached" if self.tail else ""

    @property
    def read_only(self) -> bool:
        return bool(self.flags & NBD_FLAG_READ_ONLY)


def plan(thing: str, export: Export, read_only: bool = False, block_size: int | None = None) -> Geometry:
    """The geometry of `export`. `block_size` in bytes, None for the server's minimum.

    Raises `KernelRefused` for limits that the driver cannot honour, `Malformed` for an impossible block size,
    `Refused` for an export of less than one block.
    """
    if export.size > MAX_SIZE:
        step = f"an export of {export.size} bytes"
        raise KernelRefused.at(thing, step, errno.E2BIG, f"the kernel supports at most {MAX_SIZE} bytes")
    minimum = export.block_size.minimum if export.block_size else 1
    block = _chosen_block(thing, minimum, block_size)
    blocks = export.size // block
    if not blocks:
        raise Refused(
            thing,
            f"the export has {export.size} bytes, less than one block of {block}",
            "is the image behind it empty?",
        )
    flags = export.flags & ~_STICKY_FLAGS | (NBD_FLAG_READ_ONLY if read_only else 0)
    return Geometry(blocks, block, export.size % block, _max_sectors_kb(thing, export), flags)


def attachable(thing: str, export: Export) -> int:
    """Bytes of the device that `connect` would make without options. Raises as `plan`."""
    return plan(thing, export).size


def refusal(thing: str, export: Export) -> NbdattachError | None:
    """The error with which `connect` would refuse the export, None if it would attach it."""
    try:
        plan(thing, export)
    except NbdattachError as error:
        return error
    return None


def _chosen_block(thing: str, minimum: int, wanted: int | None) -> int:
    if minimum > PAGE:
        raise KernelRefused(
            thing,
            f"the server's minimum block size is {minimum}, but the kernel accepts at most {PAGE}",
            "use a server with a smaller minimum",
        )
    if wanted is None:
        return max(minimum, SECTOR)
    if wanted not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise Malformed(f"--block-size {wanted}", "not a block size that the kernel accepts", f"use one of {sizes}")
    if wanted < minimum:
        raise Malformed(
            f"--block-size {wanted}", f"{thing} requires at least {minimum}", f"leave it out, or use {minimum}"
        )
    return wanted


def _max_sectors_kb(thing: str, export: Export) -> int:
    """The largest request in KiB: a whole number of pages (and so of blocks), because the kernel has no finer limit."""
    if export.block_size is None:
        return MAX_REQUEST_KB
    pages = export.block_size.maximum // PAGE
    if not pages:
        raise KernelRefused(
            thing,
            f"the server accepts only {export.block_size.maximum} bytes per request, the kernel sends at least {PAGE}",
            "use a server with a larger maximum",
        )
    return min(MAX_REQUEST_KB, pages * PAGE // 1024)
