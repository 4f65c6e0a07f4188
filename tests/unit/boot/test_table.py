# SPDX-License-Identifier: GPL-2.0-or-later
"""`up` and `down` through the command line, with a fake kernel side."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from host import Host, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Identity, Record
from nbdattach.boot import table
from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, NoConnection, Refused
from nbdattach.operations import attachment, detachment
from nbdattach.operations.handle import Attachment
from nbdattach.protocol.target import Target
from nbdattach.reporter import Reporter

Capture = pytest.CaptureFixture[str]
Attach = Callable[[Target, Device, ConnectOptions, object], Attachment]
LINES = "nbd0 db1 disk\nnbd1 db2 root port=2000,on-loss=wait\n/dev/nbd2 /run/s a unix\n"
PARALLEL_SECONDS = 60


def ran(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main.run(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "nbdtab"
    made.write_text(LINES)
    return made


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return pretend(tmp_path, monkeypatch)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch, host: Host) -> list[tuple[int, str, ConnectOptions]]:
    """The requests: device, URI and options. All of them succeed."""
    asked: list[tuple[int, str, ConnectOptions]] = []

    def attach(target: Target, device: Device, options: ConnectOptions, _: object) -> Attachment:
        asked.append((device.index, target.uri, options))
        return Attachment(device.path, 4711)

    monkeypatch.setattr(attachment, "attach", attach)
    return asked


# -- up ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nbd1", "/dev/nbd1"])
def test_up_attaches_what_the_line_says_and_prints_the_device(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]], name: str
) -> None:
    assert ran(capsys, "up", "--table", str(file), name) == (0, "/dev/nbd1\n", "")
    assert attached == [(1, "nbd://db2:2000/root", ConnectOptions(on_loss=float("inf"), table=str(file)))]


def test_a_line_that_says_how_long_to_try_is_taken_at_its_word(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    file.write_text("nbd0 h e retry-for=0\nnbd1 h e retry-for=7\nnbd2 h e\n")
    assert ran(capsys, "up", "--all", "--retry-for", "90", "--table", str(file))[0] == 0
    assert sorted((index, options.retry_for) for index, _, options in attached) == [(0, 0), (1, 7), (2, 90)]


def test_up_of_a_device_named_twice_is_one(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    assert ran(capsys, "up", "--table", str(file), "nbd0", "/dev/nbd0")[:2] == (0, "/dev/nbd0\n")
    assert [index for index, *_ in attached] == [0]


@pytest.mark.usefixtures("host")
def test_steps_are_told_with_their_device(capsys: Capture, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(_target: Target, device: Device, _options: ConnectOptions, reporter: Reporter) -> Attachment:
        reporter.trace("connecting")
        return Attachment(device.path, 4711)

    monkeypatch.setattr(attachment, "attach", attach)
    code, _, err = ran(capsys, "up", "--debug", "--table", str(file), "nbd0", "nbd1")
    assert code == 0
    assert sorted(err.splitlines()) == [f"nbdattach: debug: nbd{number}: connecting" for number in (0, 1)]


@pytest.mark.usefixtures("host")
def test_up_all_attaches_every_line_at_the_same_time(
    capsys: Capture, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(3)

    def attach(_target: Target, device: Device, _options: ConnectOptions, _: object) -> Attachment:
        meeting.wait(PARALLEL_SECONDS)  # raises if the others do not come
        return Attachment(device.path, 4711)

    monkeypatch.setattr(attachment, "attach", attach)
    code, out, err = ran(capsys, "up", "--all", "--table", str(file))
    assert (code, sorted(out.split()), err) == (0, ["/dev/nbd0", "/dev/nbd1", "/dev/nbd2"], "")


@pytest.mark.usefixtures("host")
def test_failures_are_told_as_they_come_and_the_first_line_of_them_decides(
    capsys: Capture, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(3)

    def attach(target: Target, device: Device, _options: ConnectOptions, _: object) -> Attachment:
        meeting.wait(PARALLEL_SECONDS)
        if device.index == 0:
            raise NoConnection(target.uri, "cannot connect: Connection refused", "is it up?")
        if device.index == 1:
            raise DeviceInUse(device.path, "mounted", "release it first", ["mounted at /mnt: umount /mnt"])
        return Attachment(device.path, 4711, ["a tail is ignored"])

    monkeypatch.setattr(attachment, "attach", attach)
    code, out, err = ran(capsys, "up", "--all", "--table", str(file))
    assert (code, out) == (3, "/dev/nbd2\n")
    assert sorted(err.splitlines()) == sorted([
        "nbdattach: a tail is ignored",
        "nbdattach: /dev/nbd0: nbd://db1/disk: cannot connect: Connection refused",
        "(is it up?)",
        "nbdattach: /dev/nbd1: mounted",
        "  mounted at /mnt: umount /mnt",
        "(release it first)",
    ])  # fmt: skip


@pytest.mark.usefixtures("host")
def test_an_error_of_another_thing_than_the_device_names_both_and_stays_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(*_: object) -> NoReturn:
        raise DeviceInUse("the tag disk", "taken", "take another", ["held by /dev/nbd7: nbdattach disconnect nbd7"])

    monkeypatch.setattr(attachment, "attach", attach)
    entry = table.read(str(file)).entries[0]
    ((_, error),) = table.up([entry])
    assert isinstance(error, DeviceInUse)
    assert str(error) == "/dev/nbd0: the tag disk: taken"
    assert error.users == ("held by /dev/nbd7: nbdattach disconnect nbd7",)


def test_a_line_with_a_mistake_keeps_no_other_from_being_attached(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    file.write_text("nbd0 db1 disk frob\nnbd1 db1 root\n")
    said = f"nbdattach: {file}:1:15: unknown option 'frob'\n(see nbdtab(5) for the options; _NAME is ignored)\n"
    assert ran(capsys, "up", "--table", str(file), "--all") == (2, "/dev/nbd1\n", said)
    assert ran(capsys, "up", "--table", str(file), "nbd1") == (0, "/dev/nbd1\n", "")
    assert ran(capsys, "up", "--table", str(file), "nbd0") == (2, "", said)
    assert [index for index, *_ in attached] == [1, 1]


def test_a_caller_that_fails_keeps_no_line_from_being_attached(
    file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    """The reader of its output may have gone."""
    file.write_text("".join(f"nbd{number} db1 disk{number}\n" for number in range(100)))
    for _ in table.up(table.read(str(file)).entries):
        break
    assert sorted(index for index, *_ in attached) == [*range(100)]


@pytest.mark.usefixtures("attached")
def test_a_device_that_has_gone_before_it_is_shown_is_a_failure_like_any_other(
    capsys: Capture, file: Path, host: Host
) -> None:
    """Its server may have ended this moment."""
    host.attach(Device(1))
    code, out, err = ran(capsys, "up", "--all", "--json", "--table", str(file))
    assert (code, err.count("not attached")) == (8, 2)
    shown = json.loads(out)
    assert [one["thing"] for one in shown["errors"]] == ["/dev/nbd0", "/dev/nbd2"]
    assert [one["device"] for one in shown["results"]] == ["/dev/nbd1"]


def test_up_of_a_device_without_a_line_names_the_file(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    said = f"nbdattach: /dev/nbd7: no line for it in {file}\n(write one: nbd7 HOST EXPORT)\n"
    assert ran(capsys, "up", "--table", str(file), "nbd7", "nbd0") == (2, "/dev/nbd0\n", said)


def test_the_default_is_etc_nbdtab(capsys: Capture) -> None:
    for command in ("up", "down"):
        (option,) = [one for one in main.cli.commands[command].params if one.name == "path"]
        assert option.default == "/etc/nbdtab"


def test_a_server_that_is_not_verified_is_told(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    file.write_text("nbd0 db1 disk tls-no-verify\n")
    code, _, err = ran(capsys, "up", "--table", str(file), "--all")
    assert (code, err) == (0, "nbdattach: /dev/nbd0: warning: the server is not verified (--tls-no-verify): "
                              "an attacker on the network path can read and change all data\n")  # fmt: skip


def test_check_tells_all_mistakes_and_attaches_nothing(
    capsys: Capture, file: Path, attached: list[tuple[int, str, ConnectOptions]]
) -> None:
    assert ran(capsys, "up", "--check", "--table", str(file)) == (0, "", "")
    assert ran(capsys, "up", "--check", "--all", "--table", str(file)) == (0, "", "")
    assert ran(capsys, "up", "--check", "--table", str(file), "nbd0") == (0, "", "")
    file.write_text("nbd0 db1 disk frob,bs=7\nnbd1\n")
    code, out, err = ran(capsys, "up", "--check", "--table", str(file), "nbd0", "nbd9")
    assert (code, out, attached) == (2, "", [])
    said = [line.removeprefix(f"nbdattach: {file}:") for line in err.splitlines() if not line.startswith("(")]
    assert said == [
        "1:15: unknown option 'frob'",
        "1:20: option bs: '7' is not one of 512, 1024, 2048, 4096",
        "2:5: no host",
        f"nbdattach: /dev/nbd9: no line for it in {file}",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["up"], "nbdattach up: Give devices, or --all, or --check."),
        (["up", "--all", "nbd0"], "nbdattach up: Give devices, or --all, or --check."),
        (["down"], "nbdattach down: Give devices, or --all."),
        (["down", "--all", "nbd0"], "nbdattach down: Give devices, or --all."),
        (["up", "sda"], "nbdattach: 'sda': not an nbd device"),
        (["up", "nbd0p1"], "nbdattach: 'nbd0p1': a partition, not a whole device"),
        (["down", "nbd0", "db1"], "nbdattach: 'db1': not an nbd device"),
    ],
)
def test_what_cannot_be_meant(
    capsys: Capture, file: Path, attached: list[object], arguments: list[str], line: str
) -> None:
    code, out, err = ran(capsys, *arguments, "--table", str(file))
    assert (code, out, err.splitlines()[0], attached) == (2, "", line, [])


def test_ctrl_c_kills_during_the_work_only(
    capsys: Capture, file: Path, monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    """Threads cannot be interrupted; a process can be killed, which leaves nothing half done."""
    during: list[object] = []

    def attach(_target: Target, device: Device, _options: ConnectOptions, _: object) -> Attachment:
        during.append(signal.getsignal(signal.SIGINT))
        return Attachment(device.path, 4711)

    monkeypatch.setattr(attachment, "attach", attach)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the process that runs the tests may ignore it
    try:
        assert ran(capsys, "up", "--table", str(file), "nbd0")[0] == 0
        assert during == [signal.SIG_DFL]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -- down --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Identity | None]]:
    """The requests: device and expected attachment. If nothing is attached there, the answer says so."""
    asked: list[tuple[int, Identity | None]] = []

    def detach(device: Device, *_: object, only: Identity | None = None, force: bool = False, **__: object) -> str:
        assert not force
        if not state.Kernel(device).attached:
            return "not attached"
        asked.append((device.index, only))
        return ""

    monkeypatch.setattr(detachment, "detach", detach)
    return asked


def holds(host: Host, index: int, target: str, tag: str = "", table: Path | str = "") -> Identity:
    """Attaches ours at that device; returns its identity."""
    host.attach(Device(index), tag=tag or target)
    record = Record(tag or target, target, "", "netlink", 1, "2026-01-02T03:04:05Z", 4711, table=str(table))
    state.save(Device(index), record)
    return state.identity_of(Device(index))


@pytest.mark.parametrize("name", ["nbd1", "/dev/nbd1"])
def test_down_detaches_what_the_line_says(
    capsys: Capture, host: Host, file: Path, detached: list[object], name: str
) -> None:
    meant = holds(host, 1, "nbd://db2:2000/root")
    assert ran(capsys, "down", "--table", str(file), name) == (0, "", "")
    assert detached == [(1, meant)]


def test_down_of_what_is_not_attached_is_done(capsys: Capture, host: Host, file: Path, detached: list[object]) -> None:
    said = "nbdattach: /dev/nbd0: not attached, nothing to do\nnbdattach: /dev/nbd9: not attached, nothing to do\n"
    assert ran(capsys, "down", "--table", str(file), "nbd0", "nbd9") == (0, "", said)
    assert ran(capsys, "down", "--table", "/nowhere", "nbd0")[0] == 0


@pytest.mark.parametrize(
    ("target", "tag", "cause"),
    [
        ("nbd://db9/disk", "", "holds nbd://db9/disk, but {}:1 says nbd://db1/disk"),
        (
            "nbd://db1/disk",
            "mine",
            "holds nbd://db1/disk with the tag 'mine', but {}:1 says nbd://db1/disk with the tag 'nbd://db1/disk'",
        ),
    ],
)
def test_down_leaves_alone_what_is_neither_from_the_table_nor_what_it_says(
    capsys: Capture, host: Host, file: Path, detached: list[object], target: str, tag: str, cause: str
) -> None:
    holds(host, 0, target, tag)
    hint = "nbdattach disconnect /dev/nbd0 detaches it anyway"
    said = f"nbdattach: /dev/nbd0: {cause.format(file)}\n({hint})\n"
    assert ran(capsys, "down", "--table", str(file), "nbd0") == (7, "", said)
    assert detached == []


def test_down_leaves_alone_what_is_not_ours_or_has_ended(
    capsys: Capture, host: Host, file: Path, detached: list[object]
) -> None:
    host.attach(Device(0))
    code, _, err = ran(capsys, "down", "--table", str(file), "nbd0")
    said = f"/dev/nbd0: holds an attachment of another program, but {file}:1 says nbd://db1/disk"
    assert (code, err.splitlines()[0], detached) == (7, f"nbdattach: {said}", [])
    state.note_end(Device(0), state.identity_of(Device(0)))
    code, _, err = ran(capsys, "down", "--table", str(file), "nbd0")
    said = f"/dev/nbd0: holds the rest of an attachment that has ended, but {file}:1 says nbd://db1/disk"
    assert (code, err.splitlines()[0], detached) == (7, f"nbdattach: {said}", [])


def test_down_without_our_record_believes_the_kernel(
    capsys: Capture, host: Host, file: Path, detached: list[object]
) -> None:
    host.attach(Device(0), tag="nbd://db1/disk")
    assert ran(capsys, "down", "--table", str(file), "nbd0") == (0, "", "")
    assert detached == [(0, state.identity_of(Device(0)))]


def test_down_without_a_line_leaves_alone_what_is_not_from_the_table(
    capsys: Capture, host: Host, file: Path, detached: list[object]
) -> None:
    holds(host, 7, "nbd://db1/disk")
    code, _, err = ran(capsys, "down", "--table", str(file), "nbd7")
    assert (code, err.splitlines()[0]) == (2, f"nbdattach: /dev/nbd7: no line for it in {file}")
    assert detached == []


@pytest.mark.parametrize(
    "text", ["nbd0 db2 other\n", "nbd0 db1 disk tag=new\n", "# nothing\n", "nbd0 frob frob frob\n", None]
)
def test_down_detaches_what_up_attached_whatever_became_of_the_line(
    capsys: Capture, host: Host, file: Path, detached: list[object], text: str | None
) -> None:
    meant = holds(host, 0, "nbd://db1/disk", table=file)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    said = f"nbd://db1/disk is attached there; its line in {file} was changed or removed since"
    assert ran(capsys, "down", "--table", str(file), "nbd0") == (0, "", f"nbdattach: /dev/nbd0: {said}\n")
    assert detached == [(0, meant)]


def test_down_of_one_table_leaves_alone_what_is_from_another(
    capsys: Capture, host: Host, file: Path, detached: list[object]
) -> None:
    holds(host, 0, "nbd://db9/disk", table="/etc/other")
    assert ran(capsys, "down", "--table", str(file), "nbd0")[0] == 7
    assert ran(capsys, "down", "--table", str(file), "--all")[0] == 7
    assert detached == []


def test_down_all_goes_from_the_last_line_to_the_first_after_those_that_are_gone(
    capsys: Capture, host: Host, file: Path, detached: list[tuple[int, Identity | None]]
) -> None:
    for index, target in ((0, "nbd://db1/disk"), (1, "nbd://db2:2000/root"), (5, "nbd://db5/gone")):
        holds(host, index, target, table=file)
    holds(host, 6, "nbd://db6/by-hand")
    code, out, err = ran(capsys, "down", "--all", "--table", str(file))
    assert (code, out) == (0, "")
    assert [index for index, _ in detached] == [5, 1, 0]
    assert err.splitlines() == [
        f"nbdattach: /dev/nbd5: nbd://db5/gone is attached there; its line in {file} was changed or removed since",
        "nbdattach: /dev/nbd2: not attached, nothing to do",
    ]


def test_down_all_without_the_file_detaches_what_came_from_it_and_fails(
    capsys: Capture, host: Host, file: Path, detached: list[tuple[int, Identity | None]]
) -> None:
    holds(host, 0, "nbd://db1/disk", table=file)
    file.unlink()
    code, _, err = ran(capsys, "down", "--all", "--table", str(file))
    assert (code, [index for index, _ in detached]) == (2, [0])
    assert f"nbdattach: {file}: there is no such table" in err.splitlines()


def test_down_all_goes_on_after_a_failure(
    capsys: Capture, host: Host, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def detach(device: Device, *_: object, **__: object) -> str:
        tried.append(device.index)
        raise DeviceInUse(device.path, "mounted", "release it") if device.index else Refused(device.path, "no", "try")

    monkeypatch.setattr(detachment, "detach", detach)
    assert ran(capsys, "down", "--all", "--table", str(file))[0] == 7
    assert tried == [2, 1, 0]


@pytest.mark.parametrize(
    ("hint", "written"),
    [
        ("--connect-timeout TIME sets how long to wait", "connect-timeout=TIME sets how long to wait"),
        ("use --tls, or nbds://db1", "use tls, or nbds://db1"),
        ("modprobe tls; --tls-transport relay", "modprobe tls; tls-transport=relay"),
        ("certificates work: --tls-ca FILE", "certificates work: tls-ca=FILE"),
        ("--read-only attaches it as it is", "read-only attaches it as it is"),
        ("--format raw if that is right", "format=raw if that is right"),
        ("apt install x, or --backend ioctl", "apt install x, or backend=ioctl"),
        ("--block-size 512", "block-size=512"),
        ("qemu-nbd serves more clients with -e N", "qemu-nbd serves more clients with -e N"),
        ("is this an NBD server? --debug shows each step", "is this an NBD server? --debug shows each step"),
        (
            "nbdattach disconnect /dev/nbd0, or give another --tag",
            "nbdattach disconnect /dev/nbd0, or give another tag",
        ),
    ],
)
def test_a_hint_names_options_as_the_table_has_them(hint: str, written: str) -> None:
    error = table._of_device(Device(7), Refused("nbd://db1", "no", hint))
    assert (str(error), error.hint) == ("/dev/nbd7: nbd://db1: no", written)
