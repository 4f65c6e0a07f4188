# SPDX-License-Identifier: GPL-2.0-or-later
"""A server for a command: it serves inside of the context, nothing is left after it, errors name the source."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import keeping
import pytest
from keeping import kill, pretending, processes_of, server, shell
from loopback import eventually
from peer import soon

from nbdattach.connect_options import USUAL, ImageOptions
from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused, Malformed, NbdattachError, NoConnection, Refused
from nbdattach.host import bare_files
from nbdattach.own_server import kept, start, words
from nbdattach.own_server.end import end
from nbdattach.own_server.orphans import end_orphans
from nbdattach.own_server.source import Source
from nbdattach.own_server.start import Served
from nbdattach.server_of_ours import Image, OwnServer

DYING = Source(words=("/bin/sh", "-c", "echo cannot open the disk >&2; exit 3"))
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keepers of this test have their folders and records below it; none outlives the test."""
    monkeypatch.setattr(kept, "bare_python", lambda _module, function, *rest: [*pretending(tmp_path, function), *rest])
    for module in ("kept", "end"):
        monkeypatch.setattr(f"nbdattach.own_server.{module}.FOLDER", f"{tmp_path}/run/servers")
    monkeypatch.setattr(start.systemd, "in_charge", lambda: False)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{tmp_path}/user")
    yield tmp_path
    for pid in processes_of(tmp_path):
        kill(pid)


def served(
    source: Source, options: ImageOptions = USUAL, lasting: bool = False
) -> contextlib.AbstractContextManager[Served]:
    return start.served(source, start.plan_of(source, options, read_only=False, look=not lasting), lasting)


def serving(root: Path, *rest: str) -> Source:
    return Source(words=tuple(server(root, *rest)))


def answer(one: Served) -> int:
    """The pid of the server."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(one.target.socket)
        return int(client.recv(20))


def is_nothing_left(root: Path) -> bool:
    run = root / "run"
    if not (root / "user").is_dir():  # it is the user's, even if it is empty
        return False
    return not (processes_of(root) or os.listdir(root / "user") or (run.exists() and os.listdir(run)))


def attach(root: Path, one: OwnServer) -> None:
    """The device's record names the server."""
    made = keeping.Kept.__new__(keeping.Kept)
    made.root, made.folder = root, Path(one.folder)
    made.attach()


def detach(root: Path) -> None:
    (root / "run/nbd0.json").unlink(missing_ok=True)


# -- nothing is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasting", [False, True])
def test_it_serves_inside_of_the_context_and_nothing_is_left_after_it(root: Path, lasting: bool) -> None:
    with served(serving(root), lasting=lasting) as one:
        assert answer(one) in processes_of(root)
        assert one.server.name == serving(root).name
    assert is_nothing_left(root)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, NoConnection])
def test_nothing_is_left_when_the_caller_fails(root: Path, error: type[BaseException]) -> None:
    made = error("it", "no", "try")
    with pytest.raises(error) as caught, served(serving(root), lasting=True):
        raise made
    assert caught.value is made
    assert is_nothing_left(root)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_plan_cannot_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(start.bare_files, "replace", fails)
    with pytest.raises((KernelRefused, KeyboardInterrupt)), served(serving(root), lasting=True):
        pass
    assert is_nothing_left(root)


def test_a_program_that_does_not_exist_is_said_and_nothing_is_left(root: Path) -> None:
    with pytest.raises(KernelRefused) as caught, served(Source(words=("no-such-server", "-x"))):
        pass
    assert str(caught.value) == "[ no-such-server -x ]: it needs the program no-such-server, which is not installed"
    assert is_nothing_left(root)


def test_options_of_an_image_are_refused_for_a_command(root: Path) -> None:
    """With --snapshot the user wants no write to reach the disk, but the command would write there."""
    for options in (ImageOptions(snapshot=True), ImageOptions(offset=512), ImageOptions(format="raw")):
        with pytest.raises(Malformed), served(serving(root), options):
            pass
    assert is_nothing_left(root)


def test_a_server_that_ignores_the_end_is_killed_if_a_command_only_looked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_LOOK_SECONDS", 0.1)
    with served(serving(root, "deaf")) as one:
        answer(one)
    assert is_nothing_left(root)


def test_a_folder_of_the_user_that_does_not_exist_is_no_internal_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After su and sudo, XDG_RUNTIME_DIR may name one of another session."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{root}/gone")
    monkeypatch.setattr(start, "_START_SECONDS", 5.0)
    try:
        with served(serving(root)) as one:
            assert answer(one)
    except NbdattachError:
        pass


