# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of many targets at the same time: how many, and the others if one goes wrong."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from functools import partial

import pytest

from nbdattach.cli import checking
from nbdattach.cli.reach import There
from nbdattach.errors import NbdattachError
from nbdattach.own_server.source import may_be_source
from nbdattach.reporter import silent

MANY = 64
# Less than the time after which the start of a server counts as a wait.
ROUND_TRIPS = 0.1


class Servers:
    """All of them are so far away; `most` is how many were asked at the same time."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._mutex = threading.Lock()

    def reach(self) -> AbstractContextManager[There]:
        with self._mutex:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(ROUND_TRIPS)
        with self._mutex:
            self._now -= 1
        raise NbdattachError("db1", "is far away", "wait")


def test_far_servers_do_not_wait_for_each_other() -> None:
    servers = Servers()
    ways = [(f"db{number}", servers.reach) for number in range(MANY)]
    assert len([*checking.checked(ways, 1.0, silent)]) == MANY
    assert servers.most > 4 * checking._FEW


@pytest.mark.parametrize(
    ("text", "may_start"),
    [
        ("db1", False),
        ("[::1]:10809", False),
        ("nbd://db1/a.b", False),
        ("disk.qcow2", True),
        ("./disk", True),
        ("/srv/disk", True),
        ("[ nbdkit memory 1G ]", True),
    ],
)
def test_servers_that_we_have_to_start_do_not_crowd_the_machine(text: str, may_start: bool) -> None:
    assert may_be_source(text) == may_start


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_an_error_of_this_machine_at_one_target_loses_no_result(error: Exception) -> None:
    def reach(number: int) -> AbstractContextManager[There]:
        raise error if number == 1 else NbdattachError(f"db{number}", "refused", "wait")

    ways = [(f"db{number}", partial(reach, number)) for number in range(9)]
    found = [*checking.checked(ways, 1.0, silent)]
    assert [name for name, _ in found] == [name for name, _ in ways]
    assert str(error) in str(found[1][1].error)
    assert all("refused" in str(one.error) for number, (_, one) in enumerate(found) if number != 1)
