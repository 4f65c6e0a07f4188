# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes: questions that a process of its own asks, and questions that are not asked of others."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from nbdattach.attached import mounts, uses
from nbdattach.host import procfs


@pytest.mark.parametrize(
    ("line", "deleted"),
    [
        ("7f0-7f1 r-xp 00000000 fe:01 17    /usr/bin/python3.11 (deleted)", True),
        ("7f0-7f1 r--p 00000000 fe:01 17    /usr/lib/x.so.1", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /dev/zero (deleted)", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /memfd:x (deleted)", False),
        ("7f0-7f1 rw-p 00000000 00:00 0", False),
    ],
)
def test_files_that_were_replaced_under_a_process_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, deleted: bool
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/maps").write_text(f"7f0-7f1 rw-p 00000000 00:00 0    [heap]\n{line}\n")
    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    assert procfs.runs_from_deleted_files() == deleted


@pytest.mark.parametrize(("flags", "looked_at"), [(0x00208040, {2, 4, 5, 40}), (0x00400040, {2, 3, 4, 5, 40})])
def test_threads_of_the_kernel_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: int, looked_at: set[int]
) -> None:
    """In a container, process 2 is another one, and its children may have the device open.

    Processes 4 and 5 are programs that the kernel has started, such as handlers of core dumps. The first thread of 5
    has ended, so it shows no program.
    """
    for pid in (2, 3, 4, 5, 40):
        (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
    (tmp_path / "2/stat").write_text(f"2 (kthreadd) S 0 0 0 0 -1 {flags} 0 0\n")
    (tmp_path / "2/task/2/children").write_text("3 4 5 ")
    (tmp_path / "5/task/6").mkdir()
    (tmp_path / "4/exe").symlink_to("/usr/bin/core-handler")
    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    assert set(procfs.pids()) == looked_at


OURS = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw", "2 1 0:5 / /proc rw - proc proc rw"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (OURS, True),
        ([*OURS, "9 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw"], True),
        (["1 0 0:50 / / rw - overlay overlay rw", *OURS[1:]], False),  # a container
        (["1 0 8:1 /srv/image / rw - ext4 /dev/sda1 rw"], False),  # RootDirectory= of a unit
        ([*OURS, "9 1 0:50 / / rw - tmpfs none rw"], False),  # mounted over
        ([], False),  # a chroot
    ],
)
def test_only_where_the_root_is_ours_programs_are_ours(
    monkeypatch: pytest.MonkeyPatch, theirs: list[str], ours: bool
) -> None:
    pid = os.getpid()
    monkeypatch.setattr(procfs, "lines", {"self/mountinfo": OURS, f"{pid}/mountinfo": theirs}.get)
    assert procfs.runs_our_programs(pid) == ours


def test_programs_in_a_namespace_of_another_user_namespace_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user may make one, and put any program at /bin/umount in it."""
    monkeypatch.setattr(procfs, "lines", lambda _: OURS)
    monkeypatch.setattr(procfs.syscalls, "ns_get_userns", lambda _: os.open("/proc/self/ns/net", os.O_RDONLY))
    assert not procfs.runs_our_programs(os.getpid())


def test_programs_in_a_namespace_that_cannot_be_looked_at_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(procfs, "lines", lambda _: OURS)
    monkeypatch.setattr(procfs.syscalls, "ns_get_userns", refuse)
    assert not procfs.runs_our_programs(os.getpid())
    assert not procfs.runs_our_programs(1 << 22)


@pytest.mark.parametrize(
    ("line", "service"),
    [
        ("0::/system.slice/db.service", "db.service"),
        ("1:name=systemd:/system.slice/system-db.slice/db@1.service", "db@1.service"),
        ("5:devices:/system.slice/db.service", ""),
        ("0::/system.slice/db.service/payload", ""),
        ("0::/system.slice/docker-12ab.scope", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service", ""),
        ("0::/", ""),
        ("", ""),
    ],
)
def test_a_service_is_what_systemd_can_restart(monkeypatch: pytest.MonkeyPatch, line: str, service: str) -> None:
    monkeypatch.setattr(procfs, "lines", {"7/cgroup": [line]}.get)
    assert procfs.service_of(7) == service


@pytest.mark.parametrize(
    ("ours", "service", "hint"),
    [
        (True, "db.service", "nsenter -m -t 7 umount '/a b'"),
        (False, "db@x\\x2dy.service", "systemctl restart 'db@x\\x2dy.service'"),
        (False, "", "kill 7"),
    ],
)
def test_no_hint_makes_root_run_a_program_of_another_users_namespace(
    monkeypatch: pytest.MonkeyPatch, ours: bool, service: str, hint: str
) -> None:
    monkeypatch.setattr(procfs, "runs_our_programs", lambda _: ours)
    monkeypatch.setattr(procfs, "service_of", lambda _: service)
    mount = mounts.Mount("/a b", "43:0", "/dev/nbd0", "ext4", procfs.Opener(7, "sleep"))
    assert uses.mounted(mount, True).use.command == hint


@pytest.mark.parametrize(
    ("most", "error", "then"),
    [
        pytest.param(4096, None, 65536, id="raised"),
        pytest.param(4096, ValueError("not allowed to raise maximum limit"), 4096, id="not_allowed"),
        pytest.param(4096, PermissionError(errno.EACCES, ""), 4096, id="not_allowed_by_selinux"),
        pytest.param(1 << 20, None, 1 << 20, id="more_already"),
        pytest.param(resource.RLIM_INFINITY, None, resource.RLIM_INFINITY, id="unlimited"),
    ],
)
def test_the_monitor_may_open_as_many_files_however_it_was_started(
    monkeypatch: pytest.MonkeyPatch, most: int, error: Exception | None, then: int
) -> None:
    """Its unit sets the limit; without systemd the one of the shell holds, which is 4096 in some places."""
    limits = [(1024, most)]

    def set_them(_: int, wanted: tuple[int, int]) -> None:
        if error and wanted[1] > most:
            raise error
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_them)
    procfs.raise_descriptor_limit()
    assert limits[-1] == (then, then)


def test_the_units_limit_is_the_same() -> None:
    unit = Path(__file__).parents[3] / "systemd/nbdattach-monitor.service"
    assert f"LimitNOFILE={procfs._OPEN_FILES}\n" in unit.read_text()
