# SPDX-License-Identifier: GPL-2.0-or-later
"""One export is attached for writing at one device only, by whatever name its server is called."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.deadline import Deadline
from nbdattach.errors import DeviceInUse
from nbdattach.operations import twice
from nbdattach.protocol.constants import NBD_FLAG_READ_ONLY
from nbdattach.protocol.target import Target, parse_target
from nbdattach.server_of_ours import OwnServer

RECORD = Record("db", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711, address="10.0.0.1")

NAMES = {"db1": ["10.0.0.1"], "other-name": ["10.0.0.1", "10.0.0.2"], "db3": ["10.0.0.3"]}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """nbd0 holds RECORD."""
    made = pretend(tmp_path, monkeypatch)
    monkeypatch.setattr(twice, "addresses_of", lambda target, _: NAMES.get(target.host, []))
    monkeypatch.setattr(twice, "is_here", lambda host: host == "10.0.0.9")
    made.attach(NBD0, tag="db")
    state.save(NBD0, RECORD)
    return made


def refused(target: Target, address: str | None) -> bool:
    try:
        twice.Wanted(target, target.export, address).refuse()
    except DeviceInUse as error:
        assert error.exit_code == 7
        return True
    return False


def locked_alike(one: Target, address: str | None, other: Target, other_address: str | None) -> bool:
    """Whether commands for both wait for one another."""
    names = twice.Wanted(one, "disk", address).names, twice.Wanted(other, "disk", other_address).names
    return not set(names[0]).isdisjoint(names[1])


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("uri", "address", "same"),
    [
        ("nbd://db1/disk", None, True),
        ("nbds://db1/disk", "10.0.0.1", True),
        ("nbd://10.0.0.1/disk", "10.0.0.1", True),
        ("nbd://alias/disk", "10.0.0.1", True),
        ("nbd://alias/disk", "10.0.0.2", False),
        ("nbd://alias/disk", None, False),
        ("nbd://db1/root", "10.0.0.1", False),
        ("nbd://db1:10810/disk", "10.0.0.1", False),
        ("nbd+unix:///disk?socket=/run/s", None, False),
        ("nbd://DB1./disk", None, True),
        ("nbd://[::ffff:10.0.0.1]/disk", "::ffff:10.0.0.1", True),
    ],
)
def test_the_server_is_known_by_its_name_or_its_address(uri: str, address: str | None, same: bool) -> None:
    assert refused(parse_target(uri, None), address) is same


@pytest.mark.usefixtures("host")
def test_the_refusal_names_the_device_and_the_ways_out() -> None:
    with pytest.raises(DeviceInUse) as caught:
        twice.Wanted(parse_target("nbd://db1/disk", None), "disk", None).refuse()
    cause = "attached read-write at /dev/nbd0 already; two file systems that write to one disk destroy it"
    assert str(caught.value) == f"nbd://db1/disk: {cause}"
    hint = "use /dev/nbd0, or attach it with --read-only, or with --shared if its users know of each other"
    assert caught.value.hint == hint


def test_a_socket_is_known_by_its_place(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "s")
    there = Target(socket=str(tmp_path / "s"), export="disk")
    state.save(NBD0, replace(RECORD, target=there.uri, address=None))
    assert refused(replace(there, socket=str(tmp_path / "link")), None)
    assert not refused(replace(there, socket=str(tmp_path / "other")), None)
    assert locked_alike(there, None, replace(there, socket=str(tmp_path / "link")), None)
    assert host.files


@pytest.mark.usefixtures("host")
def test_a_socket_is_the_same_under_each_of_its_paths(tmp_path: Path) -> None:
    """A hard link, or a bind mount, is no symbolic link that could be followed."""
    place = Target(socket=str(tmp_path / "s"), export="disk")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place.socket)
        os.link(place.socket, tmp_path / "other")
        other = replace(place, socket=str(tmp_path / "other"))
        state.save(NBD0, replace(RECORD, target=place.uri, address=None))
        assert refused(other, None)
        assert locked_alike(place, None, other, None)
        assert not refused(replace(other, export="root"), None)


@pytest.mark.usefixtures("host")
def test_a_server_of_our_own_is_one_too(tmp_path: Path) -> None:
    """Its socket is in `status`; and `reconnect` may have moved the device away from it."""
    own = Target(socket=str(tmp_path / "s"), export="")
    server = OwnServer("/disk.raw", str(tmp_path), ("qemu-nbd",))
    state.save(NBD0, replace(RECORD, target=own.uri, export="", address=None, server=server))
    assert refused(own, None)
    state.save(NBD0, replace(RECORD, target="nbd://db1/disk", server=server))
    assert refused(parse_target("nbd://db1/disk"), "10.0.0.1")


@pytest.mark.usefixtures("host")
def test_a_device_may_move_to_where_it_is_but_not_to_where_another_one_is() -> None:
    target = parse_target("nbd://alias/disk")
    twice.Wanted(target, "disk", "10.0.0.1").refuse(moving=NBD0)
    with pytest.raises(DeviceInUse) as caught:
        twice.Wanted(target, "disk", "10.0.0.1").refuse(moving=NBD1)
    cause = "attached read-write at /dev/nbd0 already; two file systems that write to one disk destroy it"
    assert str(caught.value) == f"nbd://alias/disk: {cause}"
    assert caught.value.hint == "nbdattach disconnect /dev/nbd0, or use --shared if its users know of each other"


def test_what_is_read_only_or_gone_or_at_another_server_now_is_no_obstacle(host: Host) -> None:
    target = parse_target("nbd://db1/disk", None)
    state.save(NBD0, replace(RECORD, flags=NBD_FLAG_READ_ONLY))
    assert not refused(target, None)
    state.save(NBD0, replace(RECORD, using="nbd://db2/disk", address="10.0.0.2"))
    assert not refused(target, "10.0.0.1")
    assert refused(parse_target("nbd://db2/disk", None), None)
    (host.sys / "block/nbd0/pid").unlink()
    assert not refused(parse_target("nbd://db2/disk", None), None)


def test_a_disconnect_that_may_yet_fail_frees_nothing(host: Host) -> None:
    """The kernel refuses all writes meanwhile, and for longer if the command is killed."""
    (host.sys / "block/nbd0/ro").write_text("1\n")
    assert refused(parse_target("nbd://db1/disk"), None)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("there", "address", "wanted", "wanted_address", "same"),
    [
        ("nbd://127.0.0.1/disk", "127.0.0.1", "nbd://[::1]/disk", "::1", True),
        ("nbd://localhost/disk", "::1", "nbd://127.0.0.1/disk", "127.0.0.1", True),
        ("nbd://10.0.0.9/disk", "10.0.0.9", "nbd://localhost/disk", "127.0.0.1", True),
        ("nbd://10.0.0.9/disk", "10.0.0.9", "nbd://10.0.0.1/disk", "10.0.0.1", False),
        ("nbd://127.0.0.1/disk", "127.0.0.1", "nbd://127.0.0.2/disk", "127.0.0.2", False),
        ("nbd://localhost/disk", "::1", "nbd://localhost:10810/disk", "::1", False),
        ("nbds://other-name/disk", None, "nbd://10.0.0.1/disk", "10.0.0.1", True),
        ("nbds://db1/disk", None, "nbds://other-name/disk", None, True),
        ("nbds://db3/disk", None, "nbds://other-name/disk", None, False),
        ("nbds://unknown/disk", None, "nbds://other-name/disk", None, False),
    ],
)
def test_a_server_is_the_same_by_each_of_its_addresses(
    there: str, address: str | None, wanted: str, wanted_address: str | None, same: bool
) -> None:
    """Without an address, as over a relay, its name is looked up. All of this host are those of one server."""
    state.save(NBD0, replace(RECORD, target=there, address=address))
    target = parse_target(wanted)
    assert refused(target, wanted_address) is same
    if same and address and wanted_address:
        assert locked_alike(parse_target(there), address, target, wanted_address)


@pytest.mark.usefixtures("host")
def test_the_other_servers_of_the_same_data_hold_it_too() -> None:
    """Those of --also: of the attachment that is there, and of the new one."""
    state.save(NBD0, replace(RECORD, also=("nbd://db2/disk", "nbd://db3:10810/disk")))
    assert refused(parse_target("nbd://db2/disk"), "10.0.0.2")
    assert not refused(parse_target("nbd://db3/disk"), "10.0.0.3")
    also = [parse_target("nbd://db4/disk"), parse_target("nbd://db3:10810/disk")]
    with pytest.raises(DeviceInUse):
        twice.Wanted(parse_target("nbd://db9/disk"), "disk", None, also).refuse()
    twice.Wanted(parse_target("nbd://db9/disk"), "disk", None, also[:1]).refuse()
    state.save(NBD0, replace(RECORD, using="nbd://db2/disk", address="10.0.0.2", also=("nbd://db2/disk",)))
    assert refused(parse_target("nbd://db1/disk"), None)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("there", "address", "wanted", "wanted_address"),
    [
        ("nbd://both/disk", "2001:db8::1", "nbd://10.0.0.5/disk", "10.0.0.5"),
        ("nbd://10.0.0.5/disk", "10.0.0.5", "nbd://both/disk", "2001:db8::1"),
        ("nbd://both/disk", "2001:db8::1", "nbd://both.example/disk", "10.0.0.5"),
    ],
)
def test_a_server_with_two_addresses_is_one(
    there: str, address: str, wanted: str, wanted_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMES, "both", ["2001:db8::1", "10.0.0.5"])
    state.save(NBD0, replace(RECORD, target=there, address=address))
    assert refused(parse_target(wanted), wanted_address)
    assert locked_alike(parse_target(there), address, parse_target(wanted), wanted_address)


@pytest.mark.usefixtures("host")
def test_the_other_servers_are_known_by_each_of_their_names_too() -> None:
    """db3.example and db3, say: of the attachment that is there, and of the new one."""
    state.save(NBD0, replace(RECORD, also=("nbd://db3/disk",)))
    assert refused(parse_target("nbd://alias/disk"), "10.0.0.3")
    state.save(NBD0, replace(RECORD, target="nbd://alias/disk", address="10.0.0.3"))
    also = [parse_target("nbd://db3/disk")]
    with pytest.raises(DeviceInUse):
        twice.Wanted(parse_target("nbd://db9/disk"), "disk", "10.0.0.9", also).refuse()
    names = twice.Wanted(parse_target("nbd://db9/disk"), "disk", "10.0.0.9", also).names
    assert not set(names).isdisjoint(twice.Wanted(parse_target("nbd://alias/disk"), "disk", "10.0.0.3").names)
    assert names == sorted(names)


@pytest.mark.usefixtures("host")
def test_names_that_cannot_be_looked_up_cost_their_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_: Target, deadline: Deadline) -> list[str]:
        waited.append(deadline.remaining())
        deadline.sleep(0.1)
        return []

    waited: list[float] = []
    monkeypatch.setattr(twice, "_LOOKUP", 0.1)
    monkeypatch.setattr(twice, "addresses_of", waits)
    state.save(NBD0, replace(RECORD, also=("nbd://db2/disk", "nbd://db3/disk")))
    twice.Wanted(parse_target("nbd://db4/disk"), "disk", None).refuse()
    assert [bool(seconds) for seconds in waited] == [True, False, False, False]


@pytest.mark.usefixtures("host")
def test_a_name_of_another_server_that_cannot_be_looked_up_takes_no_time_from_the_one_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which may be known by its second address only."""
    time_left = [True]

    def addresses(target: Target, _: Deadline) -> list[str]:
        if target.host == "alias" and time_left:
            return ["10.0.0.1", "fd00::1"]
        time_left.clear()
        return []

    monkeypatch.setattr(twice, "addresses_of", addresses)
    with pytest.raises(DeviceInUse):
        twice.Wanted(parse_target("nbd://alias/disk"), "disk", "fd00::1", [parse_target("nbd://away/disk")]).refuse()
