# SPDX-License-Identifier: GPL-2.0-or-later
"""The records in /run/nbdattach, on a /run and a /sys of our own: used if they fit, ignored if not."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state, status
from nbdattach.attached.state import Record, Trouble
from nbdattach.errors import DeviceInUse
from nbdattach.host import bare_files, procfs
from nbdattach.kernel import flush
from nbdattach.tls_session import TlsSession

BARE = Record("mine", "nbd://db1/disk", "disk", "netlink", 2, "2026-01-02T03:04:05Z", 4711)
FULL = replace(
    BARE, size=1 << 40, flags=0x105, block_size=4096, max_sectors_kb=64, raw=True, connect_timeout=1.5, on_loss=None,
    dead_peer=2.5, io_timeout=0.5, scheduler="bfq", read_ahead=65536, reconnect=True, table="/etc/nbdtab",
)  # fmt: skip
TROUBLE = Trouble("reconnecting", "2026-01-02T03:04:05Z", "2026-01-02T03:04:07Z", "nbd://db1: no\x1b")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return pretend(tmp_path, monkeypatch)


# -- attachments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [BARE, FULL], ids=["bare", "full"])
def test_what_is_saved_is_loaded(host: Host, record: Record) -> None:
    host.attach()
    state.save(NBD0, record)
    assert state.load(NBD0) == record
    assert host.files == ["nbd0.json"]


def test_only_root_can_read_it(host: Host) -> None:
    state.save(NBD0, BARE)
    state.save_trouble(NBD0, TROUBLE)
    assert stat.S_IMODE(host.run.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in host.run.iterdir()} == {0o600}


def test_a_field_of_a_later_version_is_left_out(host: Host) -> None:
    host.attach()
    host.write("nbd0.json", json.dumps({**asdict(FULL), "colour": "blue"}))
    assert state.load(NBD0) == FULL


# As the version wrote it for which `tls` was a dict.
WITH_TLS = """{
    "tag": "mine", "target": "nbds://db1/disk", "export": "disk", "backend": "netlink", "connections": 1,
    "since": "2026-01-02T03:04:05Z", "kernel_pid": 4711, "pid": null, "started": null, "size": 1073741824, "flags": 0,
    "block_size": 512, "max_sectors_kb": 0, "raw": false, "connect_timeout": 30.0, "on_loss": 300.0, "dead_peer": 30.0,
    "io_timeout": 0.0, "reconnect": true,
    "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "transport": "relay"}, "tls_transport": "auto",
    "relay": 815, "relay_started": 99, "trust": {"ca": "/ca", "cert": "", "key": "", "verify": true}, "table": "",
    "address": null, "root": false, "moving_to": "", "moving_trust": null, "new_size": null
}"""


def test_a_file_of_before_is_read_and_one_of_now_is_like_it(host: Host) -> None:
    host.attach()
    host.write("nbd0.json", WITH_TLS)
    record = state.load(NBD0)
    assert record is not None
    assert record.tls == TlsSession("TLSv1.3", "TLS_AES_256_GCM_SHA384", "relay")
    assert status.status_of(NBD0).tls == json.loads(WITH_TLS)["tls"]
    state.save(NBD0, record)
    saved = json.loads((host.run / "nbd0.json").read_text())
    assert {**saved, **json.loads(WITH_TLS)} == saved


def test_what_a_later_version_knows_of_tls_besides_is_left_out(host: Host) -> None:
    host.attach()
    content = json.loads(WITH_TLS)
    host.write("nbd0.json", json.dumps({**content, "tls": {**content["tls"], "group": "x25519"}}))
    record = state.load(NBD0)
    assert record is not None
    assert record.tls == TlsSession("TLSv1.3", "TLS_AES_256_GCM_SHA384", "relay")


def test_a_field_that_an_earlier_version_did_not_write_has_its_default(host: Host) -> None:
    host.attach()
    known = ("tag", "target", "export", "backend", "connections", "since", "kernel_pid")
    host.write("nbd0.json", json.dumps({name: getattr(FULL, name) for name in known}))
    assert state.load(NBD0) == BARE


BROKEN = ["", "{", '{"tag": "t', "{}", "[]", "5", "null", '"tag"', '["tag"]', '{"tag": "t"}', '{"state": "lost"}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_no_record(host: Host, text: str) -> None:
    host.attach()
    host.write("nbd0.json", text)
    assert state.load(NBD0) is None


MISTYPED: dict[str, list[object]] = {
    "tag": [5, None, [], "\ud800"], "target": [5, None, {}], "backend": [True, ["netlink"]], "since": [5, None],
    "kernel_pid": ["4711", [4711], -1], "pid": ["x", 1.5, 1 << 70], "flags": ["1", None], "size": ["1", 1e999, -512],
    "block_size": ["512", 0], "connections": ["2", 0, None], "on_loss": ["wait", float("nan"), -1],
    "io_timeout": [None, "0", 1e999], "reconnect": ["yes", 1], "relay": [{}], "trust": [[], {"ca": 5}, "ca"],
    "tls": [[], "TLSv1.2", {}, {"version": "TLSv1.2", "cipher": "AES"}, {"version": 1, "cipher": 2, "transport": 3}],
}  # fmt: skip


@pytest.mark.parametrize("name", MISTYPED)
def test_a_state_file_with_a_field_of_a_wrong_type_hides_no_device(host: Host, name: str) -> None:
    """Neither its own nor another one, because status relies on the kernel."""
    host.attach(NBD0)
    host.attach(NBD1)
    state.save(NBD1, BARE)
    for value in MISTYPED[name]:
        host.write("nbd0.json", json.dumps({**asdict(FULL), name: value}))
        assert state.load(NBD0) is None
        there = [(one.device, one.state, one.tag, one.target) for one in status.all_attached()]
        assert there == [
            ("/dev/nbd0", "connected", "mine", None),
            ("/dev/nbd1", "connected", "mine", "nbd://db1/disk"),
        ], value


@pytest.mark.parametrize("name", ["state", "since", "error", "next_try"])
def test_trouble_of_a_wrong_type_hides_no_device(host: Host, name: str) -> None:
    host.attach()
    state.save(NBD0, replace(BARE, reconnect=True))
    wrong: tuple[object, ...] = (5, ["lost"], {}, True, None) if name != "next_try" else (5, [], True)
    for value in wrong:
        host.write("nbd0.trouble", json.dumps({**asdict(TROUBLE), name: value}))
        assert state.trouble_of(NBD0) is None
        assert [(one.state, one.trouble) for one in status.all_attached()] == [("connected", None)]


def test_a_state_that_there_is_not_is_no_trouble(host: Host) -> None:
    state.save_trouble(NBD0, replace(TROUBLE, state="resting"))
    assert state.trouble_of(NBD0) is None


@pytest.mark.parametrize("name", ["nbd0.json", "nbd0.trouble", "nbd0.json.unflushed"])
def test_a_file_of_a_thousand_brackets_is_no_state(host: Host, name: str) -> None:
    host.attach()
    host.write(name, "[" * 5000)
    assert (state.load(NBD0), state.trouble_of(NBD0), state.is_unflushed(NBD0)) == (None, None, False)
    assert len(status.all_attached()) == 1


def test_a_half_written_file_is_no_record(host: Host) -> None:
    host.attach()
    host.write("nbd0.json.new", json.dumps(asdict(BARE)))
    assert state.load(NBD0) is None


WORKER = replace(BARE, backend="ioctl", pid=os.getpid(), started=procfs.started(os.getpid()))
NOT_OURS: dict[str, tuple[Record, Callable[[Host], None]]] = {
    "nothing attached": (BARE, lambda _: None),
    "another attachment": (BARE, lambda host: host.attach(pid=4712)),
    "by ioctl now": (BARE, lambda host: host.attach(netlink=False)),
    "by netlink now": (WORKER, lambda host: host.attach()),
    "the worker's pid is another process's": (replace(WORKER, started=1), lambda host: host.attach(netlink=False)),
    "another device": (BARE, lambda host: host.attach(NBD1)),
}


@pytest.mark.parametrize(("record", "kernel"), NOT_OURS.values(), ids=NOT_OURS)
def test_a_stale_file_is_no_record(host: Host, record: Record, kernel: Callable[[Host], None]) -> None:
    kernel(host)
    state.save(NBD0, record)
    assert state.load(NBD0) is None


@pytest.mark.parametrize("worker", [WORKER, replace(WORKER, pid=1 << 22)], ids=["alive", "killed"])
def test_an_attachment_by_ioctl_is_known_by_its_worker_dead_or_alive(host: Host, worker: Record) -> None:
    host.attach(netlink=False)
    state.save(NBD0, worker)
    assert state.load(NBD0) == worker


def test_a_write_that_fails_leaves_what_was_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.attach()
    state.save(NBD0, BARE)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(state.os, "replace", breaking(OSError("full")))
        state.save(NBD0, FULL)
    assert state.load(NBD0) == BARE
    assert host.files == ["nbd0.json"]


def breaking(error: OSError) -> Callable[..., None]:
    def broken(*_: object) -> None:
        raise error

    return broken


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [TROUBLE, Trouble("lost", "2026-01-02T03:04:05Z", None, "")])
def test_trouble_that_is_told_is_known_until_it_is_over(host: Host, trouble: Trouble) -> None:
    state.save_trouble(NBD0, trouble)
    assert (state.trouble_of(NBD0), state.trouble_of(NBD1)) == (trouble, None)
    state.save_trouble(NBD0, None)
    assert (state.trouble_of(NBD0), host.files) == (None, [])


def test_trouble_that_never_was_can_be_over(host: Host) -> None:
    state.save_trouble(NBD0, None)
    assert state.trouble_of(NBD0) is None


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_no_trouble(host: Host, text: str) -> None:
    host.write("nbd0.trouble", text)
    assert state.trouble_of(NBD0) is None


# -- forgetting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nbd0.json", "nbd0.json.new"])
def test_a_device_is_remembered_by_any_file_of_it(host: Host, name: str) -> None:
    assert not state.remembers(NBD0)
    host.write(name, "")
    assert (state.remembers(NBD0), state.remembers(NBD1)) == (True, False)


def test_forgetting_takes_all_files_of_the_device_and_no_other(host: Host) -> None:
    for name in ("nbd0.json", "nbd0.json.new", "nbd0.trouble", "nbd0.trouble.new", "nbd1.json", "nbd1.trouble"):
        host.write(name, "")
    state.forget(NBD0)
    assert host.files == ["nbd1.json", "nbd1.trouble"]
    state.forget(NBD0)


# -- locks -------------------------------------------------------------------------------------------------------------

Lock = Callable[[], AbstractContextManager[object]]
LOCKS: dict[str, Lock] = {
    "tag t": lambda: state.tag_lock("t"),
    "tag u": lambda: state.tag_lock("u"),
    "tag \\xff": lambda: state.tag_lock("\udcff"),
    "nbd0": lambda: state.device_lock(NBD0),
    "nbd1": lambda: state.device_lock(NBD1),
    "monitor": state.monitor_lock,
}
_AT_ONCE = 1.0  # a fork of this process on a busy machine included


def is_free(lock: Lock) -> bool:
    """Whether another process gets it at once. That of a tag is waited for."""
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _AT_ONCE)  # the signal ends it
        with lock() as taken:
            os._exit(int(taken is False))
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("held", LOCKS)
def test_a_lock_excludes_its_like_and_nothing_else(host: Host, held: str) -> None:
    with LOCKS[held]() as taken:
        assert taken is not False
        assert [name for name, lock in LOCKS.items() if not is_free(lock)] == [held]
    assert is_free(LOCKS[held])


WAITED_FOR: dict[str, tuple[Lock, str]] = {
    "tag": (lambda: state.tag_lock("it's"), r"tag 'it\'s'"),
    "start of the monitor": (state.start_lock, "monitor"),
}


@contextmanager
def held_by_another(lock: Lock) -> Iterator[int]:
    """By a process that is stopped while it holds it."""
    pid = os.fork()
    if not pid:
        with suppress(BaseException), lock():
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.mark.parametrize(("lock", "thing"), WAITED_FOR.values(), ids=WAITED_FOR)
def test_a_stopped_command_does_not_keep_the_next_one_waiting_for_ever(host: Host, lock: Lock, thing: str) -> None:
    state.make_run()
    with held_by_another(lock) as pid:
        with alarm(60), pytest.raises(DeviceInUse) as caught, lock():
            pass
        assert caught.value.thing == thing
        assert caught.value.cause == f"process {pid} ({procfs.name_of(pid)}) is working on it, but is stopped"
        assert caught.value.hint == f"kill -CONT {pid} lets it continue, kill -KILL {pid} ends it"
        os.kill(pid, signal.SIGCONT)
        with alarm(60), lock():
            pass


@pytest.mark.parametrize(("lock", "thing"), WAITED_FOR.values(), ids=WAITED_FOR)
def test_a_command_that_hangs_does_not_keep_the_next_one_waiting_for_ever(
    host: Host, monkeypatch: pytest.MonkeyPatch, lock: Lock, thing: str
) -> None:
    state.make_run()
    monkeypatch.setattr(state, "_LOCK_SECONDS", 0.1)
    monkeypatch.setattr(procfs, "stopped", lambda _: False)
    with held_by_another(lock) as pid, alarm(60), pytest.raises(DeviceInUse) as caught, lock():
        pass
    assert caught.value.cause == f"process {pid} ({procfs.name_of(os.getpid())}) has been working on it for 0.1 s"
    assert caught.value.hint == f"kill {pid} ends it"


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Fails instead of waiting for ever."""

    def ring(*_: object) -> None:
        raise AssertionError(f"waits for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("other", ["tag u", "nbd0", "monitor"])
def test_to_give_one_lock_back_is_to_keep_the_others(host: Host, other: str) -> None:
    """As connect does, which holds the tag's while it tries one device after the other."""
    with state.tag_lock("t"):
        with LOCKS[other]():
            pass
        assert not is_free(LOCKS["tag t"])


def test_two_threads_of_one_program_exclude_each_other(host: Host) -> None:
    with state.device_lock(NBD0) as first, state.device_lock(NBD0) as second:
        assert (first, second) == (True, False)


def test_whether_a_monitor_lives_can_be_asked_without_taking_its_lock(host: Host) -> None:
    """Otherwise a monitor that starts at that moment would find that one runs."""
    assert not state.monitor_lives()
    with state.monitor_lock() as alone:
        assert alone
        assert state.monitor_lives()
    assert not state.monitor_lives()


def test_a_monitor_lives_for_whoever_asks(host: Host) -> None:
    """OFD locks belong to no process: the kernel names no pid, but shows that it is held."""
    with state.monitor_lock():
        pid = os.fork()
        if not pid:
            os._exit(int(not state.monitor_lives()))
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("held", [name for name in LOCKS if name != "monitor"])
def test_no_other_lock_is_taken_for_a_monitor(host: Host, held: str) -> None:
    with LOCKS[held]():
        assert not state.monitor_lives()


# -- data that a flush could not write ---------------------------------------------------------------------------------


def test_a_flush_that_failed_is_remembered_for_that_attachment_only(host: Host) -> None:
    host.attach()
    state.save(NBD0, BARE)
    assert not state.is_unflushed(NBD0)
    flush.mark_unflushed(*state.mark_of(NBD0))
    assert state.is_unflushed(NBD0)
    state.save(NBD0, replace(BARE, since="2026-01-02T03:04:06Z"))
    assert not state.is_unflushed(NBD0)
    state.forget(NBD0)
    assert host.files == []


def test_a_worker_remembers_it_by_its_pid(host: Host) -> None:
    host.attach(netlink=False)
    state.save(NBD0, replace(BARE, backend="ioctl"))
    for pid, believed in ((4711, True), (4712, False)):
        flush.mark_unflushed(state.path(NBD0), f'{{"identity": [{pid}, null, null]}}')
        assert state.is_unflushed(NBD0) == believed


# -- the end -----------------------------------------------------------------------------------------------------------


def test_the_end_takes_the_place_of_all_files_of_the_device_until_it_is_free(host: Host) -> None:
    host.attach()
    state.save(NBD0, BARE)
    host.write("nbd0.trouble", "")
    ended = state.identity_of(NBD0)
    state.note_end(NBD0, ended)
    assert (host.files, state.identity_of(NBD0)) == (["nbd0.json.ended"], ended)
    state.forget_end(NBD0, (4712, *ended[1:]))  # which another command had seen there
    assert state.end_of(NBD0)
    state.forget_end(NBD0, ended)
    assert (host.files, state.end_of(NBD0)) == ([], None)


def test_a_record_is_forgotten_at_the_end_though_run_is_full(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    host.attach()
    state.save(NBD0, BARE)
    ended = state.identity_of(NBD0)
    monkeypatch.setattr(bare_files, "replace", fail)
    state.note_end(NBD0, ended)
    assert host.files == []


def test_the_room_of_a_record_is_enough_for_the_note_of_its_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the note, the device looks as if another program had attached it."""
    replace = bare_files.replace

    def full(name: str, text: str) -> None:
        if host.files:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(name, text)

    host.attach()
    state.save(NBD0, BARE)
    monkeypatch.setattr(bare_files, "replace", full)
    state.note_end(NBD0, state.identity_of(NBD0))
    assert (host.files, state.end_of(NBD0) is not None) == (["nbd0.json.ended"], True)


def test_an_attachment_with_a_record_has_not_ended(host: Host) -> None:
    """Even if there is a note of its end, which could not be removed."""
    host.attach()
    state.save(NBD0, BARE)
    state.note_end(NBD0, state.identity_of(NBD0))
    state.save(NBD0, BARE)
    assert state.end_of(NBD0) is None
