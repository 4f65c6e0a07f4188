# SPDX-License-Identifier: GPL-2.0-or-later
"""Where new connections are made, and when."""

from __future__ import annotations

import dataclasses

import pytest

from nbdattach.attached.state import Record
from nbdattach.monitor import places
from nbdattach.monitor.places import OTHER_ADDRESSES, OTHER_SERVERS, Place, in_use
from nbdattach.protocol.target import Target
from nbdattach.server_of_ours import OwnServer

RECORD = Record(
    "tag", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 42, address="192.0.2.1",
    also=("nbd://db2/disk", "nbd://db3/disk"),
)  # fmt: skip
FIRST = Place(Target("db1", export="disk"), "192.0.2.1")


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "addresses_of", lambda *_: ["192.0.2.9", "192.0.2.1", "2001:db8::1"])


def named(gone: float, record: Record = RECORD) -> list[str]:
    return [f"{one.target.host} {one.address}" for one in places.places(record, gone)]


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (0.0, ["db1 192.0.2.1"]),
        (OTHER_SERVERS - 0.1, ["db1 192.0.2.1"]),
        (OTHER_SERVERS, ["db1 192.0.2.1", "db2 None", "db3 None"]),
        (
            OTHER_ADDRESSES,
            ["db1 192.0.2.1", "db2 None", "db3 None", "db1 192.0.2.9", "db1 2001:db8::1"],
        ),
    ],
)
def test_the_address_in_use_is_the_only_one_for_long(gone: float, expected: list[str]) -> None:
    assert named(gone) == expected
    assert [one.elsewhere for one in places.places(RECORD, gone)] == [False] + [True] * (len(expected) - 1)


def test_an_address_that_the_name_no_longer_has_is_not_waited_for() -> None:
    record = dataclasses.replace(RECORD, address="192.0.2.7")
    assert named(0.0, record) == ["db1 192.0.2.7"]
    assert named(0.1, record) == ["db1 192.0.2.7", "db1 192.0.2.9", "db1 192.0.2.1", "db1 2001:db8::1"]


ALONE = dataclasses.replace(RECORD, also=())
UNIX = dataclasses.replace(ALONE, target="nbd+unix:///disk?socket=/run/s", address=None)
NUMERIC = dataclasses.replace(ALONE, target="nbd://192.0.2.1/disk")
OURS = dataclasses.replace(UNIX, server=OwnServer("/d.img", "/run/s", ("qemu-nbd",)))


@pytest.mark.parametrize(
    ("record", "gone", "seconds"),
    [
        (UNIX, 0, 30),
        (NUMERIC, 100, 30),
        (OURS, 100, 0),  # a try starts it again
        (ALONE, 0, 1),  # its name may lead elsewhere soon
        (ALONE, 8, 2),
        (ALONE, 100, 5),
        (ALONE, OTHER_ADDRESSES - 3, 3),
        (RECORD, OTHER_SERVERS - 0.5, 0.5),
        (RECORD, OTHER_SERVERS, 0),  # another one may be ready
        (dataclasses.replace(RECORD, target="nbd://192.0.2.1/disk"), 2, 1),
    ],
)
def test_a_try_is_made_when_it_may_say_more_than_probes(record: Record, gone: float, seconds: float) -> None:
    assert places.probes_suffice(record, gone) == pytest.approx(seconds)


def test_the_server_in_use_is_the_first() -> None:
    record = dataclasses.replace(RECORD, using="nbd://db3/disk", address="192.0.2.9")
    assert named(OTHER_SERVERS, record) == ["db3 192.0.2.9", "db1 None", "db2 None"]


def test_a_hand_over_that_has_begun_goes_on_at_its_target() -> None:
    record = dataclasses.replace(RECORD, moving_to="nbd://db9/disk", address=None)
    assert named(OTHER_ADDRESSES + 1, record) == ["db9 None"]


def test_a_server_is_verified_by_its_name_though_it_is_dialled_at_its_address() -> None:
    assert FIRST.dialled == Target("192.0.2.1", export="disk")
    safe = Place(Target("db1", export="disk", tls=True, tls_ca="/ca"), "192.0.2.1")
    assert safe.dialled == Target("192.0.2.1", export="disk", tls=True, tls_ca="/ca", tls_hostname="db1")
    named_otherwise = Place(Target("db1", tls=True, tls_hostname="x"), "2001:db8::1")
    assert named_otherwise.dialled == Target("2001:db8::1", tls=True, tls_hostname="x")


def test_a_unix_socket_has_no_address() -> None:
    target = Target(socket="/run/s", export="disk")
    assert Place(target, "192.0.2.1").dialled == target
    assert in_use(dataclasses.replace(RECORD, target="nbd+unix:///disk?socket=/run/s")).dialled == target
