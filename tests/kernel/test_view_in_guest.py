# SPDX-License-Identifier: GPL-2.0-or-later
"""`status --watch` on a real device shows the work of a writer."""

from __future__ import annotations

import pytest
from load import Load
from servers import nbdkit
from terminal import terminal
from tool import attached, command, eventually

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor


def test_a_writer_is_seen_at_work() -> None:
    with nbdkit("memory", "16M") as server, attached(server.uri), Load("/dev/nbd0", writers=2, pause=0.01) as load:
        load.see_it_run()
        with terminal(command("status", "--watch")) as made:
            made.see("1 device attached", "/dev/nbd0", "connected", server.uri)
            # Both rates, drawn over the dashes that stood there for the first second.
            made.see_match(r"[1-9][0-9.]* [KM]iB.*[1-9][0-9.]* [KM]iB")
            made.see("█")
            made.type("q")
            assert made.end() == 0
            assert made.modes() == made.before
            assert "\x1b[?1049h" in made.said
            assert made.said.rstrip().rpartition("\x1b[?1049l")[2].count("nbd") == 0
        assert not load.errors


def test_requests_that_wait_for_a_server_are_seen() -> None:
    with (
        nbdkit("--filter=delay", "memory", "16M", "delay-write=5") as server,
        attached(server.uri),
        Load("/dev/nbd0", writers=3),
    ):
        eventually(lambda: Kernel(Device(0)).inflight == 3)
        with terminal(command("status", "--watch", "nbd0")) as made:
            made.see_match(r"/dev/nbd0 +connected +- +- +3\b")
            made.type("\x03")
            assert made.end() == 0
            assert made.modes() == made.before
