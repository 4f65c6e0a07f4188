# SPDX-License-Identifier: GPL-2.0-or-later
"""connect and disconnect, killed (-9) at each of their steps: nothing half done is left, and both go on working.

`crash` explains steps, and how a command dies at one. Each round takes two seconds, so a run of `make test` does
every twelfth step, and another day's run others. `make test-all`, or CRASH_EVERY=1, does all of them.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from crash import Ended, helpers, run
from leftovers import beside_the_monitor, clear_away, leftovers, monitors
from servers import nbdkit
from tool import ALL, BACKEND, connect, eventually, nbd, nbd_ok, partitioned_image

# Otherwise each round would import them for itself.
from nbdattach.attached import state, status
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, NotAttached
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel

EVERY = int(os.environ.get("CRASH_EVERY") or (1 if ALL else 12))
# The first of the samples, always the same, so that results can be compared. CRASH_START=1 takes others.
START = int(os.environ.get("CRASH_START", "0"))
FIRST = Kernel(Device(0))
SECONDS = 10
TRIES = 5
_MOMENT = 0.001
COMMIT = {
    "ioctl": "after backends.by_ioctl.Worker.commit: write 1",
    "netlink": "before kernel.netlink.Family.reconfigure 1",
}
# Attached, and not open yet, so the kernel detaches nothing when a process ends, and the guard is dead. The device then
# has its state in status, and disconnect detaches it.
NOBODY_HAS_IT = ("after kernel.netlink.Family.connect 1", "before kernel.node.Node.claim: open 1")

pytestmark = pytest.mark.timeout(600)


@dataclass
class Place:
    """An image with two partitions, its server, and the data that must be on it."""

    image: Path
    uri: str
    options: list[str] = field(default_factory=list)
    turn: int = 0

    def connect(self, **how: Any) -> Ended:
        return run("connect", "--backend", BACKEND, *self.options, self.uri, "nbd0", **how)

    def disconnect(self, **how: Any) -> Ended:
        return run("disconnect", "nbd0", **how)

    def write(self) -> None:
        """Writes new data into the page cache of a partition."""
        self.turn += 1
        with open("/dev/nbd0p1", "r+b", buffering=0) as node:
            node.write(f"{self.turn:4096d}".encode())

    def see_it_written(self) -> None:
        with self.image.open("rb") as file:
            file.seek(1 << 20)
            assert file.read(4096) == f"{self.turn:4096d}".encode()

    def see_it_work(self) -> None:
        """connect, I/O, disconnect work, and nothing is left."""
        done = self.connect(noted=False)
        assert (done.code, done.said.splitlines()[-1]) == (0, "/dev/nbd0"), done.said
        assert is_complete(self.uri)
        self.write()
        self.see_it_go()
        self.see_it_written()

    def see_it_go(self) -> None:
        done = self.disconnect(noted=False)
        assert done.code == 0, done.said
        nothing_is_left()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("file", f"file={image}") as server:
        yield Place(image, server.uri)


def nothing_is_left() -> None:
    eventually(is_gone, SECONDS)


def is_gone() -> bool:
    """One look may miss a process that just forks."""
    if beside_the_monitor():
        return False
    time.sleep(0.1)
    return not beside_the_monitor()


def is_free() -> bool:
    """No process holds it or works on it. If all were killed, no process is left to remove leftovers."""
    return not (FIRST.attached or FIRST.size or helpers())


def is_complete(uri: str) -> bool:
    """Attached, ready to use, and no helper runs but those that stay."""
    if not FIRST.attached or FIRST.partitions != ["nbd0p1", "nbd0p2"]:
        return False
    try:
        there = status.status_of(Device(0))
    except NotAttached:  # it is ending
        return False
    target = there.image.path if there.image else there.target
    return (there.state, target, helpers()) == ("connected", uri, [there.pid] if there.pid else [])


def some(steps: Sequence[str], fewer: int = 1) -> Sequence[str]:
    """With `fewer`, one of so many samples, because each takes long."""
    return steps[START % EVERY :: EVERY if EVERY == 1 else EVERY * fewer]


def each(steps: Sequence[str], one_round: Callable[[str], None]) -> None:
    """All of them, even if one fails."""
    began, failures = time.monotonic(), []
    for step in steps:
        try:
            one_round(step)
        except AssertionError as error:
            failures.append(f"{step}: {error}; left: {beside_the_monitor()}")
            print(failures[-1])
            clear_away()
            leftovers()
    print(f"\nfrom {START % EVERY}, each {EVERY}: {len(steps)} steps in {time.monotonic() - began:.0f} s")
    assert not failures, "\n".join([f"{len(failures)} of {len(steps)} steps:", *failures])


def unsettle() -> None:
    """The settings of connect have other values before: otherwise setting them would change nothing, and be no step."""
    for attribute, value in (("io_timeout", "12345"), ("iostats", "0")):
        Path(f"/sys/block/nbd0/queue/{attribute}").write_text(value)


def connect_killed_at_each_step(place: Place, both: bool = False, fewer: int = 1, **how: Any) -> None:
    unsettle()
    whole = place.connect(**how)
    assert whole.code == 0, whole.said
    place.see_it_go()

    def one_round(step: str) -> None:
        unsettle()
        killed = place.connect(kill=step, both=both, **how)
        assert killed.code == (-9 if step in killed.steps else 0), killed.said
        if both and BACKEND == "netlink" and step in NOBODY_HAS_IT:
            place.see_it_go()
        eventually(lambda: (is_free() if both else is_gone()) or is_complete(place.uri), SECONDS)
        if FIRST.attached:
            assert COMMIT[BACKEND] in killed.steps, "attached before the commit"
        place.see_it_work()

    each(some(whole.steps, fewer), one_round)


def disconnect_killed_at_each_step(place: Place, fewer: int = 1, **how: Any) -> None:
    assert place.connect().code == 0
    whole = place.disconnect()

    def one_round(step: str) -> None:
        done = place.connect()
        assert done.code == 0, done.said
        place.write()
        killed = place.disconnect(kill=step, **how)
        assert killed.code == (-9 if step in killed.steps else 0), killed.said
        place.see_it_go()
        place.see_it_written()

    each(some(whole.steps, fewer), one_round)
    place.see_it_work()


@pytest.mark.ioctl
def test_a_connect_killed_at_any_step_leaves_nothing(place: Place) -> None:
    connect_killed_at_each_step(place)


def test_a_program_that_looks_at_a_partition_while_connect_is_killed_leaves_none(unwatched: Place) -> None:
    """The kernel drops no partition that is open, so it must be asked again."""
    steps = unwatched.connect().steps
    unwatched.see_it_go()
    last = steps[steps.index(COMMIT[BACKEND]) - 1]
    for _ in range(TRIES):
        dead = Event()
        with ThreadPoolExecutor() as pool:
            seen = pool.submit(look_at_a_partition, dead)
            killed = unwatched.connect(kill=last)
            assert killed.code == -9, killed.said
            dead.set()
            found = seen.result()
        nothing_is_left()
        if found:
            break
    assert found == ["nbd0p1", "nbd0p2"]


def look_at_a_partition(until: Event) -> list[str]:
    """Has the first one open from its first moment to half a second after `until`; says what there is then.

    None if this thread came late, as on a busy machine: the kernel lets one be opened while it is being removed.
    """
    while not FIRST.partitions:
        if until.wait(_MOMENT):
            return []
    try:
        with open("/dev/nbd0p1", "rb", buffering=0):
            until.wait(SECONDS)
            time.sleep(0.5)
            return FIRST.partitions
    except OSError:
        return []


def test_a_connect_that_fails_under_a_program_that_keeps_a_partition_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps the dead device for that program. It is not called attached, and goes with its user."""
    image = partitioned_image(tmp_path / "image")
    users: list[subprocess.Popen[bytes]] = []
    with nbdkit("file", f"file={image}") as server:

        def comes_and_the_server_dies(*_: object) -> None:
            with open("/dev/nbd0p1") as partition:
                users.append(subprocess.Popen(["sleep", "600"], stdin=partition))
            server.kill()

        monkeypatch.setattr(Node, "first_page", comes_and_the_server_dies)
        with pytest.raises(ConnectionLost, match="the server closed the connection"):
            connect(server.uri, "nbd0")
        monkeypatch.undo()
    (user,) = users
    with user, nbdkit("file", f"file={image}") as other:
        ended = "detached; the kernel frees it when its last user releases it"
        (found,) = nbd("status", "--json").json()
        assert (found["state"], found["target"], found["trouble"]["error"]) == ("lost", None, ended)
        still_open = f"open in process {user.pid} (sleep)"
        done = nbd("connect", other.uri, "nbd0")
        assert (done.code, done.err.splitlines()) == (
            7,
            [
                f"nbdattach: /dev/nbd0: holds the rest of a lost attachment, and is still {still_open}",
                f"  {still_open}: kill {user.pid}",
                "(release it first)",
            ],
        )
        done = nbd("disconnect", "--all")
        assert (done.code, done.err) == (0, f"nbdattach: /dev/nbd0: {ended}\n")
        assert nbd_ok("connect", other.uri) == "/dev/nbd1"
        nbd_ok("disconnect", "nbd1")
        user.kill()
        user.wait()
        eventually(lambda: not FIRST.attached and not FIRST.partitions and not os.path.exists(state.path(Device(0))))
        nbd_ok("connect", other.uri, "nbd0")
        nbd_ok("disconnect", "nbd0")


