# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which a device is released, and where that stops."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from nbdattach import deadline
from nbdattach.attached import state
from nbdattach.attached.uses import Use, User, Users
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.host import programs
from nbdattach.operations import release
from nbdattach.own_server import installed
from nbdattach.reporter import Reporter

NBD0 = Device(0)
MOUNT = Use("mount", "/mnt", "mounted at /mnt", ("umount", "/mnt"))
MAPPING = Use("holder", "/dev/dm-0", "held by dm-0", ("dmsetup", "remove", "one"))
SWAP = Use("swap", "/dev/nbd0p2", "swapped on", ("swapoff", "/dev/nbd0p2"))
PROCESS = Use("process", "42", "open in process 42 (cat)", ("kill", "42"))
SERVICE = Use("mount", "/srv", "mounted at /srv", ("systemctl", "restart", "x"))
BCACHE = Use("holder", "/dev/bcache0", "held by bcache0", (), "see /sys/block/bcache0")


class Stack(Reporter):
    """What uses the device; a command that runs releases one, unless it is `stuck` or `refuses`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *uses: Use) -> None:
        self.uses = [*uses]
        self.stuck: set[Use] = set()
        self.refuses: dict[str, str] = {}
        self.ran: list[str] = []
        self.lines: list[str] = []
        monkeypatch.setattr(release, "users_of", lambda _: Users([User("x", one) for one in self.uses]))
        monkeypatch.setattr(release, "open_by", lambda _: [])
        monkeypatch.setattr(installed, "required", lambda name, _: f"/sbin/{name}")
        monkeypatch.setattr(programs, "run", self._run)
        monkeypatch.setattr(release, "_GOES_WITHIN", 0.05)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        self.ran.append(" ".join(command))
        program = command[0].removeprefix("/sbin/")
        if program in self.refuses:
            return subprocess.CompletedProcess(command, 32, "", self.refuses[program])
        used = next(one for one in self.uses if one.release == (program, *command[1:]))
        if used not in self.stuck:
            self.uses.remove(used)
        return subprocess.CompletedProcess(command, 0, "", "")


def detached_instead(device: Device) -> None:
    raise AssertionError(f"{device.path} has no image there")


def stopped(stack: Stack) -> DeviceInUse:
    with pytest.raises(DeviceInUse) as caught:
        release.release(NBD0, stack, detached_instead)
    return caught.value


def test_from_the_top_each_command_shown_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MOUNT, MAPPING, SWAP)
    release.release(NBD0, stack, detached_instead)
    assert stack.ran == ["/sbin/umount /mnt", "/sbin/dmsetup remove one", "/sbin/swapoff /dev/nbd0p2"]
    assert stack.lines == [
        "/dev/nbd0: umount /mnt",
        "/dev/nbd0: dmsetup remove one",
        "/dev/nbd0: swapoff /dev/nbd0p2",
    ]


def test_a_device_with_its_image_there_is_detached_without_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be installed in a place that no other program knows."""
    above = Use("holder", "/dev/nbd1", "held by nbd1", ("nbdattach", "disconnect", "/dev/nbd1"))
    stack, detached = Stack(monkeypatch, above, MOUNT), list[Device]()

    def detach(device: Device) -> None:
        detached.append(device)
        stack.uses.remove(above)

    release.release(NBD0, stack, detach)
    assert (detached, stack.ran) == ([Device(1)], ["/sbin/umount /mnt"])
    assert stack.lines == ["/dev/nbd0: nbdattach disconnect /dev/nbd1", "/dev/nbd0: umount /mnt"]


def test_what_is_mounted_twice_is_unmounted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MOUNT, MOUNT)
    release.release(NBD0, stack, detached_instead)
    assert len(stack.ran) == 2


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (PROCESS, "--release ends no process"),
        (SERVICE, "--release ends no process"),
        (BCACHE, "no command is known that releases it"),
    ],
)
def test_no_process_is_ended_and_what_is_left_is_told(monkeypatch: pytest.MonkeyPatch, use: Use, why: str) -> None:
    stack = Stack(monkeypatch, MOUNT, use, SWAP)
    error = stopped(stack)
    assert stack.ran == ["/sbin/umount /mnt"]
    assert error.cause == f"{use.says}: {why}"
    assert error.users == (use.line, SWAP.line)
    assert release.planned(NBD0) == ([], [use, SWAP])


def test_it_stops_at_the_first_command_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MOUNT, MAPPING)
    stack.refuses["umount"] = "umount: /mnt: target is busy.\n"
    error = stopped(stack)
    assert error.cause == "umount /mnt failed: 'umount: /mnt: target is busy.'"
    assert error.hint == "fuser -vm /mnt shows its users"
    assert (stack.ran, error.users) == (["/sbin/umount /mnt"], (MOUNT.line, MAPPING.line))


