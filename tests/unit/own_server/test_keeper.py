# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper of a server: how it starts and ends it, for how long it is needed, and keepers that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import keeping
import pytest
from keeping import Kept, kill, server, shell
from loopback import PATIENCE, eventually

from nbdattach.host import bare_files, procfs
from nbdattach.own_server import image_lock

# The server does nothing but live.
IDLE = ["/bin/sleep", "infinity"]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with keeping.kept(tmp_path) as made:
        yield made


def ended(keeper: subprocess.Popen[bytes]) -> int:
    return keeper.wait(PATIENCE)


# -- its folder --------------------------------------------------------------------------------------------------------


def test_a_folder_that_others_can_write_is_not_used(kept: Kept) -> None:
    """Another user may have made it, with a plan of his own."""
    kept.plan(server(kept.root))
    kept.folder.chmod(0o755)
    kept.start().wait(PATIENCE)
    assert sorted(os.listdir(kept.folder)) == ["plan"]
    assert not kept.servers()


def test_a_folder_behind_a_link_is_not_used(kept: Kept) -> None:
    """Nor is what is in it removed at the end."""
    kept.plan(server(kept.root))
    there = kept.folder.rename(kept.root / "private")
    kept.folder.symlink_to(there)
    kept.start().wait(PATIENCE)
    assert sorted(os.listdir(there)) == ["plan"]
    kept.folder.unlink()


def test_a_low_limit_of_open_files_is_raised(kept: Kept) -> None:
    kept.plan(server(kept.root))
    command = f"ulimit -Sn 20; exec {shlex.join(kept.command())}"
    with subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, cwd="/") as keeper:
        eventually(lambda: bool(kept.answers()))
        kept.owner.kill()
        assert keeper.wait(PATIENCE) == 0


# -- the server --------------------------------------------------------------------------------------------------------


def test_server_gets_its_socket_as_systemd_passes_it(kept: Kept) -> None:
    kept.plan(server(kept.root), environment={"KEPT_FOR": str(kept.root), "A": "b"})
    kept.serve()
    (facts,) = kept.facts
    expected = {"KEPT_FOR": str(kept.root), "A": "b", "LISTEN_FDS": "1", "LISTEN_PID": str(facts["pid"])}
    assert {name: value for name, value in facts["environment"].items() if name != "LC_CTYPE"} == expected
    assert facts["pid"] == kept.answers() == kept.state["pid"]


def test_server_gets_no_other_descriptor(kept: Kept) -> None:
    """One of the keeper's would keep a client, a lock or a terminal waiting."""
    kept.serve()
    (facts,) = kept.facts
    assert facts["descriptors"] == [0, 1, 2, 3]
    assert facts["streams"] == ["/dev/null", f"{kept.folder}/words", f"{kept.folder}/words"]