@pytest.mark.ioctl
def test_a_disconnect_killed_at_any_step_is_ended_by_the_next(place: Place) -> None:
    disconnect_killed_at_each_step(place)


@pytest.mark.ioctl
def test_a_disconnect_killed_with_the_worker_is_ended_by_the_next(place: Place) -> None:
    disconnect_killed_at_each_step(place, both=True)


@pytest.mark.ioctl
def test_a_connect_killed_with_its_worker_leaves_nothing(place: Place) -> None:
    connect_killed_at_each_step(place, both=True)


@pytest.mark.ioctl
@pytest.mark.parametrize("both", [False, True], ids=["alone", "with its command"])
def test_a_worker_killed_at_any_step_leaves_nothing(place: Place, both: bool) -> None:
    """Its last steps are part of the disconnect."""
    attaching = place.connect(helper="main").helper_steps
    detaching = [] if both else place.disconnect().helper_steps

    def one_round(step: str) -> None:
        killed = place.connect(helper="main", kill_helper=step, both=both)
        assert killed.code in ([0] if step in detaching else [-9] if both else [3, 6]), killed.said
        if step in detaching:
            place.see_it_go()
        else:
            eventually(is_free if both else is_gone, SECONDS)
        place.see_it_work()

    place.see_it_go()
    each(some(attaching + detaching), one_round)


