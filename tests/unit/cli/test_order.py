# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line and the files that it names can tell is told before the driver is loaded or a server asked."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest
from host import Host, pretend

from nbdattach.backends import choice
from nbdattach.cli import main
from nbdattach.host import programs
from nbdattach.kernel import driver
from nbdattach.monitor import control, launch

Capture = pytest.CaptureFixture[str]
TO_READ = "is the name correct, and do you have permission to read it?"
ON_LOSS = "the ioctl backend cannot wait for a server: the kernel ends its attachment when the connection is lost"
NO_BLOCK_SIZE = "Invalid value for '-b' / '--block-size': '1000' is not one of 512, 1024, 2048, 4096"
NOT_OVER_UNIX = "the kernel does TLS only over TCP, not over a Unix socket"
SWAPPED = "a server on this machine may itself be swapped out to the device"
NO_NAME = "a Unix socket has no host name to check the certificate against"
SETS_NAME = "--tls-hostname NAME sets the name"
NO_FILE = "cannot be read: No such file or directory"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """One without the driver; to load it, to connect, or to look up a name fails the test."""

    def forbidden(*arguments: object, **_: object) -> None:
        pytest.fail(f"too early: {arguments}")

    host = pretend(tmp_path / "host", monkeypatch)
    monkeypatch.setattr(driver, "modprobe", forbidden)
    monkeypatch.setattr(programs, "run", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(launch, "ensure_monitor", forbidden)
    monkeypatch.setattr(control, "ask", forbidden)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "junk.pem").write_text("junk\n")
    return host


# Command line, exit code, error and hint. "{}" is the working directory.
EARLY = [
    (
        "connect -b 1000 db1",
        2,
        f"nbdattach connect: {NO_BLOCK_SIZE}",
        "try --block-size 4096; see nbdattach connect --help",
    ),
    *(
        (f"{command} {options}", 5, f"nbdattach: {{}}/{file}: {cause}", hint)
        for command in ("connect db1", "info db1", "list db1", "check db1", "reconnect nbd0 db1")
        for options, file, cause, hint in (
            ("--tls-ca none.pem", "none.pem", NO_FILE, TO_READ),
            ("--tls-cert none.pem", "none.pem", NO_FILE, TO_READ),
            ("--tls-cert folder", "folder", "cannot be read: Is a directory", TO_READ),
            ("--tls-cert junk.pem --tls-key none.pem", "none.pem", NO_FILE, TO_READ),
            ("--tls-psk none.psk", "none.psk", NO_FILE, TO_READ),
            ("--tls-ca folder", "folder/ca-cert.pem", NO_FILE, TO_READ),
        )
    ),
    ("connect nbds://db1?tls-certificates=none", 5, f"nbdattach: {{}}/none: {NO_FILE}", TO_READ),
    ("connect nbds://db1 --also 'nbds://db2?tls-psk-file=none'", 5, f"nbdattach: {{}}/none: {NO_FILE}", TO_READ),
    (
        "connect --backend ioctl --on-loss wait db1",
        6,
        f"nbdattach: --on-loss: {ON_LOSS}",
        "use --backend netlink, or --on-loss fail",
    ),
    (
        "connect --backend ioctl --on-loss wait ./disk.img",
        6,
        f"nbdattach: --on-loss: {ON_LOSS}",
        "use --backend netlink, or --on-loss fail",
    ),
    (
        "connect --tls --no-handshake --size 1M db1",
        5,
        "nbdattach: nbds://db1: TLS needs the handshake",
        "leave out TLS or --no-handshake",
    ),
    (
        "connect --tls --tls-transport kernel --tls-hostname a /run/s",
        5,
        f"nbdattach: nbds+unix:///?socket=/run/s&tls-hostname=a: {NOT_OVER_UNIX}",
        "--tls-transport relay",
    ),
    *(
        (f"{command} 'nbds+unix:///?socket=/run/s'", 5, f"nbdattach: nbds+unix:///?socket=/run/s: {NO_NAME}", SETS_NAME)
        for command in ("connect", "info", "list", "check", "reconnect nbd0")
    ),
    (
        "connect --size 1M [ nbdkit memory 1G ]",
        2,
        "nbdattach: [ nbdkit memory 1G ]: options of an image, but it is a command",
        "give the command its own options",
    ),
    (
        "connect --also disk.img db1",
        2,
        "nbdattach: --also disk.img: an image, or a command, is no server that runs",
        "leave it out",
    ),
    ("connect --snapshot db1", 2, "nbdattach: --snapshot: nbd://db1 is a server, not an image", "leave it out"),
    ("connect --swap ./disk.img", 2, f"nbdattach: --swap: {SWAPPED}", "use a swap file on a file system instead"),
    ("connect --also db2 ./disk.img", 2, "nbdattach: --also: {}/disk.img has a server of its own", "leave it out"),
    ("connect --no-handshake db1", 2, "nbdattach: --no-handshake: needs --size SIZE", "give both, or none"),
    ("connect --tls-key k db1", 2, "nbdattach: --tls-key: a key without its certificate", "give --tls-cert FILE, too"),
    ("connect db1 sda", 2, "nbdattach: 'sda': not an nbd device", "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ..."),
]


