# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the format of a disk image from its name and from bytes of its beginning and end, and refuses to guess.

The names of formats are those of QEMU's drivers.

A virtual machine can write any bytes into its raw disk, even the header of an image that names another file of this
host as its backing file. So a header decides only if the name agrees with it. The user decides all other cases with
--format.

Sources: QEMU's docs/interop (qcow2, qed, parallels); Microsoft's VHD specification 1.0 and [MS-VHDX] 2.2.1; VMware's
Virtual Disk Format 5.0; LUKS2 on-disk format 1.0, section 2; Bochs's chapter on harddisk redologs. The header of each
format that qemu-img 7.2 can create was compared with its images.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping

from nbdattach.errors import Malformed
from nbdattach.text import plain

# The functions here need so many bytes from the beginning and the end of an image, or all of a smaller one.
# HEAD includes the descriptor in a VMDK image: it begins at the second sector and has 20 sectors.
HEAD = 64 << 10
TAIL = 512

# The suffixes that name a format.
SUFFIXES: Mapping[str, str] = {
    ".qcow2": "qcow2",
    ".qcow": "qcow",
    ".qed": "qed",
    ".vdi": "vdi",
    ".vmdk": "vmdk",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".hdd": "parallels",
    ".hds": "parallels",
    ".parallels": "parallels",
    ".dmg": "dmg",
}
# Suffixes of images that name no format: an .img may have any.
_OTHER_SUFFIXES = (".img", ".raw", ".iso", ".bin", ".luks")

_SECTOR = 512
_SPARSE_VMDK = b"KDMV"
_VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
# Each format, where its magic is, and the magic. A negative place counts from the end of the image.
# LUKS is last: it may be the content of the virtual disk in a fixed VHD, which has only a footer.
_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("qcow2", 0, b"QFI\xfb\0\0\0\x02"),
    ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ("qed", 0, b"QED\0"),
    ("vdi", 64, 0xBEDA107F.to_bytes(4, "little")),
    ("vmdk", 0, _SPARSE_VMDK),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, _VMDK_DESCRIPTOR),
    ("vhdx", 0, b"vhdxfile"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image\0"),
    # Two versions of the tools wrote these; FreeBSD's uzip has the same two lines first, and another third one.
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\ninsmod cloop"),
    ("vpc", 0, b"conectix"),
    ("vpc", -512, b"conectix"),
    # Creators before Virtual PC 2004 wrote a footer of 511 bytes.
    ("vpc", -511, b"conectix"),
    ("dmg", -512, b"koly"),
    ("luks", 0, b"LUKS\xba\xbe\0\x01"),
    ("luks", 0, b"LUKS\xba\xbe\0\x02"),
)

# Files that a VMDK image consists of, beside its descriptor. The first are raw: a virtual machine wrote all of them.
_RAW_EXTENT = r"(?ais)(.*)-(?:flat|f\d{3,})(\.vmdk)"
_SPARSE_EXTENT = r"(?ais)(.*)-(?:s\d{3,}|delta|sesparse)(\.vmdk)"

# QEMU opens these for reading only.
_READ_ONLY_FORMATS = ("dmg", "bochs", "cloop")
_CREATE_TYPE = rb'(?i)createType\s*=\s*"(streamOptimized|seSparse)"'
# In the header of a sparse VMDK extent, little endian: the place and the length of a field in bytes.
_VERSION = (4, 4)
_FLAGS = (8, 4)
_DESCRIPTOR_SECTOR = (28, 8)
_DESCRIPTOR_SECTORS = (36, 8)
_COMPRESSION = (77, 2)
_COMPRESSED_GRAINS = 1 << 16
_DEFLATE = 1
_VERSION_OF_CHANGED_BLOCKS = 3


def format_by_magic(head: bytes, tail: bytes) -> str:
    """The format that the content claims to have, "raw" if it has no magic. `format_of` tells whether to trust it."""
    return next(iter(_formats(head, tail)), "raw")


def is_image_name(name: str) -> bool:
    """Whether a file name such as disk.qcow2 looks like the name of a disk image."""
    suffix = _suffix(name)
    return suffix in SUFFIXES or suffix in _OTHER_SUFFIXES