def test_a_socket_in_a_folder_with_a_long_name_can_be_reached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of a socket has 107 bytes."""
    long = root / "user" / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with served(serving(root)) as one:
        assert len(one.target.socket) <= 107


# -- left to a device --------------------------------------------------------------------------------------------------


def test_a_server_that_is_left_to_a_device_outlives_the_context_until_it_is_ended(root: Path) -> None:
    with served(serving(root), lasting=True) as one:
        attach(root, one.server)
        kept.leave_to(one.server, "nbd0")
        eventually(lambda: one._words() == "serving")
    assert answer(one) == pid_of(one)
    detach(root)
    assert end(one.server, Deadline(PATIENCE)) == ""
    assert not os.path.exists(one.server.folder)
    assert processes_of(root) == []


def test_a_server_that_was_taken_back_ends_with_the_context(root: Path) -> None:
    with served(serving(root), lasting=True) as one:
        kept.leave_to(one.server, "nbd0")
        kept.take_back(one.server)
    assert is_nothing_left(root)


def pid_of(one: Served) -> int | None:
    found = kept.state_of(one.server)
    return found.living_server if found else None


SLOW = "trap 'echo cannot write: no space; exit 5' TERM; echo ready; : >{0}/ready; while :; do sleep 0.01; done"


def left(root: Path, command: list[str]) -> OwnServer:
    with served(Source(words=tuple(command)), lasting=True) as one:
        attach(root, one.server)
    return one.server


def test_the_words_of_a_server_at_its_end_are_told(root: Path) -> None:
    """They may say that it could not write."""
    there = left(root, shell(SLOW.format(root)))
    eventually((root / "ready").exists)
    detach(root)
    assert end(there, Deadline(PATIENCE)) == "cannot write: no space"
    assert processes_of(root) == []


def test_a_server_that_does_not_end_in_time_is_named_and_lives(root: Path) -> None:
    there = left(root, server(root, "deaf"))
    eventually((root / "facts").exists)
    pid = found.living_server if (found := kept.state_of(there)) else None
    with pytest.raises(KernelRefused) as caught:
        end(there, Deadline(0.2))
    assert str(caught.value) == f"{there.name[:200]}: detached, but its server (process {pid}) has not ended"
    assert caught.value.hint == f"kill -KILL {pid} ends it"
    assert os.path.exists(there.folder)


def test_the_end_of_a_server_that_has_ended_is_no_error(root: Path) -> None:
    with served(serving(root), lasting=True) as one:
        there = one.server
    assert end(there, Deadline(PATIENCE)) == ""


def test_a_server_whose_keeper_was_killed_is_ended_all_the_same(root: Path) -> None:
    there = left(root, server(root))
    eventually((root / "facts").exists)
    found = kept.state_of(there)
    assert found
    kill(found.keeper)
    assert end(there, Deadline(PATIENCE)) == ""
    assert processes_of(root) == []


def test_a_server_whose_keeper_was_killed_is_killed_at_the_deadline(root: Path) -> None:
    there = left(root, server(root, "deaf"))
    eventually((root / "facts").exists)
    found = kept.state_of(there)
    assert found
    kill(found.keeper)
    end(there, Deadline(0.2), kill=True)
    assert processes_of(root) == []


# -- servers that nothing needs ----------------------------------------------------------------------------------------


def test_a_server_whose_keeper_was_killed_is_ended_if_no_device_has_it(root: Path) -> None:
    there = left(root, server(root))
    eventually((root / "facts").exists)
    found = kept.state_of(there)
    assert found
    kill(found.keeper)
    end_orphans({there.folder})
    assert os.path.exists(there.folder) and processes_of(root)
    detach(root)
    end_orphans(())
    assert is_nothing_left(root)


def test_a_server_with_a_living_keeper_is_no_orphan(root: Path) -> None:
    with served(serving(root), lasting=True) as one:
        end_orphans(())
        assert answer(one)


def test_a_keeper_that_just_begins_is_no_orphan(root: Path) -> None:
    folder = root / "run/servers/1"
    folder.mkdir(parents=True)
    for name in ("", "keeper"):
        if name:
            (folder / name).touch()
        end_orphans(())
        assert folder.exists()
    os.utime(folder, (0, 0))
    end_orphans(())
    assert not folder.exists()


# -- the very file -----------------------------------------------------------------------------------------------------


def test_a_server_that_has_opened_another_file_is_refused(root: Path) -> None:
    image, other = root / "a.img", root / "b.img"
    for path in (image, other):
        path.touch()
    there = Image(str(image), "raw", bare_files.identity(os.stat(image)))
    for opened, right in ((image, True), (other, False)):
        with served(Source(words=tuple(shell(f"exec 7<{opened}; exec sleep 60")))) as one:
            eventually(lambda: len(kept._files_of(kept.state_of(one.server) or kept.State())) == 1)
            server = replace(one.server, image=there)
            if right:
                kept.require_same_file(server)
            else:
                with pytest.raises(Refused, match="another file has its name now"):
                    kept.require_same_file(server)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_server_that_cannot_start_is_refused_with_its_last_words() -> None:
    with pytest.raises(Refused) as caught, soon(), served(DYING) as one, one.explained():
        raise NoConnection(one.target.uri, "cannot connect: Connection refused", "is it up?")
    assert str(caught.value) == f"{DYING.name}: its server sh ended; it says: 'cannot open the disk'"
    assert caught.value.hint == f"its command: /bin/sh -c '{DYING.words[2]}'"


def test_an_error_of_a_living_server_names_the_source_instead_of_its_socket(root: Path) -> None:
    name = serving(root).name[:200]
    for kind in (NoConnection, KernelRefused):
        with pytest.raises(kind) as caught, served(serving(root)) as one, one.explained():
            uri = one.target.uri
            raise kind(uri, f"{uri} is slow", f"see nbdattach list {uri}")
        assert uri not in f"{caught.value}{caught.value.hint}"
        assert caught.value.thing.startswith(name)
        assert str(caught.value).startswith(f"{caught.value.thing}: {caught.value.thing} is slow")


def test_a_server_that_lives_and_refuses_has_told_why(root: Path) -> None:
    with pytest.raises(Refused) as caught, served(serving(root)) as one, one.explained():
        answer(one)
        eventually(lambda: bool(one._words()))
        raise Refused(one.target.uri, "the server has no default export", "try")
    assert caught.value.cause == "the server has no default export; its server says: 'serving'"


def test_half_a_line_of_a_server_is_waited_for_to_its_end(root: Path) -> None:
    """nbdkit writes its name first, and then the error."""
    script = f"printf 'nbdkit:'; until [ -e {root}/go ]; do sleep 0.01; done; echo ' error: no route'; exec sleep 60"
    with served(Source(words=tuple(shell(script)))) as one:
        eventually(lambda: one._words() == "nbdkit:")
        Path(root, "go").touch()
        assert one._words_soon() == "nbdkit: error: no route"


def test_a_server_that_does_not_take_its_socket_is_told_from_others(root: Path) -> None:
    """As a script that nbdkit has as a plugin: nbdkit starts itself again for it, and has lost its socket then."""
    for script in ("exec 3>&-; exec sleep 60", "exit 0"):
        source = Source(words=tuple(shell(script)))
        with pytest.raises((NoConnection, Refused)) as caught, served(source) as one, one.explained():
            eventually(partial(is_refused, one))
            raise NoConnection(one.target.uri, "cannot connect: Connection refused", "is it up?")
        assert caught.value.hint.startswith("does it take its socket by LISTEN_FDS, and stay in the foreground? its ")


def is_refused(one: Served) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(one.target.socket) != 0


@pytest.mark.parametrize(
    ("log", "last"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\n", "two"),
        (b"two", "two"),
        (b"nbdattach: ended 1\n", ""),
        (b"why\nnbdattach: ended 1\n", "why"),
        (b"nbdkit: error: no such disk\nnbdkit: shutting down\n", "nbdkit: error: no such disk"),
        (b"\xff\n", "\ufffd"),
    ],
)
def test_the_last_words_are_the_servers_and_its_last_error_if_there_is_one(log: bytes, last: str) -> None:
    assert words.last_words(log) == last


def test_the_last_words_of_a_long_log_are_found(root: Path) -> None:
    source = Source(
        words=tuple(
            shell(f"head -c 66000 /dev/zero | tr '\\0' '\\n'; echo the end; : >{root}/said; exec cat {root}/go")
        )
    )
    os.mkfifo(root / "go")
    with served(source) as one:
        eventually(lambda: one._words() == "the end")


# -- the monitor -------------------------------------------------------------------------------------------------------


def test_the_monitor_has_a_dead_keeper_replaced_and_names_the_image(root: Path) -> None:
    there = left(root, server(root))
    eventually((root / "facts").exists)
    before = kept.state_of(there)
    assert before
    kill(before.keeper)
    error = words.revived(there, NoConnection("nbd+unix:///?socket=/s", "slow", "try"), "nbd+unix:///?socket=/s")
    assert error.thing.startswith("[ ")

    def has_another() -> bool:
        found = kept.state_of(there)
        return found is not None and found.living_keeper not in (None, before.keeper)

    eventually(has_another)
    after = kept.state_of(there)
    assert after
    assert after.living_server == before.pid
    detach(root)
    end(there, Deadline(PATIENCE))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": -1}', "[" * 100_000])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    assert kept.state_of(OwnServer("/d.img", str(tmp_path), ("qemu-nbd",))) is None


def test_a_process_that_has_the_pid_by_now_is_not_the_server(tmp_path: Path) -> None:
    (tmp_path / "state").write_text(f'{{"pid": {os.getpid()}, "started": 1, "keeper": {os.getpid()}}}')
    found = kept.state_of(OwnServer("/d.img", str(tmp_path), ("qemu-nbd",)))
    assert found
    assert (found.living_server, found.living_keeper) == (None, None)


def test_a_signal_of_the_users_terminal_reaches_neither_keeper_nor_server(root: Path) -> None:
    with served(serving(root)) as one:
        assert {os.getsid(pid) for pid in processes_of(root)} & {os.getsid(0)} == set()
        answer(one)