@pytest.mark.parametrize(("typed", "code", "line", "hint"), EARLY)
def test_it_is_told_before_modprobe_and_before_a_connection(
    machine: Host, capsys: Capture, tmp_path: Path, typed: str, code: int, line: str, hint: str
) -> None:
    if typed.startswith("reconnect"):
        machine.attach()
    assert main.run(shlex.split(typed)) == code
    assert capsys.readouterr() == ("", f"{line.replace('{}', str(tmp_path))}\n({hint})\n")


def test_pyroute2_that_is_missing_is_told_early(
    machine: Host, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _: None)
    for options in (["--backend", "netlink"], ["--on-loss", "wait:5m"]):
        assert main.run(["connect", *options, "db1"]) == 6
        assert capsys.readouterr().err.startswith("nbdattach: netlink backend: pyroute2 is not installed\n")


def test_a_key_that_is_damaged_is_told_early(machine: Host, capsys: Capture, tmp_path: Path) -> None:
    assert main.run(["connect", "--tls-cert", "junk.pem", "db1"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nbdattach: {tmp_path}/junk.pem: ")


def test_each_line_of_the_table_is_told_early(machine: Host, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "nbdtab").write_text(
        f"nbd0 db1 disk tls-ca={tmp_path}/none.pem\nnbd1 db1 disk backend=ioctl,on-loss=wait\n"
    )
    assert main.run(["up", "--all", "--table", "nbdtab"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(line for line in err.splitlines() if line.startswith("nbdattach")) == [
        f"nbdattach: /dev/nbd0: {tmp_path}/none.pem: {NO_FILE}",
        f"nbdattach: /dev/nbd1: --on-loss: {ON_LOSS}",
    ]


def test_one_of_many_targets_does_not_hide_the_others(machine: Host, capsys: Capture) -> None:
    """The others would be asked: here that fails as well."""
    assert main.run(["check", "nbds://127.0.0.1?tls-certificates=none", "nbds://127.0.0.2?tls-psk-file=none"]) == 5
    assert capsys.readouterr().err.count(NO_FILE) == 2


def test_a_good_command_line_does_load_the_driver(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above do not pass for another reason."""
    loaded: list[str] = []
    monkeypatch.setattr(driver, "ensure_loaded", lambda: loaded.append("nbd"))
    monkeypatch.setattr(driver, "load_tls", lambda: loaded.append("tls"))
    with pytest.raises(pytest.fail.Exception, match="too early"):
        main.run(["connect", "--tls", "127.0.0.1"])
    assert loaded == ["nbd", "tls"]


@pytest.mark.parametrize("arguments", [["up", "--check"], ["up", "--all"], ["up", "nbd0"], ["down", "--all"]])
def test_a_missing_table_is_told(machine: Host, capsys: Capture, tmp_path: Path, arguments: list[str]) -> None:
    assert main.run([*arguments, "--table", str(tmp_path / "nbdtab")]) == 2
    said = f"nbdattach: {tmp_path}/nbdtab: there is no such table\n"
    assert capsys.readouterr() == ("", f"{said}(nbdtab(5) describes its format; --table FILE names another one)\n")