def format_of(name: str, head: bytes, tail: bytes) -> str:
    """The format of the image `name`. Raises `Malformed` if the user has to decide with --format."""
    _require_no_extent(name, head)
    formats = _formats(head, tail)
    named = SUFFIXES.get(_suffix(name), "")
    # A raw disk in a fixed VHD may begin with the header of another format: the VHD's own footer is enough.
    if named in formats:
        return named
    # Users of dm-crypt keep LUKS in raw files with any name, and cryptsetup opens the attached device. So the server
    # must not decrypt it.
    if formats == ["luks"]:
        return "raw"
    if named:
        raise _differs_from_its_name(name, next(iter(formats), ""))
    if formats:
        raise _maybe_a_trap(name, formats[0])
    return "raw"


def never_writable(head: bytes, format: str) -> str:
    """Why QEMU cannot write to such an image, even if it opens the image or exports it as writable; "" if it can."""
    if format in _READ_ONLY_FORMATS:
        return f"QEMU can only read {format} images"
    if format != "vmdk":
        return ""
    if found := re.search(_CREATE_TYPE, _vmdk_descriptor(head)):
        return f"QEMU can only read {found[1].decode()} VMDK images"
    return _why_sparse_is_read_only(head) if head.startswith(_SPARSE_VMDK) else ""


def _formats(head: bytes, tail: bytes) -> list[str]:
    """Each format that has its magic in the content; more than one if a header and a footer differ."""
    return [name for name, at, magic in _MAGICS if _has_magic(head, tail, at, magic)]


def _has_magic(head: bytes, tail: bytes, at: int, magic: bytes) -> bool:
    if at >= 0:
        return head.startswith(magic, at)
    return len(tail) >= -at and tail.startswith(magic, len(tail) + at)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _require_no_extent(name: str, head: bytes) -> None:
    """Raises `Malformed` for a file that is only a part of a VMDK image."""
    # A virtual machine can write even a VMDK header into a raw extent, so the content of one proves nothing.
    match = re.fullmatch(_RAW_EXTENT, name)
    if match is None and not _vmdk_descriptor(head):
        match = re.fullmatch(_SPARSE_EXTENT, name)
    if match:
        raise _extent(name, f"use {plain(match[1] + match[2])}, which describes the whole image")
    # An extent that was renamed: QEMU would serve it as a whole disk.
    if _suffix(name) == ".vmdk" and head.startswith(_SPARSE_VMDK) and not _vmdk_descriptor(head):
        raise _extent(name, "use the .vmdk file that describes the whole image, or --format vmdk if there is none")


def _vmdk_descriptor(head: bytes) -> bytes:
    """The text that describes a VMDK image; b"" for an extent, and for COWD, which cannot have one."""
    if head.startswith(_VMDK_DESCRIPTOR):
        return head
    if not head.startswith(_SPARSE_VMDK):
        return b""
    # 0 is the header itself, and means that there is no descriptor.
    start = _field(head, _DESCRIPTOR_SECTOR) * _SECTOR
    text = head[start : start + _field(head, _DESCRIPTOR_SECTORS) * _SECTOR] if start else b""
    # qemu-img reserves room for a descriptor in extents too, and leaves it empty.
    return text.rstrip(b"\0")


def _why_sparse_is_read_only(head: bytes) -> str:
    # QEMU decides by the algorithm; the specification has the flag.
    if _field(head, _FLAGS) & _COMPRESSED_GRAINS or _field(head, _COMPRESSION) == _DEFLATE:
        return "QEMU can only read streamOptimized VMDK images"
    if _field(head, _VERSION) == _VERSION_OF_CHANGED_BLOCKS:
        return "QEMU can only read VMDK images of version 3"
    return ""


def _field(head: bytes, place: tuple[int, int]) -> int:
    at, length = place
    return int.from_bytes(head[at : at + length], "little")


def _extent(name: str, hint: str) -> Malformed:
    return Malformed(plain(name), "it is an extent of a VMDK image", hint)


def _differs_from_its_name(name: str, found: str) -> Malformed:
    suffix = _suffix(name)
    if not found:
        cause = f"named {suffix}, but it has no {SUFFIXES[suffix]} header"
        return Malformed(plain(name), cause, "--format raw if that is right")
    return Malformed(
        plain(name), f"named {suffix}, but it has the header of {found}", f"--format {found} if that is right"
    )


def _maybe_a_trap(name: str, found: str) -> Malformed:
    cause = (
        f"it has the header of a {found} image, but not its name: a virtual machine may have written that header into "
        "a raw disk to make this host read other files"
    )
    return Malformed(plain(name), cause, f"--format {found} if you trust it, --format raw if it is a raw disk")
