# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of options, from the text that users type on the command line and in /etc/nbdtab. No I/O.

Each function raises ValueError that says why the text is invalid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BACKENDS = ("auto", "netlink", "ioctl")
TRANSPORTS = ("auto", "kernel", "relay")
# Of disk images, by QEMU's names.
FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "dmg", "bochs", "cloop")
CACHES = ("writeback", "writethrough", "none", "directsync", "unsafe")
DISCARDS = ("unmap", "ignore")
# Those that Linux comes with. A kernel may lack some, and may have others.
SCHEDULERS = ("none", "mq-deadline", "kyber", "bfq")
MAX_READ_AHEAD = 1 << 30  # bytes; more is a typing error
MAX_CONNECTIONS = 64
# The nbd driver takes logical blocks up to a page (blk_validate_block_size, linux/blkdev.h), which is 4096 at least.
BLOCK_SIZES = (512, 1024, 2048, 4096)
MAX_SECONDS = 365 * 24 * 3600  # more is a typing error, and the kernel's timers have a limit
LEAST_CONNECT_TIMEOUT = 0.001
LEAST_DEAD_PEER = 1.0
_DECIMAL = r"[0-9]+(\.[0-9]+)?"
_NUMBER = r"[0-9]{1,19}"  # up to 2^63, the largest size that the kernel has
_SCHEDULER = r"[a-z0-9_-]{1,15}"  # ELV_NAME_MAX in block/elevator.h is 16, with the NUL
_COUNT = r"[1-9][0-9]?"


def seconds(text: str, least: float = 0.0) -> float:
    """A plain decimal number of seconds, `least` to a year."""
    if not re.fullmatch(_DECIMAL, text) or float(text) < least:
        raise ValueError(f"{text!r} is not a number of seconds from {least:g} up")
    if float(text) > MAX_SECONDS:
        raise ValueError(f"{text!r} is more than a year")
    return float(text)


def number(text: str, least: int) -> int:
    """A plain decimal number, `least` or more."""
    if not re.fullmatch(_NUMBER, text) or int(text) < least:
        raise ValueError(f"{text!r} is not a number from {least} up")
    return int(text)


def block_size(text: str) -> int:
    """A block size in bytes that every kernel accepts."""
    if number(text, 1) not in BLOCK_SIZES:
        raise ValueError(f"{text!r} is not one of {', '.join(map(str, BLOCK_SIZES))}")
    return int(text)


def one_of(text: str, words: Sequence[str]) -> str:
    """One of these words."""
    if text not in words:
        raise ValueError(f"{text!r} is not one of {', '.join(words)}")
    return text


def connections(text: str) -> int:
    """A number of connections, or "auto", which is 0."""
    if text == "auto":
        return 0
    if not re.fullmatch(_COUNT, text) or int(text) > MAX_CONNECTIONS:
        raise ValueError(f"{text!r} is neither auto nor a number from 1 to {MAX_CONNECTIONS}")
    return int(text)


def scheduler(text: str) -> str:
    """The name of an I/O scheduler; only the kernel knows which ones it has."""
    if not re.fullmatch(_SCHEDULER, text):
        raise ValueError(f"{text!r} is not the name of a scheduler, such as {', '.join(SCHEDULERS)}")
    return text


def read_ahead(text: str) -> int:
    """Bytes that the kernel reads ahead."""
    if number(text, 0) > MAX_READ_AHEAD:
        raise ValueError(f"{text!r} is more than {MAX_READ_AHEAD}")
    return int(text)


def on_loss(text: str) -> float:
    """How long requests wait for a server that is away, in seconds: "wait:SEC", "wait" for ever, "fail" not at all."""
    word, colon, rest = text.partition(":")
    if word == "wait" and colon:
        return seconds(rest)
    if colon or word not in ("wait", "fail"):
        raise ValueError(f"{text!r} is not one of wait, wait:SEC, fail")
    return float("inf") if word == "wait" else 0.0
