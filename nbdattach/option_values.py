# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of options, from the text that users type on the command line, in /etc/nbdtab and in nbdopts=. No I/O.

The one place that knows units: a size may have K, M, G, T or P (powers of 1024), a time ms, s, m, min, h or d.
Each function raises `Invalid` that says why the text is invalid, and has a value to type in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

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
MAX_BYTES = (1 << 63) - 1  # the largest size that the kernel has (loff_t)
LEAST_CONNECT_TIMEOUT = 0.001
LEAST_DEAD_PEER = 1.0
# More digits than any valid value has would only take time.
_AMOUNT = r"([0-9]{1,19})(?:\.([0-9]{1,19}))?([A-Za-z]{0,3})"
_SCHEDULER = r"[a-z0-9_-]{1,15}"  # ELV_NAME_MAX in block/elevator.h is 16, with the NUL
_COUNT = r"[1-9][0-9]?"
_BYTES = {unit: 1 << (10 * power) for power, unit in enumerate("kmgtp", 1)}
# "B" alone, as parted prints; not "b", which means 512 bytes to dd(1).
_BYTES_OF = {"": 1, "B": 1} | {f"{unit}{end}": _BYTES[unit] for unit in _BYTES for end in ("", "b", "ib")}
_MILLISECONDS_OF = {"": 1000, "ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = "bytes, or a number with K, M, G, T or P"
_TIME = "seconds, or a number with ms, s, m, h or d"


class Invalid(ValueError):
    """`example` is a value to type in the place of the invalid one."""

    def __init__(self, why: str, example: str) -> None:
        super().__init__(why)
        self.example = example


def seconds(text: str, least: float = 0.0) -> float:
    """A time in seconds, `least` to a year, with a unit or without: "90", "0.5", "500ms", "5m", "1d"."""
    # To systemd "M" means months; and SI's "MS" is something else as well.
    milliseconds = None if re.search("M(?!(?i:in)$)", text) else _times(text, _MILLISECONDS_OF)
    if milliseconds is None or milliseconds / 1000 < least:
        example = _meant(text, lambda meant: seconds(meant, least), "30s")
        raise Invalid(f"{text!r} is not a time from {least:g} up: {_TIME}", example)
    if milliseconds > MAX_SECONDS * 1000:
        raise Invalid(f"{text!r} is more than a year", "365d")
    return milliseconds / 1000


def size(text: str, least: int) -> int:
    """Bytes, `least` to the kernel's largest size, with a unit or without: "4096", "4K", "1.5GiB"."""
    found = _times(text, _BYTES_OF)
    if found is None or found < least or found != int(found):
        example = _meant(text, lambda meant: size(meant, least), "1G")
        raise Invalid(f"{text!r} is not a size from {least} up: {_SIZE}", example)
    if found > MAX_BYTES:
        raise Invalid(f"{text!r} is more than the kernel's largest size, 8 EiB less one byte", "1G")
    return int(found)


def _times(text: str, units: Mapping[str, int]) -> int | float | None:
    """The amount in the smallest unit, as an integer if it is one; None if the text is no number with such a unit."""
    found = re.fullmatch(_AMOUNT, text)
    if not found:
        return None
    whole, part, unit = found[1], found[2] or "", found[3]
    factor = units.get(unit, units.get(unit.lower()))
    if factor is None:
        return None
    shift: int = 10 ** len(part)
    amount, rest = divmod(int(whole + part) * factor, shift)
    return amount + rest / shift if rest else amount


def _meant(text: str, parse: Callable[[str], object], usual: str) -> str:
    """The text as it may be meant: its number and the first letter of its unit. `usual` if that is invalid as well."""
    found = re.fullmatch(r"\s*([0-9]{1,19}(?:[.,][0-9]{1,19})?)\s*((?i:ms)|[A-Za-z])?[A-Za-z]*\s*", text, re.ASCII)
    if found and (found[2] or "," in text or text != text.strip()):
        meant = found[1].replace(",", ".") + ("" if found[2] is None else found[2])
        for one in dict.fromkeys((meant, meant.lower())):
            if one == text:  # it is not valid
                continue
            try:
                parse(one)
            except Invalid:
                continue
            return one
    return usual


def block_size(text: str) -> int:
    """A block size in bytes that every kernel accepts."""
    try:
        found = size(text, 1)
    except Invalid:
        found = 0
    if found not in BLOCK_SIZES:
        raise Invalid(f"{text!r} is not one of {', '.join(map(str, BLOCK_SIZES))}", str(BLOCK_SIZES[-1]))
    return found


def one_of(text: str, words: Sequence[str]) -> str:
    """One of these words, in upper or lower case."""
    if text.lower() not in words:
        raise Invalid(f"{text!r} is not one of {', '.join(words)}", words[0])
    return text.lower()


def connections(text: str) -> int:
    """A number of connections, or "auto", which is 0."""
    if text.lower() == "auto":
        return 0
    if not re.fullmatch(_COUNT, text) or int(text) > MAX_CONNECTIONS:
        raise Invalid(f"{text!r} is neither auto nor a number from 1 to {MAX_CONNECTIONS}", "auto")
    return int(text)


def scheduler(text: str) -> str:
    """The name of an I/O scheduler; only the kernel knows which ones it has."""
    if not re.fullmatch(_SCHEDULER, text):
        raise Invalid(f"{text!r} is not the name of a scheduler, such as {', '.join(SCHEDULERS)}", SCHEDULERS[0])
    return text


def read_ahead(text: str) -> int:
    """Bytes that the kernel reads ahead."""
    found = size(text, 0)
    if found > MAX_READ_AHEAD:
        raise Invalid(f"{text!r} is more than 1 GiB", "1M")
    return found


def on_loss(text: str) -> float:
    """How long requests wait for a server that is away, in seconds: "wait:TIME", "wait" for ever, "fail" not at all."""
    word, colon, rest = text.partition(":")
    if word.lower() == "wait" and colon:
        try:
            return seconds(rest)
        except Invalid as error:
            raise Invalid(str(error), f"wait:{error.example}") from None
    if colon or word.lower() not in ("wait", "fail"):
        raise Invalid(f"{text!r} is not one of wait, wait:TIME, fail", "wait:5m")
    return float("inf") if word.lower() == "wait" else 0.0
