# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel tests: run inside a guest only (tests/lab/guest.py), never against the machine's own devices."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from leftovers import beside_the_monitor, clear_away, no_monitor, spoilt
from tool import eventually


def pytest_configure(config: pytest.Config) -> None:
    if "nbdattach.lab=1" not in Path("/proc/cmdline").read_text():
        pytest.exit("kernel tests run in a guest only: see tests/lab/README.md", returncode=4)
    subprocess.run(["modprobe", "nbd"], check=True)
    # Loads a module on some kernels. That is an event, and tests count events.
    socket.socket(socket.AF_INET6).close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """LAB_SHARE=KofN: the K-th of N shares; most tests wait more than they compute, so several guests run one suite."""
    share, _, shares = os.environ.get("LAB_SHARE", "1of1").partition("of")
    config.hook.pytest_deselected(items=[item for at, item in enumerate(items) if at % int(shares) != int(share) - 1])
    items[:] = items[int(share) - 1 :: int(shares)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the log of the driver and the monitor, because the guest is gone when a developer reads of it."""
    report = yield
    if report.failed:
        log = subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()
        said = [line for line in log if "nbd" in line][-60:]
        report.sections.append(("kernel log", "\n".join([*said, "the last lines of all:", *log[-20:]])))
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no device attached, none with a size, no process, no file of ours, no WRITE_ZEROES left on.

    A monitor may run on: to start one takes half a second, and no user starts one for each device.
    """
    if not request.node.get_closest_marker("any_monitor"):
        eventually(no_monitor)
    yield
    deadline = time.monotonic() + 60
    while left := beside_the_monitor():
        if time.monotonic() > deadline:
            clear_away()
            pytest.fail(f"left behind: {left}")
        time.sleep(0.05)
    if left := spoilt():
        load_driver_anew()
        if not request.node.get_closest_marker("spoils"):
            pytest.fail(f"left sending NBD_CMD_WRITE_ZEROES: {left}")


def load_driver_anew() -> None:
    # A device that was just detached may still be open, for udev or a closing file.
    eventually(lambda: subprocess.run(["modprobe", "-r", "nbd"], capture_output=True).returncode == 0)
    subprocess.run(["modprobe", "nbd"], check=True)
