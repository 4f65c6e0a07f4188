# SPDX-License-Identifier: GPL-2.0-or-later
"""What users call a device: any path that leads to it is right; a mount point, a part or a tag is told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import names
from nbdattach.errors import Malformed, NotAttached
from nbdattach.host import procfs

NUMBERS = {"43:0": "nbd0", "43:33": "nbd1/nbd1p1", "253:0": "dm-0"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """/x/LINK leads to nbd0, /x/PART to a partition, /x/DM to another device; nbd1 is mounted at /srv/a b."""
    made = pretend(tmp_path, monkeypatch)
    made.attach(NBD0, tag="db")
    made.attach(NBD1, tag="web")
    (made.sys / "dev/block").mkdir(parents=True)
    for number, place in NUMBERS.items():
        (made.sys / "dev/block" / number).symlink_to(f"../../devices/virtual/block/{place}")
    nodes = {"/x/LINK": (43, 0), "/x/PART": (43, 33), "/x/DM": (253, 0)}

    def stat_of(path: str) -> os.stat_result:
        if path not in nodes:
            raise FileNotFoundError(path)
        return os.stat_result((0o060660, *range(9), 0, 0, 0, 0, 0, 0, 0, 0, os.makedev(*nodes[path])))

    monkeypatch.setattr(names.os, "stat", stat_of)
    table = [r"36 35 43:33 / /srv/a\040b rw - ext4 /dev/nbd1p1 rw", "37 35 8:1 / /home rw - ext4 /dev/sda1 rw"]
    monkeypatch.setattr(procfs, "mount_table", lambda: table)
    return made


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("text", ["nbd0", "/dev/nbd0", "/x/LINK", "/x/../x/LINK", "/x//LINK"])
def test_any_path_that_leads_to_it_is_its_name(text: str) -> None:
    assert names.find(text) == names.device_at(text) == NBD0


PARTS = [
    ("nbd1p1", "a partition, not a whole device", "name the device: nbd1"),
    ("/x/PART", "a partition, not a whole device", "name the device: /dev/nbd1"),
    ("/srv/a b", "/dev/nbd1 is mounted there", "name the device: /dev/nbd1"),
    ("/srv/a b/", "/dev/nbd1 is mounted there", "name the device: /dev/nbd1"),
]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("text", "cause", "hint"), PARTS)
def test_a_part_and_a_mount_point_are_answered_with_the_device(text: str, cause: str, hint: str) -> None:
    for call in (names.find, names.device_at):
        with pytest.raises(Malformed) as caught:
            call(text)
        assert caught.value.cause == cause
        assert caught.value.hint == hint


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("text", ["/x/DM", "/home", "/x/nothing", "sda", "./nbd0", "db", "nbd://db1"])
def test_anything_else_may_mean_something_else(text: str) -> None:
    assert names.find(text) is None


@pytest.mark.usefixtures("host")
def test_a_tag_is_answered_with_the_device() -> None:
    with pytest.raises(Malformed) as caught:
        names.device_at("web")
    assert str(caught.value) == "'web': no device, but the tag of /dev/nbd1"
    assert caught.value.hint == "name the device: /dev/nbd1"


@pytest.mark.usefixtures("host")
def test_a_link_for_a_tag_that_is_gone_means_that_nothing_is_attached() -> None:
    with pytest.raises(NotAttached):
        names.find("/dev/disk/by-nbd/vm1")