def test_a_mount_that_is_busy_for_a_moment_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the end of a server that had a file on it: the kernel may close that a little later."""
    stack = Stack(monkeypatch, MOUNT)
    monkeypatch.setattr(release, "_GOES_WITHIN", 60)
    monkeypatch.setattr(release, "_AGAIN", 0.001)
    codes = iter([32, 32])

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        if code := next(codes, 0):
            stack.ran.append(" ".join(command))
            return subprocess.CompletedProcess(command, code, "", "umount: /mnt: target is busy.\n")
        return stack._run(*command)

    monkeypatch.setattr(programs, "run", run)
    release.release(NBD0, stack, detached_instead)
    assert stack.ran == ["/sbin/umount /mnt"] * 3
    assert stack.lines == ["/dev/nbd0: umount /mnt"]


def busy(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Stack], object]) -> Stack:
    """A mount that is busy; `meanwhile` happens while we wait to try again."""
    stack = Stack(monkeypatch, MOUNT)
    stack.refuses["umount"] = "umount: /mnt: target is busy.\n"
    instead = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: meanwhile(stack))
    monkeypatch.setattr(deadline, "time", instead)
    return stack


def test_a_mount_that_goes_while_we_wait_is_not_unmounted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command would reach the mount of another disk that it has covered."""
    stack = busy(monkeypatch, lambda stack: stack.uses.clear())
    release.release(NBD0, stack, detached_instead)
    assert stack.ran == ["/sbin/umount /mnt"]


def test_nothing_is_tried_again_at_an_attachment_that_came_while_we_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["a"]
    monkeypatch.setattr(state, "identity_of", lambda _: (1, "netlink", there[-1]))
    stack = busy(monkeypatch, lambda _: there.append("b"))
    assert stopped(stack).cause == "holds another attachment now"
    assert stack.ran == ["/sbin/umount /mnt"]


def test_a_command_that_fails_slowly_has_been_patient_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As swapoff that needs minutes to find that there is too little memory."""
    stack = Stack(monkeypatch, SWAP)
    now = [0.0]
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        stack.ran.append(" ".join(command))
        now[0] += 60
        return subprocess.CompletedProcess(command, 255, "", "swapoff: Cannot allocate memory\n")

    monkeypatch.setattr(programs, "run", run)
    assert "Cannot allocate memory" in stopped(stack).cause
    assert stack.ran == ["/sbin/swapoff /dev/nbd0p2"]


def test_a_command_that_succeeds_late_has_its_moment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is no longer used does not go at once, however long we had to try."""
    stack = Stack(monkeypatch, MAPPING)
    now, codes = [0.0], iter([1] * 9)
    monkeypatch.setattr(release, "_GOES_WITHIN", 2.0)

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 2.5:  # some time after the command that succeeded
            stack.uses.clear()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, next(codes, 0), "", "Device or resource busy\n")

    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(programs, "run", run)
    release.release(NBD0, stack, detached_instead)
    assert next(codes, None) is None


def test_a_command_that_changes_nothing_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MAPPING)
    stack.stuck.add(MAPPING)
    assert stopped(stack).cause == "held by dm-0, although dmsetup remove one succeeded"
    assert stack.ran == ["/sbin/dmsetup remove one"]


def test_what_somebody_mounts_again_and_again_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MOUNT)
    counts = iter([1, 0] * 9 + [1])
    monkeypatch.setattr(release, "users_of", lambda _: Users([User("x", MOUNT)] * next(counts)))
    monkeypatch.setattr(programs, "run", lambda *command: subprocess.CompletedProcess(command, 0, "", ""))
    error = stopped(stack)
    assert error.cause == "mounted at /mnt again each time that it was released"
    assert len(stack.lines) == 4


def test_a_command_that_fails_and_yet_releases_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """lvchange warns so of another group of the same name."""
    stack = Stack(monkeypatch, MAPPING)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        stack.uses.clear()
        return subprocess.CompletedProcess(command, 5, "", "Cannot process volume group\n")

    monkeypatch.setattr(programs, "run", run)
    release.release(NBD0, stack, detached_instead)


def test_nothing_is_released_of_an_attachment_that_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, MOUNT, SWAP)
    identities = iter([(1, "a", "x"), (1, "a", "x"), (1, "a", "y")])
    monkeypatch.setattr(state, "identity_of", lambda _: next(identities))
    assert stopped(stack).cause == "holds another attachment now"
    assert stack.ran == ["/sbin/umount /mnt"]


def test_the_hint_for_a_path_with_blanks_works_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(monkeypatch, Use("mount", "/a b", "mounted at /a b", ("umount", "/a b")))
    stack.refuses["umount"] = "umount: /a b: target is busy.\n"
    assert stopped(stack).hint == "fuser -vm '/a b' shows its users"
