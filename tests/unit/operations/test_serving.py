# SPDX-License-Identifier: GPL-2.0-or-later
"""Which device has an image already, and options that an image cannot have. Attaching needs the driver: `kernel`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.backends import choice
from nbdattach.connect_options import USUAL, ConnectOptions, ImageOptions
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, Malformed, Refused
from nbdattach.operations import serving
from nbdattach.own_server import start
from nbdattach.own_server.plan import Plan
from nbdattach.own_server.source import Source
from nbdattach.reporter import QUIET
from nbdattach.server_of_ours import Image, OwnServer

RECORD = Record("t", "nbd+unix:///?socket=/run/s", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711)
COMMAND = OwnServer("[ nbdkit memory 1G ]", "/run/nbdattach/servers/1", ("/usr/bin/nbdkit", "memory", "1G"))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    made.attach(tag="t")
    made.attach(NBD1, tag="t")
    return made


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    return os.path.realpath(path)


def server_of(path: str, snapshot: bool = False) -> OwnServer:
    status = os.stat(path)
    found = Image(path, "raw", f"{status.st_dev}:{status.st_ino}", snapshot=snapshot)
    return OwnServer(path, "/run/nbdattach/servers/2", ("/usr/bin/qemu-nbd", path), image=found)


def attached(source: Source) -> list[Device]:
    return [device for device, _ in serving.named(source)]


@pytest.mark.usefixtures("host")
def test_an_image_is_known_by_each_of_its_names(image: str) -> None:
    os.link(image, f"{image}.link.img")
    state.save(NBD1, replace(RECORD, server=server_of(image)))
    assert attached(Source(path=image)) == [NBD1]
    assert attached(Source(path=f"{image}.link.img")) == [NBD1]


@pytest.mark.usefixtures("host")
def test_another_image_and_a_missing_one_are_attached_nowhere(image: str, tmp_path: Path) -> None:
    (tmp_path / "other.img").touch()
    state.save(NBD0, replace(RECORD, server=server_of(image)))
    state.save(NBD1, RECORD)
    for name in ("other.img", "missing.img"):
        assert attached(Source(path=f"{tmp_path}/{name}")) == []


@pytest.mark.usefixtures("host")
def test_an_image_that_was_deleted_is_known_by_its_name(image: str) -> None:
    state.save(NBD0, replace(RECORD, server=server_of(image)))
    os.unlink(image)
    assert attached(Source(path=image)) == [NBD0]


@pytest.mark.usefixtures("host")
def test_a_command_is_known_by_its_words() -> None:
    state.save(NBD0, replace(RECORD, server=COMMAND))
    assert attached(Source(words=("nbdkit", "memory", "1G"))) == [NBD0]
    assert attached(Source(words=("nbdkit", "memory", "2G"))) == []


@pytest.mark.parametrize(
    ("options", "thing"),
    [(ConnectOptions(also=("nbd://db1",)), "--also"), (ConnectOptions(swap=True), "--swap")],
)
def test_options_that_need_a_server_elsewhere_are_refused(image: str, options: ConnectOptions, thing: str) -> None:
    """Before the driver is loaded, and before a server is started."""
    with pytest.raises(Malformed) as caught:
        serving.attach(Source(path=image), None, options, USUAL)
    assert caught.value.thing == thing


SAME = ConnectOptions(tag="t")


def required(image: str, options: ConnectOptions = SAME, wanted: ImageOptions = USUAL, snapshot: bool = False) -> None:
    record = replace(RECORD, server=server_of(image, snapshot))
    serving._require_same(NBD0, record, Source(path=image), None, options, wanted)


def test_an_image_may_be_attached_again_in_the_same_way(image: str) -> None:
    required(image)
    required(image, wanted=ImageOptions(format="raw"))
    required(image, wanted=ImageOptions(snapshot=True), snapshot=True)


@pytest.mark.parametrize(
    ("options", "wanted", "snapshot", "how"),
    [
        (ConnectOptions(tag="u"), USUAL, False, " already, with the tag t"),
        (SAME, ImageOptions(snapshot=True), False, " without --snapshot"),
        (SAME, USUAL, True, " with --snapshot"),
        (SAME, ImageOptions(format="qcow2"), False, " as raw, not as qcow2"),
    ],
)
def test_an_image_that_is_attached_in_another_way_is_in_use(
    image: str, options: ConnectOptions, wanted: ImageOptions, snapshot: bool, how: str
) -> None:
    with pytest.raises(DeviceInUse) as caught:
        required(image, options, wanted, snapshot=snapshot)
    assert str(caught.value) == f"{image}: attached at /dev/nbd0{how}"
    assert caught.value.hint == "nbdattach disconnect /dev/nbd0"


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (ConnectOptions(tag="t", read_only=True), "read-write, not read-only"),
        (ConnectOptions(tag="t", read_write=True), "read-only, not read-write"),
    ],
)
def test_an_image_that_is_attached_for_less_or_more_is_in_use_by_its_name(
    host: Host, image: str, options: ConnectOptions, how: str
) -> None:
    """Not by that of the socket of its server, of which the user knows nothing; and another tag would not help."""
    (host.sys / "block/nbd0/ro").write_text(f"{options.read_write:d}\n")
    state.save(NBD0, replace(RECORD, server=server_of(image)))
    with pytest.raises(DeviceInUse) as caught:
        serving._attached_already(Source(path=image), None, options, USUAL, QUIET)
    assert str(caught.value) == f"/dev/nbd0: {image} is attached there {how}"
    assert caught.value.hint == "nbdattach disconnect /dev/nbd0"


def test_an_image_that_cannot_be_written_is_refused_if_the_user_wants_to_write(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user has not asked for --read-only."""
    planned = Plan(("/usr/bin/qemu-nbd",), True, server_of(image).image, unwritable="Read-only file system")
    monkeypatch.setattr(choice, "require_possible", lambda _: None)
    monkeypatch.setattr(start, "plan_of", lambda *_, **__: planned)
    with pytest.raises(Refused) as caught:
        serving._attach(Source(path=image), None, ConnectOptions(tag="t", read_write=True), USUAL, QUIET)
    assert str(caught.value) == f"{image}: it cannot be written: Read-only file system"
    assert caught.value.hint == "leave out --read-write to attach it read-only"


def test_another_part_of_an_attached_image_is_not_taken_for_the_same(image: str) -> None:
    """It has other data."""
    with pytest.raises(DeviceInUse):
        required(image, wanted=ImageOptions(offset=512))


def test_an_image_that_is_attached_elsewhere_is_in_use(image: str) -> None:
    with pytest.raises(DeviceInUse) as caught:
        serving._require_same(NBD0, replace(RECORD, server=server_of(image)), Source(path=image), NBD1, SAME, USUAL)
    assert str(caught.value) == f"{image}: attached at /dev/nbd0 already"
