# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at images that the real tools made: what is recognised, and how little is read."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from looking import looked_at

from nbdattach.content.look import look
from nbdattach.content.marks import Content, Mark
from nbdattach.content.reading import Range

MIB = 1 << 20
pytestmark = pytest.mark.once


def looked(image: Path, block: int = 512) -> Content:
    return looked_at(image.read_bytes(), block)


def kinds(content: Content) -> list[tuple[str, int]]:
    return [(mark.kind, mark.at) for mark in content.marks]


def made(folder: Path, mebibytes: int, *commands: list[str], script: str = "") -> Path:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(mebibytes * MIB)
    for command in commands:
        words = [word.format(image) for word in command]
        subprocess.run(words, input=script, text=True, check=True, capture_output=True)
    return image


MADE = {
    "ext4": (32, ["mkfs.ext4", "-q", "{}"], ""),
    "xfs": (320, ["mkfs.xfs", "-q", "{}"], ""),
    "btrfs": (200, ["mkfs.btrfs", "-q", "{}"], ""),
    "swap": (16, ["mkswap", "{}"], ""),
    "vfat": (32, ["mkfs.vfat", "{}"], ""),
    "luks": (32, ["cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
                  "{}", "-"], "secret"),
}  # fmt: skip


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize("kind", MADE)
def test_recognises(tmp_path: Path, kind: str, block: int) -> None:
    mebibytes, command, script = MADE[kind]
    image = made(tmp_path, mebibytes, command, script=script)
    (mark,) = looked(image, block).marks
    assert (mark.kind, mark.at) == (kind, 0)
    told = subprocess.run(["blkid", "-o", "value", "-s", "UUID", "-p", str(image)], capture_output=True, text=True)
    assert told.stdout.strip().replace("-", "").lower() in mark.identity.replace("-", "").lower()


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_looks_into_partitions(tmp_path: Path, label: str) -> None:
    table = f"label: {label}\nsize=8MiB\n,\n"
    image = made(
        tmp_path, 64, ["sfdisk", "-q", "{}"], ["mkfs.ext4", "-q", "-E", f"offset={9 * MIB}", "{}", "50M"], script=table
    )
    found = looked(image)
    assert kinds(found) == [({"dos": "mbr"}.get(label, label), 0), ("ext4", 9 * MIB)]
    told = subprocess.run(["blkid", "-o", "value", "-s", "PTUUID", "-p", str(image)], capture_output=True, text=True)
    assert told.stdout.strip() in found.marks[0].identity


def test_another_table_on_the_same_disk_differs(tmp_path: Path) -> None:
    image = made(tmp_path, 64, ["sfdisk", "-q", "{}"], script="label: gpt\nsize=8MiB\n,\n")
    before = looked(image)
    subprocess.run(["sfdisk", "-q", "--delete", str(image), "2"], check=True, capture_output=True)
    after = looked(image)
    assert before.marks[0].identity.split()[0] == after.marks[0].identity.split()[0]
    assert before.marks != after.marks


def test_an_empty_disk_tells_nothing(tmp_path: Path) -> None:
    found = looked(made(tmp_path, 16))
    assert (found.marks, {one.digest for one in found.samples}) == ((), {""})


def test_while_most_samples_are_empty_each_look_takes_others() -> None:
    """But a look that compares takes the same."""
    disk = bytearray(16 << 20)
    for place in range(0, len(disk), 16384):
        disk[place : place + 2048] = b"data" * 512
    found = looked_at(bytes(disk))
    for _ in range(40):
        assert [one.at for one in looked_at(bytes(disk), known=found, check=True).samples] == [
            one.at for one in found.samples
        ]
        before, found = found, looked_at(bytes(disk), known=found)
        kept = {one for one in before.samples if one.digest}
        assert kept <= set(found.samples)
        assert len(found.samples) == len(before.samples)
    assert 2 * sum(bool(one.digest) for one in found.samples) >= len(found.samples)


@pytest.mark.parametrize("size", [0, 512, 4096, 5000, 100_000])
def test_a_disk_may_be_smaller_than_what_is_read(size: int) -> None:
    assert looked_at(bytes(size)).marks == ()


def rounds(disk: bytes, check: bool = True) -> list[list[Range]]:
    steps = look(len(disk), 512, check=check)
    found: list[list[Range]] = []
    answers: list[bytes] | None = None
    try:
        while True:
            found.append(steps.send(answers))  # type: ignore[arg-type] # None starts it
            answers = [disk[offset : offset + length] for offset, length in found[-1]]
    except StopIteration:
        return found


def test_an_empty_disk_takes_one_round_of_a_few_kib() -> None:
    """However large it is; the counts are what a reconnect costs."""
    (asked,) = rounds(bytes(16 * MIB))
    assert sum(length for _, length in asked) < 16 << 10


def test_many_partitions_take_as_many_rounds_as_one(tmp_path: Path) -> None:
    parts = 12
    script = "label: gpt\n" + "size=4MiB\n" * parts
    commands = [
        ["mkfs.ext4", "-q", "-b", "1024", "-E", f"offset={(1 + 4 * number) * MIB}", "{}", "4M"]
        for number in range(parts)
    ]
    image = made(tmp_path, 64, ["sfdisk", "-q", "{}"], *commands, script=script)
    assert len(looked(image).marks) == parts + 1
    found = rounds(image.read_bytes())
    assert len(found) == 3  # the table, the partitions, their journals
    assert sum(length for asked in found for _, length in asked) < 128 << 10


def test_nonsense_is_never_an_error() -> None:
    """The server may send anything."""
    chance = random.Random(1)
    heads = [b"XFSB", b"LABELONE", b"_BHRfS_M", b"LUKS\xba\xbe", b"EFI PART", b"\x53\xef", b"\xfc\x4e\x2b\xa9"]
    for _ in range(300):
        steps = look(1 << 30, 512, None)
        try:
            wanted = next(steps)
            while True:
                answers = []
                for offset, length in wanted:
                    data = bytearray(chance.randbytes(length))
                    for place in (0, 512, 1024 + 56, 64, 510, 4096):
                        if chance.random() < 0.6 and place < length:
                            head = chance.choice(heads) if place != 510 else b"\x55\xaa"
                            data[place : place + len(head)] = head
                    assert 0 <= offset < 1 << 30 and 0 < length <= 1 << 17
                    answers.append(bytes(data[:length]))
                wanted = steps.send(answers)
        except StopIteration as stop:
            assert all(isinstance(mark, Mark) for mark in stop.value.marks)
