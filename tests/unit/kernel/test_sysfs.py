# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's view in /sys, on one of our own."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from host import NBD0, Host, pretend

from nbdattach.errors import KernelRefused
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel, Stat


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return pretend(tmp_path, monkeypatch)


def test_without_a_driver_there_is_no_instance_of_it(host: Host) -> None:
    assert sysfs.driver_instance() == 0


def test_a_driver_that_was_loaded_anew_is_another_instance(host: Host) -> None:
    module = host.sys / "module/nbd"
    module.mkdir(parents=True)
    first = sysfs.driver_instance()
    assert first != 0
    (module / "refcnt").write_text("2")
    assert sysfs.driver_instance() == first
    module.rename(module.with_name("unloaded"))  # so that its number stays taken, as /sys never gives one twice
    assert sysfs.driver_instance() == 0
    module.mkdir()
    assert sysfs.driver_instance() not in (0, first)


def test_a_machine_without_sys_is_refused_and_not_taken_for_one_without_devices(host: Host) -> None:
    """As a container may be; connect of an image and disconnect --all ask for all devices first."""
    (host.sys / "block").rmdir()
    with pytest.raises(KernelRefused) as caught:
        sysfs.devices()
    assert str(caught.value) == f"{host.sys}: not mounted, so devices cannot be examined"


# Documentation/block/stat.rst: 11 fields, since 4.18 four more for discards, since 5.5 two more for flushes.
@pytest.mark.parametrize(
    ("stat", "completed"),
    [
        (None, 0),
        ("", 0),
        ("  1 0 8 0 20 0 8 0 0 0 0", 21),
        ("  1 0 8 0 20 0 8 0 0 0 0 300 0 0 0", 321),
        ("  1 0 8 0 20 0 8 0 7 0 0 300 0 0 0 4000 0\n", 4321),
    ],
)
def test_requests_of_every_kind_are_counted_once_they_are_done(host: Host, stat: str | None, completed: int) -> None:
    host.attach()
    if stat is not None:
        (host.sys / "block/nbd0/stat").write_text(stat)
    assert Kernel(NBD0).completed == completed


STAT = "  1 0 8 0 20 0 8 0 {} 0 0\n"


@pytest.mark.parametrize(
    ("device", "partition", "inflight", "pending"),
    [(0, 0, "0 0", 0), (0, 2, "0 2", 4), (1, 0, "0 0", 1), (0, 1, "0 0", 1), (0, 0, "1 2", 3), (None, 0, "0 0", 1)],
)
def test_a_request_that_any_counter_knows_is_not_done(
    host: Host, device: int | None, partition: int, inflight: str, pending: int
) -> None:
    """Linux 6.12 counts a partition's there, later ones also at the device; an unreadable counter is not quiet."""
    host.attach()
    block = host.sys / "block/nbd0"
    part = host.sys / "class/block/nbd0/nbd0p1"
    (block / "nbd0p1").mkdir()
    part.mkdir(parents=True, exist_ok=True)
    (part / "partition").write_text("1\n")
    if device is not None:
        (block / "stat").write_text(STAT.format(device))
    (block / "nbd0p1/stat").write_text(STAT.format(partition))
    (block / "inflight").write_text(f"{inflight}\n")
    assert Kernel(NBD0).pending == pending


@pytest.mark.parametrize(
    ("stat", "found"),
    [
        (None, None),
        ("", None),
        ("  1 0 8 0 20 0 9 0", None),
        ("  1 2 8 4 20 6 9 8 7 10 11", Stat(read=8 * 512, written=9 * 512, inflight=7, requests=21, waited=0.012)),
        (
            "  1 2 8 4 20 6 9 8 7 10 11 12 13 14 15 16 17\n",
            Stat(read=8 * 512, written=9 * 512, inflight=7, requests=49, waited=0.044),
        ),
    ],
)
def test_counters_are_told_in_bytes(host: Host, stat: str | None, found: Stat | None) -> None:
    host.attach()
    if stat is not None:
        (host.sys / "block/nbd0/stat").write_text(stat)
    assert Kernel(NBD0).stat == found


def test_a_process_without_descriptors_does_not_take_a_device_for_detached(host: Host) -> None:
    host.attach()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Kernel(NBD0).pid  # noqa: B018 - it reads
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