def test_server_handles_signals_as_if_a_shell_had_started_it(kept: Kept) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kept.serve()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert set(kept.facts[0]["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}  # Python's own


def test_signals_of_the_terminal_do_not_reach_the_server(kept: Kept) -> None:
    kept.serve()
    assert kept.facts[0]["session"] == kept.facts[0]["pid"]


def test_command_in_brackets_runs_in_the_folder_of_its_user(kept: Kept) -> None:
    kept.plan(server(kept.root), cwd=str(kept.root))
    kept.serve()
    assert kept.facts[0]["cwd"] == str(kept.root)


def test_a_client_waits_for_a_server_that_is_slow_to_serve(kept: Kept) -> None:
    """The socket is there before the server has opened its image."""
    kept.plan(shell(f"read go <{kept.root}/go; exec {' '.join(server(kept.root))}"))
    os.mkfifo(kept.root / "go")
    kept.start()
    eventually((kept.folder / "socket").exists)
    assert kept.facts == []
    with socket.socket(socket.AF_UNIX) as client, keeping.short(kept.folder) as folder:
        client.settimeout(PATIENCE)
        client.connect(f"{folder}/socket")
        (kept.root / "go").write_text("\n")
        assert int(client.recv(20)) == kept.state["pid"]


def test_a_client_of_a_dead_server_is_refused_at_once(kept: Kept) -> None:
    """With a copy of the listener in the keeper, it would wait for its whole timeout."""
    keeper = kept.serve()
    keeper.send_signal(signal.SIGSTOP)
    kill(kept.answers())
    with socket.socket(socket.AF_UNIX) as client, keeping.short(kept.folder) as folder:
        client.settimeout(PATIENCE)
        with pytest.raises(ConnectionRefusedError):
            client.connect(f"{folder}/socket")
    keeper.send_signal(signal.SIGCONT)


def test_a_socket_that_a_killed_keeper_left_half_made_does_not_matter(kept: Kept) -> None:
    with contextlib.chdir(kept.folder), socket.socket(socket.AF_UNIX) as stale:
        stale.bind("socket.new")
    kept.serve()
    assert not (kept.folder / "socket.new").exists()


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_of_the_server_reach_the_log_and_the_journal(kept: Kept) -> None:
    kept.plan(shell("echo one; echo two >&2; exec sleep infinity"))
    kept.start()
    eventually(lambda: kept.log == "one\ntwo\n")
    eventually(lambda: kept.errors == "one\ntwo\n")


def test_last_words_are_in_the_log_before_the_keeper_ends(kept: Kept) -> None:
    """By then its folder is gone, but the command has the log open."""
    log = os.open(kept.folder / "log", os.O_RDWR | os.O_CREAT)
    kept.plan(shell("echo cannot open the disk >&2; exit 3"))
    assert ended(kept.start()) == 0
    assert os.pread(log, 4096, 0) == b"cannot open the disk\nnbdattach: ended 3\n"
    os.close(log)


@pytest.mark.parametrize(
    ("command", "why"),
    [("/nonexistent/server", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
def test_a_program_that_cannot_be_run_says_why(kept: Kept, command: str, why: str) -> None:
    kept.plan([command])
    assert ended(kept.start()) == 0
    assert kept.errors == f"{command}: {why}\nnbdattach: ended 127\n"


def test_a_folder_that_is_gone_is_named_as_the_cause(kept: Kept) -> None:
    log = os.open(kept.folder / "log", os.O_RDWR | os.O_CREAT)
    gone = kept.root / "gone"
    kept.plan(server(kept.root), cwd=str(gone))
    ended(kept.start())
    said = os.pread(log, 4096, 0).decode()
    os.close(log)
    assert said == f"{gone}: No such file or directory\nnbdattach: ended 127\n"


def test_the_log_is_bounded_however_much_the_server_says(kept: Kept) -> None:
    """It is in /run, which is memory."""
    said = 1 << 20
    kept.plan(shell(f"head -c {said} /dev/zero | tr '\\0' x; echo done; exec sleep infinity"))
    log = os.open(kept.folder / "log", os.O_RDWR | os.O_CREAT)
    kept.start()
    largest = 0

    def is_done() -> bool:
        nonlocal largest
        largest = max(largest, os.fstat(log).st_size)
        return b"done\n" in os.pread(log, 1 << 20, 0)

    eventually(is_done)
    os.close(log)
    assert 0 < largest <= 70_000


def test_a_server_with_much_to_say_is_not_held_up(kept: Kept) -> None:
    """Not even while its keeper's standard error is full, as with a journal that hangs."""
    kept.plan(shell(f"head -c 1000000 /dev/zero; exec {' '.join(server(kept.root))}"))
    reader, writer = os.pipe()
    keeper = subprocess.Popen(kept.command(), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    kept.keepers.append(keeper)
    os.close(writer)
    eventually(lambda: bool(kept.answers()))
    os.close(reader)
    assert kept.answers()
    kill(kept.answers())
    assert ended(keeper) == 0


# -- while a command waits for it --------------------------------------------------------------------------------------


def test_a_server_that_dies_while_its_command_waits_is_not_started_again(kept: Kept) -> None:
    kept.plan(shell(f"echo x >>{kept.root}/starts; exit 1"))
    assert ended(kept.start()) == 0
    assert kept.is_gone()
    assert (kept.root / "starts").read_text() == "x\n"


def test_a_command_that_is_killed_leaves_neither_server_nor_folder(kept: Kept) -> None:
    keeper = kept.serve()
    kept.owner.kill()
    assert ended(keeper) == 0
    assert kept.is_gone()
    assert not kept.folder.parent.exists()


def test_a_command_that_was_killed_before_its_keeper_came_leaves_nothing(kept: Kept) -> None:
    """And its pid may be another process's by now."""
    kept.owner.kill()
    kept.owner.identity = (os.getpid(), 1)
    kept.plan(server(kept.root))
    assert ended(kept.start()) == 0
    assert kept.is_gone()


def test_a_keeper_without_a_plan_ends_with_its_command(kept: Kept) -> None:
    keeper = kept.start()
    eventually(lambda: kept.state.get("keeper") == keeper.pid)
    kept.owner.kill()
    assert ended(keeper) == 0
    assert kept.is_gone()


def test_a_keeper_without_a_plan_ends_at_a_signal(kept: Kept) -> None:
    keeper = kept.start()
    eventually(lambda: kept.state.get("keeper") == keeper.pid)
    keeper.send_signal(signal.SIGTERM)
    assert ended(keeper) == 0
    assert kept.is_gone()


def test_a_keeper_waits_for_its_plan(kept: Kept) -> None:
    keeper = kept.start()
    eventually(lambda: kept.state.get("keeper") == keeper.pid)
    kept.plan(server(kept.root))
    assert kept.another(0) == kept.state["pid"]


def test_only_root_looks_into_the_folder_of_a_server(kept: Kept) -> None:
    """Its socket needs no password, and its plan may have one."""
    kept.folder.rmdir()
    keeper = kept.start()
    eventually(lambda: kept.state.get("keeper") == keeper.pid)
    assert kept.folder.stat().st_mode & 0o777 == 0o700


def test_folders_of_other_servers_are_left_alone(kept: Kept) -> None:
    other = kept.folder.parent / "2"
    other.mkdir()
    keeper = kept.serve()
    kept.owner.kill()
    assert ended(keeper) == 0
    assert os.listdir(kept.folder.parent) == ["2"]


def test_files_of_the_plan_are_deleted_at_the_end(kept: Kept) -> None:
    overlay = kept.root / "overlay"
    overlay.touch()
    kept.plan(server(kept.root), delete=[str(overlay), str(kept.root / "never")])
    keeper = kept.serve()
    assert overlay.exists()
    kept.owner.kill()
    assert ended(keeper) == 0
    assert not overlay.exists()


def test_a_keeper_that_is_no_service_leaves_its_command(kept: Kept) -> None:
    kept.plan(server(kept.root))
    assert ended(kept.start("main_aside")) == 0
    eventually(lambda: bool(kept.answers()))
    keeper = kept.state["keeper"]
    assert os.getsid(keeper) == keeper != kept.keepers[0].pid
    assert procfs.started(keeper) == kept.state["keeper_started"]
    kept.owner.kill()
    eventually(kept.is_gone)


# -- while a device needs it -------------------------------------------------------------------------------------------


def test_a_record_that_names_it_keeps_the_server(kept: Kept) -> None:
    keeper = kept.serve()
    kept.attach()
    kept.owner.kill()
    first = kept.answers()
    kill(first)  # the next one is proof that the keeper has looked at the record
    assert kept.another(first)
    (kept.root / "run/nbd0.json").unlink()
    assert ended(keeper) == 0
    assert kept.is_gone()


def no_pid(kept: Kept) -> None:
    (kept.root / "sys/block/nbd0/pid").unlink()


def other_attachment(kept: Kept) -> None:
    (kept.root / "run/nbd0.json").write_text(json.dumps({"server": {"folder": "/run/nbdattach/servers/2"}}))


def no_server(kept: Kept) -> None:
    (kept.root / "run/nbd0.json").write_text(json.dumps({"server": None}))


def older_record(kept: Kept) -> None:
    (kept.root / "run/nbd0.json").write_text(json.dumps({"tag": "t"}))


def taken_back(kept: Kept) -> None:
    (kept.folder / "device").unlink()


@pytest.mark.parametrize("change", [no_pid, other_attachment, no_server, older_record, taken_back])
def test_a_server_that_no_device_needs_is_ended(kept: Kept, change: object) -> None:
    keeper = kept.serve()
    kept.attach()
    kept.owner.kill()
    assert kept.another(killed(kept))
    assert callable(change)
    change(kept)
    assert ended(keeper) == 0
    assert kept.is_gone()


def killed(kept: Kept) -> int:
    pid = kept.answers()
    kill(pid)
    return pid


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "5", '{"server": "x"}', '{"server": [1]}', "[" * 100_000])
def test_a_record_that_cannot_be_read_never_takes_the_server_from_a_device(kept: Kept, content: str) -> None:
    """In doubt the device needs it: without its server, writes of a mounted file system are lost."""
    keeper = kept.serve()
    kept.attach()
    kept.owner.kill()
    (kept.root / "run/nbd0.json").write_text(content)
    assert kept.another(killed(kept)), kept.errors
    assert kept.another(killed(kept)), kept.errors
    assert keeper.poll() is None


def test_a_server_that_dies_under_its_device_is_started_again_and_that_is_logged(kept: Kept) -> None:
    kept.serve()
    kept.attach()
    kept.owner.kill()
    pid = kept.another(killed(kept))
    assert (kept.state["restarts"], kept.state["pid"]) == (1, pid)
    assert kept.servers() == [pid]
    assert "nbdattach: /d.img: its server ended (killed by signal 9); starting it again\n" in kept.log


def test_a_server_that_dies_under_its_device_is_started_again_even_while_its_command_lives(kept: Kept) -> None:
    """As with connect -f, and with a Python program that attached it."""
    kept.serve()
    kept.attach()
    pid = kept.another(killed(kept))
    assert pid
    assert kept.servers() == [pid]


def test_each_start_of_a_server_that_dies_again_and_again_waits_longer(kept: Kept) -> None:
    """Until it has lived for a while; the last pause is for all further ones."""
    kept.serve(server(kept.root, "frail"), pauses="(0.0, 0.2, 0.4)")
    kept.attach()
    kept.owner.kill()
    (kept.root / "dying").touch()
    killed(kept)
    eventually(lambda: len(kept.facts) >= 5)
    times = [facts["at"] for facts in kept.facts[1:5]]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert [pause >= least for pause, least in zip(pauses, (0.2, 0.4, 0.4), strict=True)] == [True] * 3
    assert "(exit code 7)" in kept.log


def test_after_a_server_that_was_well_the_first_pause_is_short_again(kept: Kept) -> None:
    kept.serve(pauses="(0.0, 3600.0)", well=0.0)
    kept.attach()
    kept.owner.kill()
    for _ in range(3):
        assert kept.another(killed(kept))


def test_what_has_to_be_done_first_is_done_before_the_first_start_only(kept: Kept) -> None:
    note = kept.root / "prepared"
    kept.plan(server(kept.root), prepare=shell(f"echo x >>{note}"))
    kept.serve()
    assert kept.state["restarts"] == 0
    kept.attach()
    kept.owner.kill()
    assert kept.another(killed(kept))
    assert kept.state["restarts"] == 1
    assert note.read_text() == "x\n"


def test_a_file_that_is_made_for_a_server_can_be_read_by_its_user_only(kept: Kept) -> None:
    """The folder of an overlay is everyone's, and it has the writes to the disk."""
    overlay = kept.root / "overlay"
    kept.plan(server(kept.root), prepare=shell(f": >{overlay}"), delete=[str(overlay)])
    before = os.umask(0o022)
    try:
        kept.serve()
    finally:
        os.umask(before)
    assert overlay.stat().st_mode & 0o777 == 0o600


def test_an_image_is_mended_before_each_further_start_and_not_before_the_first(kept: Kept) -> None:
    note = f"{kept.root}/repairs"
    kept.plan(server(kept.root), repair=shell(f"echo mended; echo x >>{note}"))
    kept.serve()
    assert not Path(note).exists()
    kept.attach()
    kept.owner.kill()
    for count in (1, 2):
        assert kept.another(killed(kept))
        assert Path(note).read_text() == "x\n" * count
    assert kept.log.count("mended\n") == 2


def test_a_repair_with_much_to_say_does_not_hang(kept: Kept) -> None:
    """As qemu-img check has with a damaged image: its words fill the pipe that only the keeper reads."""
    kept.plan(server(kept.root), repair=shell(f"head -c 200000 /dev/zero; : >{kept.root}/mended"))
    kept.serve()
    kept.attach()
    kept.owner.kill()
    assert kept.another(killed(kept))
    assert (kept.root / "mended").exists()


# -- keepers that are killed -------------------------------------------------------------------------------------------


def test_a_killed_keeper_takes_no_server_with_it_and_the_next_one_goes_on_with_it(kept: Kept) -> None:
    first = kept.serve()
    kept.attach()
    kept.owner.kill()
    pid = kept.answers()
    first.kill()
    first.wait(PATIENCE)
    assert kept.answers() == pid
    second = kept.start()
    eventually(lambda: kept.state["keeper"] == second.pid)
    assert kept.answers() == kept.state["pid"] == pid
    assert kept.servers() == [pid]
    assert kept.another(killed(kept))
    assert kept.state["restarts"] == 1


def test_the_next_keeper_hears_what_the_server_says(kept: Kept) -> None:
    os.mkfifo(kept.root / "go")
    kept.plan(shell(f"exec 4<>{kept.root}/go; while read word <&4; do echo $word; done"))
    first = kept.start()
    eventually(lambda: bool(kept.servers()))
    kept.attach()
    kept.owner.kill()
    first.kill()
    first.wait(PATIENCE)
    kept.start()
    (kept.root / "go").write_text("hello\n")
    # The first keeper may have been killed before its server ran; then there is a line about that.
    eventually(lambda: kept.log.endswith("hello\n"))


def test_the_next_keeper_has_the_locks_of_the_server(kept: Kept) -> None:
    """Else another program could write the image between this server and the next one."""
    image, files = an_image(kept)
    kept.plan(server(kept.root), files=files, locks=[(image, "write")])
    first = kept.serve()
    kept.attach()
    kept.owner.kill()
    first.kill()
    first.wait(PATIENCE)
    second = kept.start()
    eventually(lambda: image in links_of(second.pid))
    assert kept.state["locks"] == 1
    kill(kept.state["pid"])
    for _ in range(200):
        with pytest.raises(OSError, match="Failed to get the lock"):
            image_lock.all_locked([(image, "write")])
    eventually(lambda: kept.state["restarts"] == 1)


@pytest.fixture
def beside(kept: Kept) -> Iterator[Kept]:
    """The folder of another keeper, which is to serve an image that the one of `kept` serves already."""
    image, files = an_image(kept)
    with keeping.kept(kept.root, "2") as made:
        for one in (kept, made):
            one.plan(server(kept.root), files=files, locks=[(image, "write")])
        kept.serve()
        yield made


def test_the_image_of_an_attachment_that_has_just_gone_is_waited_for(kept: Kept, beside: Kept) -> None:
    second = beside.start()
    eventually(lambda: "keeper" in beside.state)
    # Of others that just start or end.
    for number, odd in enumerate(("", "{}", "[", "[]", '{"files": 5, "locks": 7}')):
        folder = kept.folder.parent / f"0{number}"
        folder.mkdir()
        (folder / "plan").write_text(odd)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    assert beside.state["pid"] == 0
    kept.owner.kill()
    assert ended(*kept.keepers) == 0
    eventually(lambda: bool(beside.state["pid"]))


def test_it_is_not_waited_for_longer_than_that_takes(kept: Kept, beside: Kept) -> None:
    assert ended(beside.start(last=0.3)) == 0
    assert kept.state["pid"] in kept.servers()


@pytest.mark.parametrize("how", [signal.SIGTERM, None], ids=["a signal", "the end of its command"])
def test_who_waits_for_an_image_can_be_ended(kept: Kept, beside: Kept, how: signal.Signals | None) -> None:
    waiting = beside.start()
    eventually(lambda: "keeper" in beside.state)
    if how:
        waiting.send_signal(how)
    else:
        beside.owner.kill()
    assert ended(waiting) == 0


def test_another_file_that_has_got_the_name_meanwhile_is_not_served(kept: Kept, beside: Kept) -> None:
    waiting = beside.start()
    eventually(lambda: "keeper" in beside.state)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.2)
    other = kept.root / "other.img"
    other.touch()
    other.rename(kept.root / "a.img")
    assert ended(waiting) == 0
    assert len(kept.facts) == 1, "a server was started"


@pytest.mark.parametrize(
    ("locks", "theirs"),
    [
        pytest.param(
            ["write"], {"files": [["/other.img", "1:2"]], "locks": [["/other.img", "write"]]}, id="other_file"
        ),
        pytest.param(["read"], {"locks": "read"}, id="both_only_read"),
        pytest.param(["write"], {"locks": ""}, id="no_lock"),
    ],
)
def test_an_image_that_another_program_has_is_refused_at_once(
    kept: Kept, locks: list[str], theirs: dict[str, Any]
) -> None:
    image, files = an_image(kept)
    other = kept.folder.parent / "2"
    other.mkdir()
    how = theirs["locks"]
    plan = theirs if "files" in theirs else {"files": files, "locks": [(image, how)] if how else []}
    (other / "plan").write_text(json.dumps(plan))
    held = image_lock.all_locked([(image, "write")])
    kept.plan(server(kept.root), files=files, locks=[(image, one) for one in locks])
    assert ended(kept.start()) == 0
    assert not kept.servers()
    for one in held:
        os.close(one)


def an_image(kept: Kept) -> tuple[str, list[tuple[str, str]]]:
    """Its path, and what a plan has of it."""
    path = kept.root / "a.img"
    path.touch()
    return str(path), [(str(path), bare_files.identity(os.stat(path)))]


def links_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    return []


def test_the_next_keeper_ends_the_server_that_no_device_needs(kept: Kept) -> None:
    first = kept.serve()
    first.kill()
    first.wait(PATIENCE)
    kept.owner.kill()
    assert ended(kept.start()) == 0
    assert kept.is_gone()


def test_the_next_keeper_starts_a_server_if_it_died_with_the_first_one(kept: Kept) -> None:
    first = kept.serve()
    kept.attach()
    kept.owner.kill()
    first.kill()
    first.wait(PATIENCE)
    pid = killed(kept)
    kept.start()
    assert kept.another(pid)
    assert kept.state["restarts"] == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}', '{"restarts": "x", "pid": "y", "started": []}'])
def test_a_state_that_cannot_be_read_does_not_stop_a_keeper(kept: Kept, content: str) -> None:
    (kept.folder / "state").write_text(content)
    kept.serve()
    assert kept.servers() == [kept.state["pid"]]


def test_what_prepares_an_image_runs_once_even_if_the_keeper_dies_while_the_server_is_dead(kept: Kept) -> None:
    """Twice would make the file of a snapshot anew, without the writes."""
    kept.plan(server(kept.root), prepare=["/bin/sh", "-c", f"echo >>{kept.root}/prepared"])
    first = kept.start()
    eventually(lambda: kept.answers() > 0)
    pid = kept.answers()
    kept.attach()
    kept.owner.kill()
    first.kill()
    first.wait(PATIENCE)
    kill(pid)
    state = json.loads((kept.folder / "state").read_text())
    (kept.folder / "state").write_text(json.dumps({**state, "pid": 0, "started": 0}))  # as while it pauses
    kept.start()
    eventually(lambda: kept.answers() > 0)
    assert (kept.root / "prepared").read_text() == "\n"


def test_a_process_that_has_the_pid_of_the_server_by_now_is_left_alone(kept: Kept) -> None:
    other = keeping.Owner()
    pid, began = other.identity
    (kept.folder / "state").write_text(
        json.dumps({"pid": pid, "started": (began or 0) - 1, "restarts": 4, "begun": True})
    )
    keeper = kept.serve()
    assert kept.state["restarts"] == 5
    kept.owner.kill()
    assert ended(keeper) == 0
    assert procfs.alive(pid)
    other.kill()


def test_two_keepers_of_one_folder_never_run_two_servers(kept: Kept) -> None:
    """Both may be started in place of a dead one: by systemd, by the monitor. Two servers would write one image."""
    kept.serve()
    kept.attach()
    kept.owner.kill()
    kept.start()
    for _ in range(20):  # the second one begins during one of them
        assert kept.another(killed(kept))
    detach(kept)
    for keeper in kept.keepers:
        keeper.send_signal(signal.SIGTERM)
        ended(keeper)
    assert (kept.errors.count("starting it again"), len(kept.facts)) == (20, 21)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both(kept: Kept, number: signal.Signals) -> None:
    keeper = kept.serve()
    keeper.send_signal(number)
    assert ended(keeper) == 0
    assert kept.is_gone()
    assert kept.errors == "serving\nnbdattach: ended 0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_take_the_server_from_a_device(kept: Kept, number: signal.Signals) -> None:
    keeper = kept.serve()
    kept.attach()
    kept.owner.kill()
    keeper.send_signal(number)
    eventually(lambda: "asked to end, but a device needs the server" in kept.errors)
    pid = kept.answers()
    assert pid > 0
    detach(kept)
    assert ended(keeper) == 0


def test_a_server_that_ends_with_its_keeper_at_a_shutdown_is_not_started_again(kept: Kept) -> None:
    """If it was none, another keeper finds all that it needs, and goes on."""
    keeper = kept.serve()
    kept.attach()
    kept.owner.kill()
    keeper.send_signal(signal.SIGTERM)
    eventually(lambda: "asked to end" in kept.errors)
    os.kill(kept.state["pid"], signal.SIGTERM)
    assert ended(keeper) == 1
    assert not kept.servers()
    kept.start()
    kept.answers()
    detach(kept)
    eventually(kept.is_gone)


def detach(kept: Kept) -> None:
    (kept.root / "run/nbd0.json").unlink()


def test_hanging_up_ends_neither(kept: Kept) -> None:
    keeper = kept.serve()
    keeper.send_signal(signal.SIGHUP)
    keeper.send_signal(signal.SIGTERM)
    assert ended(keeper) == 0


def test_the_words_of_a_server_at_its_end_are_heard(kept: Kept) -> None:
    kept.plan(shell("trap 'echo cannot write: no space; exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
    keeper = kept.start()
    eventually(lambda: kept.log == "ready\n")
    keeper.send_signal(signal.SIGTERM)
    assert ended(keeper) == 0
    assert kept.errors == "ready\ncannot write: no space\nnbdattach: ended 5\n"


def test_a_server_that_takes_long_to_end_is_waited_for_until_the_second_signal(kept: Kept) -> None:
    """It may have much to write."""
    keeper = kept.serve(server(kept.root, "deaf"))
    pid = kept.answers()
    keeper.send_signal(signal.SIGTERM)
    eventually(lambda: not pending(keeper.pid))
    assert kept.answers() == pid
    assert keeper.poll() is None
    keeper.send_signal(signal.SIGTERM)
    assert ended(keeper) == 0
    assert kept.is_gone()
    assert kept.errors.endswith("nbdattach: ended -9\n")


def pending(pid: int) -> bool:
    """Whether a signal waits for the process, or the process for a moment of the processor."""
    with open(f"/proc/{pid}/status") as file:
        waits = any(line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) for line in file)
    return waits or not procfs.asleep(pid)


def test_a_server_that_ignores_the_end_of_its_command_is_waited_for_as_well(kept: Kept) -> None:
    keeper = kept.serve(server(kept.root, "deaf"))
    kept.owner.kill()
    pid = kept.answers()
    for _ in range(5):
        assert kept.answers() == pid
    kill(pid)
    assert ended(keeper) == 0
    assert kept.is_gone()


def test_a_signal_ends_the_pause_before_a_start(kept: Kept) -> None:
    kept.serve(pauses="(3600.0,)")
    kept.attach()
    kept.owner.kill()
    killed(kept)
    eventually(lambda: kept.state["pid"] == 0)
    detach(kept)
    kept.keepers[0].send_signal(signal.SIGTERM)
    assert ended(kept.keepers[0]) == 0
    assert kept.is_gone()


def test_a_detach_ends_the_pause_before_a_start(kept: Kept) -> None:
    kept.serve(pauses="(3600.0,)")
    kept.attach()
    kept.owner.kill()
    killed(kept)
    eventually(lambda: kept.state["pid"] == 0)
    (kept.root / "run/nbd0.json").unlink()
    assert ended(kept.keepers[0]) == 0
    assert kept.is_gone()


def test_a_keeper_that_fails_leaves_no_server(kept: Kept) -> None:
    """The command that was interrupted has removed the folder while the server was being started."""
    command = kept.command()
    code = command.index("-c") + 1
    meddle = f"""
import os, shutil
was = keeper.Keeper._note
def note(self):
    was(self)
    if self._pid:
        shutil.rmtree("{kept.folder}")
keeper.Keeper._note = note
"""
    command[code] = command[code].replace("keeper.main(", f"{meddle}keeper.main(")
    kept.plan(IDLE)
    with open(kept.root / "errors", "ab") as errors:
        keeper = subprocess.Popen(command, stderr=errors)
    kept.keepers.append(keeper)
    ended(keeper)
    assert kept.servers() == []