@pytest.fixture
def image(tmp_path: Path) -> Place:
    """A place whose server is started for it, and ended with it."""
    path = partitioned_image(tmp_path / "disk.img")
    return Place(path, str(path), ["--no-reconnect"])


@pytest.mark.netlink
def test_a_connect_of_an_image_killed_at_any_step_leaves_no_server(image: Place) -> None:
    connect_killed_at_each_step(image, fewer=3)


@pytest.mark.netlink
def test_a_disconnect_of_an_image_killed_at_any_step_is_ended_by_the_next(image: Place) -> None:
    disconnect_killed_at_each_step(image, fewer=3)


@pytest.fixture
def unwatched(place: Place) -> Place:
    place.options = ["--no-reconnect"]
    return place


@pytest.mark.netlink
@pytest.mark.parametrize("contested", [False, True], ids=["", "contested"])
def test_a_connect_by_netlink_killed_at_any_step_leaves_nothing(unwatched: Place, contested: bool) -> None:
    connect_killed_at_each_step(unwatched, contested=contested)


@pytest.mark.netlink
def test_a_connect_by_netlink_killed_with_its_guard_leaves_nothing(unwatched: Place) -> None:
    connect_killed_at_each_step(unwatched, both=True)


@pytest.mark.netlink
def test_a_disconnect_of_netlink_killed_at_any_step_is_ended_by_the_next(unwatched: Place) -> None:
    disconnect_killed_at_each_step(unwatched)


