# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor, killed (-9) at each step of remembering a disk and of moving the device: the next one goes on.

A mounted device moves from a server to another one of the same data, the first comes back with an older state, and is
refused; see `crash` for steps. Rare: each round takes half a minute. CRASH_EVERY=1 does all, CRASH_START=14 from there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash import Steps, become
from disks import KINDS, used
from leftovers import monitors
from test_failover import knows_place, uri
from test_restart import place, state_of, trouble_of
from tool import attached, digest_of, eventually, nbd, shell

from nbdattach.attached import memory, state
from nbdattach.attached.state import monitor_lives
from nbdattach.device import Device
from nbdattach.monitor import places

pytestmark = [pytest.mark.netlink, pytest.mark.rare, pytest.mark.timeout(7200)]
EVERY = int(os.environ.get("CRASH_EVERY") or 4)
START = int(os.environ.get("CRASH_START", "0"))
DEVICE = Device(0)
# Functions in which a step is one of remembering or of moving; the files of state are written by `attached.state`.
_OURS = ("attached.state.", "attached.memory.", "monitor.remembering.", "monitor.connecting.", "monitor.recorded.")
_HAND_OVER = "kernel.netlink.Family.reconfigure"
KIND = KINDS["ext4"]


class Mortal:
    """A monitor that dies at a step, and one like any other that is started in its place."""

    def __init__(self, folder: Path, last: str) -> None:
        self.log = folder / "steps"
        (folder / "said").touch()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                places.OTHER_SERVERS = 2.0
                become(("monitor",), str(folder / "said"), Steps(str(self.log), last))
            finally:
                os._exit(99)
        self._thread = threading.Thread(target=self._succeed, daemon=True)
        self._thread.start()

    def _succeed(self) -> None:
        os.waitpid(self.pid, 0)
        nbd("monitor", "-b")  # unless a command has started one

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._thread.join(60)

    @property
    def steps(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        ours = [one for one in lines if one.split(" ", 1)[1].startswith(_OURS) or _HAND_OVER in one]
        return [one for one in ours if "<module>" not in one]


@contextlib.contextmanager
def monitored(folder: Path, last: str) -> Iterator[Mortal]:
    for pid in monitors():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not monitors())
    made = Mortal(folder, last)
    try:
        eventually(monitor_lives)
        yield made
    finally:
        made.end()


def looked_after_writes() -> bool:
    found = memory.load(DEVICE)
    now = memory.moment_of(DEVICE)
    return knows_place() and found is not None and not found.moment.is_before_changes(now)


def course(folder: Path, last: str) -> list[str]:
    """All that may happen to the memory, with a monitor that dies at the step `last`; the steps that it made."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    first, second = (place(folder, name, mebibytes=64) for name in ("image", "stale"))
    image, stale = first.image, second.image
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with monitored(folder, last) as monitor, ExitStack() as servers, ExitStack() as end:
        server = servers.enter_context(first.serve())
        other = servers.enter_context(second.serve(image=image))
        end.enter_context(attached(uri(first), "nbd0", also=[uri(second)]))
        # The monitor may die at it, and one that has not made the connection refuses it.
        assert nbd("reconnect", "--trust", "nbd0").code in (0, 1, 6)
        end.enter_context(used(KIND))
        changed()
        server.kill()
        eventually(lambda: in_use() == uri(second) and state_of("nbd0") == "connected", 90)
        shutil.copyfile(image, stale)
        changed()
        changed()
        other.kill()
        before = digest_of(stale)
        server = servers.enter_context(first.serve(image=stale))
        eventually(lambda: f"{uri(first)}: " in trouble_of("nbd0") and "connect:" not in trouble_of("nbd0"), 90)
        assert digest_of(stale) == before
        servers.enter_context(second.serve(image=image))
        eventually(lambda: state_of("nbd0") == "connected", 90)
        assert in_use() == uri(second)
        shell(KIND.change)
        assert digest_of(stale) == before
        steps = monitor.steps
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    return steps


def changed() -> None:
    shell(KIND.change)
    shell("sync")
    eventually(looked_after_writes, 120)


def in_use() -> str:
    record = state.load(DEVICE)
    return record.uri if record else ""


def test_a_monitor_that_dies_at_any_step_loses_nothing(tmp_path: Path) -> None:
    steps = course(tmp_path / "course", "")
    assert len(steps) > 20
    print(f"{len(steps)} steps", flush=True)
    for step in steps[START::EVERY]:
        print(f"killed {step}", flush=True)
        try:
            course(tmp_path / "course", step)
        except AssertionError as error:
            raise AssertionError(f"killed {step}: {error}") from error
