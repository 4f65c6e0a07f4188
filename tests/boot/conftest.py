# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot tests: the real systemd in a guest, and real servers on this machine, whose disks are checked afterwards."""

from __future__ import annotations

import pytest
from guest import HOST, TAP, root_of_guest
from tap import make_network


def pytest_configure(config: pytest.Config) -> None:
    try:
        make_network(TAP, HOST, "boot")
    except RuntimeError as error:
        pytest.exit(str(error), returncode=4)
    root_of_guest()  # made here if it is missing, and not within the time of a test