@pytest.mark.netlink
def test_a_watched_disconnect_killed_at_any_step_is_ended_by_the_next(place: Place) -> None:
    disconnect_killed_at_each_step(place)


@pytest.mark.netlink
@pytest.mark.parametrize("running", [True, False], ids=["monitor running", "monitor to be started"])
def test_a_connect_killed_while_it_asks_for_the_monitor_leaves_nothing_that_nobody_watches(
    place: Place, running: bool
) -> None:
    if running:
        place.see_it_work()
    steps = place.connect().steps
    place.see_it_go()

    def one_round(step: str) -> None:
        if not running:
            leftovers()
            eventually(lambda: not monitors(), SECONDS)
        killed = place.connect(kill=step)
        assert killed.code == -9, killed.said
        eventually(lambda: is_gone() or is_complete(place.uri), SECONDS)
        if FIRST.attached:
            assert COMMIT["netlink"] in killed.steps, "attached before the commit"
            assert is_watched()
            assert "already attached" in place.connect().said
        place.see_it_work()

    each(some(steps[steps.index("after host.bare_files.replace: replace 1") :]), one_round)


def is_watched() -> bool:
    """By a monitor that holds its connections: otherwise it could not end one that lives."""
    return "as before" in nbd("resize", "nbd0").err


@pytest.mark.netlink
def test_a_guard_killed_at_any_step_leaves_what_disconnect_takes_away(unwatched: Place) -> None:
    """No process is left to do it by itself."""
    last = COMMIT["netlink"]

    def die(kill_helper: str = "") -> None:
        assert unwatched.connect(kill=last, helper="guard", kill_helper=kill_helper, contested=True).code == -9
        eventually(lambda: not helpers(), SECONDS)

    def one_round(step: str) -> None:
        die(step)
        unwatched.see_it_go()
        unwatched.see_it_work()

    die()
    nothing_is_left()
    steps = Path("/tmp/crash.helper").read_text().splitlines()
    assert "after kernel.ioctl.nbd_clear_sock: ioctl 1" in steps
    each(some(steps), one_round)


def test_a_detach_killed_while_a_program_keeps_the_device_leaves_a_status_that_is_true(unwatched: Place) -> None:
    """The kernel keeps pid and size until that program has closed it."""

    def detached(**how: Any) -> Ended:
        assert unwatched.connect().code == 0
        with open("/dev/nbd0", "rb", buffering=0) as file:
            ended = run("disconnect", "--force", "--timeout", "1", "nbd0", **how)
            eventually(lambda: told() == ("connected" if is_readable(file) else "lost"), SECONDS)
        unwatched.see_it_go()
        return ended

    whole = detached()
    assert whole.code == 7, whole.said

    def one_round(step: str) -> None:
        assert detached(kill=step).code == -9

    first = whole.steps.index("before kernel.ioctl.nbd_clear_sock: ioctl 1")
    each(whole.steps[first :: 1 if EVERY == 1 else 3], one_round)


def told() -> str | None:
    try:
        return status.status_of(Device(0)).state
    except NotAttached:
        return None


def is_readable(device: io.FileIO) -> bool:
    """Without the page cache."""
    with mmap.mmap(-1, 4096) as page:
        fcntl.fcntl(device, fcntl.F_SETFL, os.O_DIRECT)
        try:
            return os.preadv(device.fileno(), [page], 0) > 0
        except OSError:
            return False
