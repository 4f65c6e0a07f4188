# SPDX-License-Identifier: GPL-2.0-or-later
"""DEVICE as users type it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.device import MAX_INDEX, Device, parse_device
from nbdattach.errors import Malformed

HINT = "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ..."


@pytest.mark.parametrize("index", [0, 1, 9, 10, 15, 16, 255, MAX_INDEX])
def test_both_ways_to_write_a_device(index: int) -> None:
    assert parse_device(f"nbd{index}") == parse_device(f"/dev/nbd{index}") == Device(index)


def test_name_and_path() -> None:
    assert (Device(7).name, Device(7).path) == ("nbd7", "/dev/nbd7")


def test_devices_sort_by_number() -> None:
    assert sorted([Device(10), Device(9)]) == [Device(9), Device(10)]


@pytest.mark.parametrize(
    "text",
    [
        "", "nbd", "/dev/nbd", "/dev/null", "/dev/sda", "/dev/loop0", "nbd-1", "nbd+1", "nbd01", "nbd1 ", " nbd1",
        "nbd0\n", "NBD0", "nbd٣", "dev/nbd0", "/dev//nbd0", "/dev/../nbd0", "./nbd0", "/tmp/nbd0", "nbd0x", "nbd0p",
        "nbd1048576", "nbd99999999999999999999",
    ],
)  # fmt: skip
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_device(text)
    shown = text.replace("\n", r"\n")
    assert str(caught.value) == f"'{shown}': not an nbd device"
    assert caught.value.hint == HINT
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("text", "whole"), [("/dev/nbd0p1", "/dev/nbd0"), ("nbd12p34", "nbd12")])
def test_partition_is_told_from_its_device(text: str, whole: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_device(text)
    assert str(caught.value) == f"'{text}': a partition, not a whole device"
    assert caught.value.hint == f"name the device: {whole}"


@given(st.one_of(st.text(), st.from_regex(r"(/dev/)?nbd[0-9]*(p[0-9]*)?\n?")))
def test_any_text_is_a_device_or_malformed(text: str) -> None:
    try:
        device = parse_device(text)
    except Malformed as malformed:
        assert str(malformed).isprintable()
    else:
        assert text in (device.name, device.path)


def test_port_in_the_place_of_a_device() -> None:
    with pytest.raises(Malformed) as caught:
        parse_device("10809")
    assert caught.value.hint == "a port is written HOST:PORT, a device /dev/nbd0"
