# SPDX-License-Identifier: GPL-2.0-or-later
"""The format of a disk image. The headers are those of images that qemu-img 7.2 created, as far as it can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.content.image_format import (
    HEAD,
    SUFFIXES,
    TAIL,
    format_by_magic,
    format_of,
    is_image_name,
    never_writable,
)
from nbdattach.errors import Malformed

SECTOR = 512
LENGTH = 128 << 10
QCOW = bytes.fromhex("514649fb00000001")
QCOW2 = bytes.fromhex("514649fb00000003")
FIXED_VHD = b"conectix" + bytes.fromhex("0000000200010000ffffffffffffffff")
LUKS = bytes.fromhex("4c554b53babe0001") + b"aes"
DESCRIPTOR = b'# Disk DescriptorFile\nversion=1\nCID=df576ae0\nparentCID=ffffffff\ncreateType="%s"\n'
FLAT_DESCRIPTOR = DESCRIPTOR % b"monolithicFlat"
# Each format, with the headers that it may have.
HEADERS = {
    "qcow": [QCOW],
    "qcow2": [bytes.fromhex("514649fb00000002"), QCOW2],
    "qed": [bytes.fromhex("5145440000000100")],
    "vdi": [b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(64, b"\0") + bytes.fromhex("7f10dabe01000100")],
    "vmdk": [bytes.fromhex("4b444d5601000000"), b"COWD\x01\0\0\0", FLAT_DESCRIPTOR],
    "vhdx": [b"vhdxfile" + "QEMU".encode("utf-16-le")],
    "vpc": [b"conectix" + bytes.fromhex("00000002000100000000000000000200")],
    "parallels": [b"WithouFreSpacExt\x02\0\0\0", b"WithoutFreeSpace\x02\0\0\0"],
    "luks": [LUKS, bytes.fromhex("4c554b53babe00020000000000004000")],
    "bochs": [b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing"],
    "cloop": [
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0",
        b"#!/bin/sh\n#V2.0 Format\ninsmod cloop.o file=$0",
    ],
}
FOOTERS = {"vpc": [FIXED_VHD.ljust(512, b"\0"), FIXED_VHD.ljust(511, b"\0")], "dmg": [b"koly".ljust(512, b"\0")]}
EACH_HEADER = [(name, header) for name, headers in HEADERS.items() for header in headers]
EACH_FOOTER = [(name, footer) for name, footers in FOOTERS.items() for footer in footers]
MAYBE_A_TRAP = (
    "it has the header of a {} image, but not its name: a virtual machine may have written that header into a raw disk "
    "to make this host read other files"
)


def read(image: bytes) -> tuple[bytes, bytes]:
    """The parts of an image that the functions need."""
    return image[:HEAD], image[-TAIL:]


def image_of(name: str) -> bytes:
    """An image of that format, with its data."""
    if name in HEADERS:
        return HEADERS[name][0].ljust(LENGTH, b"\0")
    return bytes(LENGTH) + FOOTERS[name][0]


def sparse_vmdk(flags: int = 3, version: int = 1, compression: int = 0, at: int = 1, descriptor: bytes = b"") -> bytes:
    """The header as qemu-img writes it, then 20 sectors for the descriptor."""
    numbers = ((version, 4), (flags, 4), (0x20000, 8), (128, 8), (at, 8), (20, 8), (512, 4), (21, 8), (30, 8), (128, 8))
    header = b"KDMV" + b"".join(number.to_bytes(length, "little") for number, length in numbers)
    header += b"\0\n \r\n" + compression.to_bytes(2, "little")
    return header.ljust(SECTOR, b"\0") + descriptor.ljust(20 * SECTOR, b"\0") + bytes(LENGTH)


SPARSE = sparse_vmdk(descriptor=DESCRIPTOR % b"monolithicSparse")
EXTENT = sparse_vmdk()  # qemu-img reserves the room, but writes no descriptor into an extent


def refusal(name: str, image: bytes) -> tuple[str, str]:
    with pytest.raises(Malformed) as caught:
        format_of(name, *read(image))
    assert str(caught.value) == f"{caught.value.thing}: {caught.value.cause}"
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize(("name", "header"), EACH_HEADER)
def test_header_tells_the_format(name: str, header: bytes) -> None:
    assert format_by_magic(*read(header.ljust(LENGTH, b"\0"))) == name
    assert format_by_magic(*read(header)) == name  # no longer than its header


@pytest.mark.parametrize(("name", "footer"), EACH_FOOTER)
def test_footer_tells_the_format(name: str, footer: bytes) -> None:
    assert format_by_magic(*read(bytes(LENGTH) + footer)) == name
    assert format_by_magic(*read(footer)) == name


@pytest.mark.parametrize(("name", "footer"), EACH_FOOTER)
def test_footer_elsewhere_is_data(name: str, footer: bytes) -> None:
    assert format_by_magic(*read(bytes(LENGTH) + footer + b"\0\0")) == "raw"
    assert format_by_magic(*read(bytes(LENGTH) + footer[:256])) == "raw"


@pytest.mark.parametrize(("name", "header"), EACH_HEADER)
def test_header_elsewhere_is_data(name: str, header: bytes) -> None:
    assert format_by_magic(*read((b"\0" + header).ljust(LENGTH, b"\0"))) == "raw"


@pytest.mark.parametrize("version", [0, 4])
def test_unknown_version_is_no_format(version: int) -> None:
    for magic in (b"QFI\xfb\0\0\0", b"LUKS\xba\xbe\0"):
        assert format_by_magic(*read((magic + bytes([version])).ljust(LENGTH, b"\0"))) == "raw"


def test_uzip_of_freebsd_is_no_cloop() -> None:
    uzip = b"#!/bin/sh\n#V2.0 Format\nm=geom_uzip\n"
    assert format_by_magic(*read(uzip.ljust(LENGTH, b"\0"))) == "raw"


def disk(*parts: tuple[int, bytes]) -> bytes:
    content = bytearray(LENGTH)
    for at, data in parts:
        content[at : at + len(data)] = data
    return bytes(content)


RAW_DISKS = {
    "zeros": disk(),
    "MBR": disk((0, bytes.fromhex("eb63908ed0bc00b0b80000")), (446, b"\x80\0\x21\0\x83"), (510, b"\x55\xaa")),
    "GPT": disk(
        (450, b"\xee"), (510, b"\x55\xaa"), (512, b"EFI PART\0\0\x01\0"), (LENGTH - 512, b"EFI PART\0\0\x01\0")
    ),
    "ext4": disk((1024 + 56, b"\x53\xef")),
    "xfs": disk((0, b"XFSB\0\0\x10\0")),
    "btrfs": disk((65536 + 64, b"_BHRfS_M")),
    "vfat": disk((0, b"\xeb\x58\x90mkfs.fat\0\x02\x01\x20\0"), (82, b"FAT32   "), (510, b"\x55\xaa")),
    "swap": disk((1024, b"\x01\0\0\0"), (4086, b"SWAPSPACE2")),
    "ISO 9660": disk((32768, b"\x01CD001\x01\0"), (34816, b"\xffCD001\x01\0")),
    "ISO 9660 that also boots from a disk": disk((0, b"\x45\x52\x08\0"), (510, b"\x55\xaa"), (32768, b"\x01CD001")),
    "squashfs": disk((0, b"hsqs")),
    "script": disk((0, b"#!/bin/sh\necho\n")),
}


@pytest.mark.parametrize("content", RAW_DISKS)
@pytest.mark.parametrize("name", ["disk.img", "disk.raw", "cd.iso", "disk.bin", "disk.luks", "disk", "a.b", "qcow2"])
def test_content_without_a_header_is_raw(name: str, content: str) -> None:
    assert format_of(name, *read(RAW_DISKS[content])) == "raw"


@pytest.mark.parametrize(("suffix", "named"), SUFFIXES.items())
def test_name_and_header_that_agree_are_enough(suffix: str, named: str) -> None:
    image = SPARSE if named == "vmdk" else image_of(named)
    for name in (f"disk{suffix}", f"disk{suffix.upper()}", f"/images/a.img/disk{suffix}"):
        assert format_of(name, *read(image)) == named


@pytest.mark.parametrize(("suffix", "named"), SUFFIXES.items())
@pytest.mark.parametrize("content", RAW_DISKS)
def test_name_without_its_header_is_refused(suffix: str, named: str, content: str) -> None:
    assert refusal(f"disk{suffix}", RAW_DISKS[content]) == (
        f"disk{suffix}: named {suffix}, but it has no {named} header",
        "--format raw if that is right",
    )


@pytest.mark.parametrize(("suffix", "named"), SUFFIXES.items())
@pytest.mark.parametrize("found", sorted({*HEADERS, *FOOTERS} - {"luks"}))
def test_name_with_the_header_of_another_format_is_refused(suffix: str, named: str, found: str) -> None:
    if found != named:
        assert refusal(f"disk{suffix}", image_of(found)) == (
            f"disk{suffix}: named {suffix}, but it has the header of {found}",
            f"--format {found} if that is right",
        )


@pytest.mark.parametrize("found", sorted({*HEADERS, *FOOTERS} - {"luks"}))
@pytest.mark.parametrize("name", ["disk.img", "disk.raw", "cd.iso", "disk.qcow2.bak", "disk", ".qcow2"])
def test_header_of_a_format_in_a_file_of_another_name_may_be_a_trap(name: str, found: str) -> None:
    assert refusal(name, image_of(found)) == (
        f"{name}: {MAYBE_A_TRAP.format(found)}",
        f"--format {found} if you trust it, --format raw if it is a raw disk",
    )


@pytest.mark.parametrize("luks", HEADERS["luks"])
@pytest.mark.parametrize("name", ["disk.img", "disk.luks", "disk", "disk.raw", "disk.qcow2", "disk.vmdk", "disk.dmg"])
def test_luks_is_raw_under_any_name(name: str, luks: bytes) -> None:
    assert format_of(name, *read(luks.ljust(LENGTH, b"\0"))) == "raw"


@pytest.mark.parametrize("header", [QCOW2, LUKS, FLAT_DESCRIPTOR, b"EFI PART"])
@pytest.mark.parametrize("footer", FOOTERS["vpc"])
def test_raw_disk_in_a_fixed_vhd_does_not_change_its_format(header: bytes, footer: bytes) -> None:
    assert format_of("disk.vhd", *read(header.ljust(LENGTH, b"\0") + footer)) == "vpc"


def test_footer_of_a_fixed_vhd_is_never_exported_as_part_of_a_luks_disk() -> None:
    text, hint = refusal("disk.img", LUKS.ljust(LENGTH, b"\0") + FOOTERS["vpc"][0])
    assert text == f"disk.img: {MAYBE_A_TRAP.format('vpc')}"
    assert hint == "--format vpc if you trust it, --format raw if it is a raw disk"


@pytest.mark.parametrize("image", [disk(), disk((0, QCOW2)), disk((0, FLAT_DESCRIPTOR)), SPARSE, disk((0, LUKS)), b""])
@pytest.mark.parametrize("part", ["flat", "f001", "f1000", "FLAT"])
def test_raw_extent_of_a_vmdk_is_refused_with_any_content(part: str, image: bytes) -> None:
    """A virtual machine wrote it: a descriptor in it would name files of this host."""
    assert refusal(f"/vm/a-{part}.vmdk", image) == (
        f"/vm/a-{part}.vmdk: it is an extent of a VMDK image",
        "use /vm/a.vmdk, which describes the whole image",
    )


@pytest.mark.parametrize(
    "image", [EXTENT, sparse_vmdk(at=0), EXTENT[:SECTOR], disk((0, b"COWD")), disk(), disk((0, QCOW2))]
)
@pytest.mark.parametrize("part", ["s001", "s012", "delta", "sesparse"])
def test_sparse_extent_of_a_vmdk_is_refused(part: str, image: bytes) -> None:
    assert refusal(f"a-000001-{part}.vmdk", image) == (
        f"a-000001-{part}.vmdk: it is an extent of a VMDK image",
        "use a-000001.vmdk, which describes the whole image",
    )


@pytest.mark.parametrize("image", [SPARSE, disk((0, FLAT_DESCRIPTOR))])
@pytest.mark.parametrize("name", ["a-s001.vmdk", "a-delta.vmdk", "a-flat-1.vmdk", "a-f01.vmdk"])
def test_vmdk_with_a_descriptor_is_a_whole_image(name: str, image: bytes) -> None:
    assert format_of(name, *read(image)) == "vmdk"


@pytest.mark.parametrize("image", [EXTENT, sparse_vmdk(at=0)])
def test_renamed_extent_of_a_vmdk_is_refused(image: bytes) -> None:
    assert refusal("a.vmdk", image) == (
        "a.vmdk: it is an extent of a VMDK image",
        "use the .vmdk file that describes the whole image, or --format vmdk if there is none",
    )


def test_control_characters_in_a_name_are_escaped() -> None:
    assert refusal("a\x1b[2J.qcow2", b"")[0] == r"a\x1b[2J.qcow2: named .qcow2, but it has no qcow2 header"
    assert refusal("a\n-flat.vmdk", b"")[1] == r"use a\n.vmdk, which describes the whole image"


@pytest.mark.parametrize(
    "name", [*(f"disk{suffix}" for suffix in SUFFIXES), "a.img", "a.raw", "a.iso", "a.bin", "a.luks"]
)
def test_names_of_images(name: str) -> None:
    assert is_image_name(name)
    assert is_image_name(name.upper())


@pytest.mark.parametrize(
    "name", ["", "disk", "qcow2", ".qcow2", "disk.qcow2.gz", "disk.", "server.example.com", "a.img "]
)
def test_names_of_other_things(name: str) -> None:
    assert not is_image_name(name)


STREAM = "QEMU can only read streamOptimized VMDK images"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (sparse_vmdk(0x30003, 3, 1, descriptor=DESCRIPTOR % b"streamOptimized"), STREAM),
        (sparse_vmdk(descriptor=DESCRIPTOR % b"streamOptimized"), STREAM),
        (sparse_vmdk(flags=0x10003), STREAM),
        (sparse_vmdk(compression=1), STREAM),
        (DESCRIPTOR % b"streamOptimized", STREAM),
        (DESCRIPTOR % b"seSparse", "QEMU can only read seSparse VMDK images"),
        (sparse_vmdk(version=3), "QEMU can only read VMDK images of version 3"),
    ],
)
def test_vmdk_that_qemu_cannot_write(image: bytes, reason: str) -> None:
    assert never_writable(read(image)[0], "vmdk") == reason


@pytest.mark.parametrize(
    "image", [SPARSE, EXTENT, sparse_vmdk(flags=7, version=2), FLAT_DESCRIPTOR, b"COWD\x01\0\0\0\0\0\1"]
)
def test_vmdk_that_qemu_can_write(image: bytes) -> None:
    assert never_writable(read(image)[0], "vmdk") == ""


@pytest.mark.parametrize("name", ["dmg", "bochs", "cloop"])
def test_format_that_qemu_only_reads(name: str) -> None:
    assert never_writable(read(image_of(name))[0], name) == f"QEMU can only read {name} images"


@pytest.mark.parametrize("name", ["raw", "qcow", "qcow2", "qed", "vdi", "vhdx", "vpc", "parallels", "luks"])
def test_content_of_a_raw_disk_does_not_make_it_read_only(name: str) -> None:
    assert never_writable(sparse_vmdk(flags=0x10003)[:HEAD], name) == ""


def asks_everything(name: str, image: bytes) -> None:
    head, tail = read(image)
    for format_name in (format_by_magic(head, tail), "vmdk"):
        never_writable(head, format_name)
    try:
        found = format_of(name, head, tail)
    except Malformed as malformed:
        assert str(malformed).isprintable()
        assert malformed.hint.isprintable()
    else:
        assert found in {"raw", SUFFIXES.get(name[name.rfind(".") :].lower())}


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 9, 44, 63, 67, 78, 79, 510, 511, 512, 513, 1023])
@pytest.mark.parametrize("name", ["disk", "disk.img", "a-s001.vmdk", *(f"disk{suffix}" for suffix in SUFFIXES)])
def test_truncated_image_is_answered_or_malformed(name: str, length: int) -> None:
    images = [header.ljust(LENGTH, b"\0") for _, header in EACH_HEADER] + [footer for _, footer in EACH_FOOTER]
    for image in [*images, SPARSE, sparse_vmdk(0x30003, 3, 1, at=(1 << 64) - 1)]:
        asks_everything(name, image[:length])
        asks_everything(name, image[-length:])


NAMES = st.one_of(st.text(), st.from_regex(r"[a-c]*(-(s001|flat))?\.(qcow2|vmdk|vhd|dmg|img|luks)"))
BEGINNINGS = st.sampled_from([b"", SPARSE[:80], *(header for _, header in EACH_HEADER)])
ENDS = st.sampled_from([b"", *(footer for _, footer in EACH_FOOTER)])


@given(NAMES, BEGINNINGS, st.binary(max_size=2048), ENDS)
def test_any_bytes_are_answered_or_malformed(name: str, beginning: bytes, middle: bytes, end: bytes) -> None:
    asks_everything(name, beginning + middle + end)


@given(BEGINNINGS, st.binary(max_size=2048), ENDS)
def test_file_without_a_format_in_its_name_is_raw_or_refused(beginning: bytes, middle: bytes, end: bytes) -> None:
    """No bytes that a virtual machine writes into a raw disk make this host follow them."""
    try:
        assert format_of("disk.img", *read(beginning + middle + end)) == "raw"
    except Malformed as malformed:
        assert "--format raw if it is a raw disk" in malformed.hint
