# SPDX-License-Identifier: GPL-2.0-or-later
"""Many server restarts under load: no error, no wrong byte, and the monitor does not grow.

As many as SOAK_ROUNDS says; `make soak` runs a thousand.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from load import Load
from test_monitor import monitor_pid, resident_kb
from test_restart import nothing_goes_wrong, place, state_of
from tool import ALL, attached, eventually

pytestmark = pytest.mark.netlink
ROUNDS = int(os.environ.get("SOAK_ROUNDS") or (40 if ALL else 8))
WARM_UP = 10 if ROUNDS > 20 else 4
GROWTH_KB = 2 << 10


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.timeout(60 + 6 * ROUNDS)
def test_server_restarts_under_load(tmp_path: Path) -> None:
    chance = random.Random(3)
    places = [place(tmp_path, "one"), place(tmp_path, "four", "unix")]
    with ExitStack() as servers, ExitStack() as stack:
        running = [one.serve() for one in places]
        loads = []
        for number, (connections, one) in enumerate(zip((1, 4), places, strict=True)):
            server = running[number].__enter__()
            stack.enter_context(attached(server.uri, f"nbd{number}", connections=connections))
            load = Load(f"/dev/nbd{number}", writers=2, pause=0.002)
            stack.enter_context(nothing_goes_wrong(load, one.image))
            loads.append(load)
        servers.callback(lambda: [one.__exit__(None, None, None) for one in running])
        pid = monitor_pid()
        early = (0, 0, 0)
        for turn in range(ROUNDS):
            for number, one in enumerate(places):
                loads[number].see_it_run(5)
                running[number].__exit__(None, None, None)
                time.sleep(chance.random() * 0.2)
                running[number] = one.serve()
                running[number].__enter__()
            assert not any(load.errors for load in loads), [load.errors for load in loads]
            if turn == WARM_UP:
                early = resident_kb(pid), descriptors(pid), threads(pid)
        for load in loads:
            load.see_it_run()
        eventually(lambda: {state_of(load.device) for load in loads} == {"connected"})
        eventually(lambda: threads(pid) <= early[2])
        # It holds its duplicates of connections that it has replaced for some seconds more.
        eventually(lambda: descriptors(pid) <= early[1] + 4)
        late = resident_kb(pid), descriptors(pid), threads(pid)
        print(
            f"{ROUNDS} restarts of each of 2 servers: kB, descriptors, threads {early} after {WARM_UP}, {late} at last"
        )
        assert monitor_pid() == pid
        assert late[0] - early[0] <= GROWTH_KB
