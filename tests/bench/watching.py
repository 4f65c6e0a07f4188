# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU time of the monitor's watches, at rest and while their server is away, counted by this machine's own clock.

In a guest of user-mode Linux the same work takes several times as long, since each system call does. Here the watches,
their sockets and their files are real, and a server that is away refuses real connections. Of the kernel's driver there
are only its files in /sys, and a socket for messages that sends none.

Run as a program, it is one measurement: it prints milliseconds of CPU time a second and a device.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from figures import Row

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.connection.kernel_socket import Link
from nbdattach.device import Device
from nbdattach.kernel import netlink, sysfs
from nbdattach.monitor.remembering import Remembering
from nbdattach.monitor.watch import Watch

DEVICES = 16
SECONDS = 20
MOST_ROUNDS = 5
# In milliseconds.
AIMS = {"at rest": "<= 0.2", "server away": "<= 0.15"}
OURS = "nbdattach"
_STAT = "42 0 4242 7 42 0 4242 7 0 14 14 0 0 0 0 0 0\n"


def measure(rounds: int) -> list[Row]:
    rows = [Row(f"{DEVICES} {what}", "ms", OURS, {OURS: []}, {OURS: aim}) for what, aim in AIMS.items()]
    for _ in range(min(rounds, MOST_ROUNDS)):
        for row, what in zip(rows, AIMS, strict=True):
            done = subprocess.run([sys.executable, __file__, what], stdout=subprocess.PIPE, text=True, check=True)
            row.samples[OURS].append(float(done.stdout))
    return rows


class Silent:
    """The place of `netlink.Family`: the driver knows that a connection is dead, so nothing is to be asked."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def reconfigure(self, *_: object, **__: object) -> None: ...


@contextmanager
def watched(folder: str) -> Iterator[tuple[list[Watch], socket.socket]]:
    """The watches of devices; their server listens at that socket, and has accepted them."""
    with ExitStack() as end:
        for owner, name, value in (
            (sysfs, "SYS", f"{folder}/sys"),
            (state, "RUN", f"{folder}/run"),
            (netlink, "Family", Silent),
            (Remembering, "tick", lambda _: True),  # the content is known
            (Remembering, "look_now", lambda _: None),
        ):
            end.enter_context(mock.patch.object(owner, name, value))
        server = end.enter_context(socket.create_server(("127.0.0.1", 0), backlog=DEVICES))
        yield [_watch(Device(number), server, end) for number in range(DEVICES)], server


def _watch(device: Device, server: socket.socket, end: ExitStack) -> Watch:
    """With the attributes that the driver gives an attached device."""
    host, port = server.getsockname()
    pid = os.getpid()
    files = Path(sysfs.SYS, "block", device.name)
    Path(files, "queue").mkdir(parents=True)
    for name, content in (("stat", _STAT), ("pid", f"{pid}\n"), ("backend", f"{device.name}\n"), ("size", "32768\n")):
        Path(files, name).write_text(content)
    Path(files, "inflight").write_text("       0        0\n")
    record = Record(device.name, f"nbd://{host}:{port}", "", "netlink", 1, "2026-01-02T03:04:05Z", pid, size=16 << 20)
    record = dataclasses.replace(record, reconnect=True, on_loss=3600.0, address=host, block_size=512)
    state.save(device, record)
    ours = socket.create_connection((host, port))
    end.enter_context(server.accept()[0])
    made = Watch(device, record, [Link(ours)], lambda *_: None)
    made._mending._settled = True
    return made


def spent(watches: list[Watch]) -> float:
    """As the monitor does, each second."""
    before, began = time.process_time(), time.monotonic()
    for number in range(SECONDS):
        time.sleep(max(0.0, began + number - time.monotonic()))
        for watch in watches:
            assert watch.tick()
    time.sleep(max(0.0, began + SECONDS - time.monotonic()))
    return (time.process_time() - before) * 1000 / SECONDS / len(watches)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, watched(folder) as (watches, server):
        for watch in watches:
            watch.tick()
        at_rest = [watch for watch in watches if watch._is_at_rest]
        assert at_rest == watches, f"only {len(at_rest)} are at rest"
        if sys.argv[1] == "server away":
            server.close()
            for watch in watches:
                watch.cut()
                watch.check()
            time.sleep(1.0)  # the first tries
            assert all(watch._mending._outage for watch in watches)
        print(spent(watches))
        for watch in watches:
            watch.stop()


if __name__ == "__main__":
    main()
