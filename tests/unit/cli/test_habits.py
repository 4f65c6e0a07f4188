# SPDX-License-Identifier: GPL-2.0-or-later
"""What people type by the habits of other programs: the hint is the command that they meant, with their own words."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hints import parse

from nbdattach import api
from nbdattach.cli import corrected, main, migration
from nbdattach.connection import client
from nbdattach.errors import NbdattachError
from nbdattach.operations import attachment, detachment, handover

Capture = pytest.CaptureFixture[str]
PERSIST = "-persist is left out: it is the default"
# What is typed, and the hint.
NBD_CLIENT = [
    ("-d /dev/nbd0", "nbdattach disconnect /dev/nbd0"),
    ("-d", "nbdattach disconnect DEVICE"),
    ("-d nbd0 nbd1", "nbdattach disconnect nbd0 nbd1"),
    ("-disconnect /dev/nbd0", "nbdattach disconnect /dev/nbd0"),
    ("-c /dev/nbd0", "nbdattach status /dev/nbd0"),
    ("-check /dev/nbd0", "nbdattach status /dev/nbd0"),
    ("-l db1", "nbdattach list db1"),
    ("-l db1 10810", "nbdattach list db1:10810"),
    ("-list db1", "nbdattach list db1"),
    ("db1 10809 /dev/nbd0", "nbdattach connect db1:10809 /dev/nbd0"),
    ("localhost /dev/nbd0", "nbdattach connect localhost /dev/nbd0"),
    ("db1 10809 nbd0 -persist", f"nbdattach connect db1:10809 nbd0; {PERSIST}"),
    ("db1 /dev/nbd0 -swap", "nbdattach connect --swap db1 /dev/nbd0"),
    ("-N disk db1 /dev/nbd0", "nbdattach connect --export disk db1 /dev/nbd0"),
    ("db1 /dev/nbd0 -name 'a b'", "nbdattach connect --export 'a b' db1 /dev/nbd0"),
    ("-block-size 512 db1 /dev/nbd0", "nbdattach connect --block-size 512 db1 /dev/nbd0"),
    ("-b512 db1 /dev/nbd0", "nbdattach connect --block-size 512 db1 /dev/nbd0"),
    ("db1 bs=512 /dev/nbd0", "nbdattach connect --block-size 512 db1 /dev/nbd0"),
    ("-timeout 30 db1 /dev/nbd0", "nbdattach connect --io-timeout 30 db1 /dev/nbd0"),
    ("-unix /run/s /dev/nbd0", "nbdattach connect /run/s /dev/nbd0"),
    ("-nofork db1 /dev/nbd0", "nbdattach connect --foreground db1 /dev/nbd0"),
    (
        "-sdp db1 /dev/nbd0",
        "nbdattach connect db1 /dev/nbd0; -sdp is left out: nbdattach has no Socket Direct Protocol, only TCP",
    ),
    (
        "-systemd-mark db1 /dev/nbd0",
        "nbdattach connect db1 /dev/nbd0; -systemd-mark is left out: nbdattach marks its own processes",
    ),
    (
        "-no-optgo db1 /dev/nbd0",
        "nbdattach connect db1 /dev/nbd0; -no-optgo is left out: nbdattach notices if a server lacks NBD_OPT_GO",
    ),
    ("-size 1G -preinit db1 /dev/nbd0", "nbdattach connect --size 1G --no-handshake db1 /dev/nbd0"),
    ("::1 10809 /dev/nbd0", "nbdattach connect '[::1]:10809' /dev/nbd0"),
    ("nbd0", "nbdattach up nbd0"),
    ("-V", "nbdattach --version"),
    ("nbd-client -d nbd0", "nbdattach disconnect nbd0"),
    ("-d /dev/disk/by-nbd/vm1", "nbdattach disconnect /dev/disk/by-nbd/vm1"),
    ("-c /dev/disk/by-nbd/vm1", "nbdattach status /dev/disk/by-nbd/vm1"),
    ("::1 nbd0", "nbdattach connect '[::1]' nbd0"),
    ("unix:/run/s nbd0", "nbdattach connect /run/s nbd0"),
]
QEMU_NBD = [
    ("--connect=/dev/nbd0 disk.qcow2", "nbdattach connect disk.qcow2 /dev/nbd0"),
    ("-c /dev/nbd0 disk.qcow2", "nbdattach connect disk.qcow2 /dev/nbd0"),
    (
        "-r -f qcow2 -c /dev/nbd0 disk.qcow2",
        "nbdattach connect --read-only --format qcow2 disk.qcow2 /dev/nbd0",
    ),
    ("--snapshot -c nbd0 disk.qcow2", "nbdattach connect --snapshot disk.qcow2 nbd0"),
    (
        "-P 1 -c nbd0 disk.qcow2",
        "nbdattach connect disk.qcow2 nbd0; -P is left out: connect makes a device of each partition",
    ),
    (
        "-t -e 5 disk.qcow2",
        "nbdattach connect disk.qcow2; -t is left out: the server runs until disconnect;"
        " -e is left out: the server is for one device",
    ),
    (
        "-x NAME disk.qcow2",
        "nbdattach connect disk.qcow2; -x is left out: nbdattach chooses how it talks to the server",
    ),
    ("-x disk db1 /dev/nbd0", "nbdattach connect --export disk db1 /dev/nbd0"),
    ("--disconnect /dev/nbd0", "nbdattach disconnect /dev/nbd0"),
    ("--disconnect=/dev/nbd0", "nbdattach disconnect /dev/nbd0"),
    ("-L -b db1 -p 10810", "nbdattach list db1:10810"),
    ("-L -k /run/s", "nbdattach list /run/s"),
    (
        "--aio=threads -c nbd0 disk.qcow2",
        "nbdattach connect [ qemu-nbd -t -e 0 --cache=writethrough --aio=threads disk.qcow2 ] nbd0",
    ),
    (
        "--aio=native -n -c nbd0 disk.qcow2",
        "nbdattach connect [ qemu-nbd -t -e 0 --aio=native -n disk.qcow2 ] nbd0",
    ),
    ("-dv nbd0", "nbdattach disconnect --debug nbd0"),
    ("nbd:db1:10809:exportname=disk nbd0", "nbdattach connect nbd://db1:10809/disk nbd0"),
    (
        "attach --ro --aio=threads -P 1 disk.img",
        "nbdattach connect [ qemu-nbd -t -e 0 --read-only --aio=threads disk.img ];"
        " -P is left out: connect makes a device of each partition",
    ),
    ("qemu-nbd -c nbd0 vm1", "nbdattach connect ./vm1 nbd0"),
    ("-l SNAP disk.qcow2", "nbdattach connect [ qemu-nbd -t -e 0 -l SNAP disk.qcow2 ]"),
    (
        "--aio=threads -f raw -c nbd0 disk.img",
        "nbdattach connect [ qemu-nbd -t -e 0 --aio=threads -f raw disk.img ] nbd0",
    ),
    (
        "--tls-creds tls0 -c nbd0 disk.img",
        "nbdattach reads certificates from files: --tls-ca FILE, --tls-cert FILE, --tls-key FILE",
    ),
]
LOSETUP = [
    (
        "-f disk.img",
        "nbdattach connect disk.img; -f is left out: without DEVICE, connect uses a free one",
    ),
    ("-a", "nbdattach status"),
    ("-l", "nbdattach status"),
    ("-l /dev/nbd0", "nbdattach status /dev/nbd0"),
    ("-j disk.img", "nbdattach status"),
    ("-o 512 --sizelimit 1024 disk.img", "nbdattach connect --offset 512 --size 1024 disk.img"),
    (
        "-P disk.img",
        "nbdattach connect disk.img; -P is left out: connect makes a device of each partition",
    ),
    ("/dev/nbd0 disk.img", "nbdattach connect disk.img /dev/nbd0"),
    ("-D", "nbdattach disconnect --all"),
    ("losetup -c nbd0", "nbdattach resize nbd0"),
    ("losetup nbd0", "nbdattach status nbd0"),
    ("losetup -f vm1", "nbdattach connect ./vm1; -f is left out: without DEVICE, connect uses a free one"),
]
COMMANDS = [
    ("attach db1", "nbdattach connect db1"),
    ("attach", "nbdattach connect TARGET"),
    ("detach nbd0", "nbdattach disconnect nbd0"),
    ("ls", "nbdattach status"),
    ("ls db1", "nbdattach list db1"),
    ("ls nbd0", "nbdattach status nbd0"),
    ("umount /dev/nbd0", "nbdattach disconnect /dev/nbd0"),
    ("umount", "nbdattach disconnect DEVICE"),
    ("version", "nbdattach --version"),
    ("conect db1 nbd0", "nbdattach connect db1 nbd0"),
    ("disk.qcow2", "nbdattach connect disk.qcow2"),
    ("nbd://db1/disk", "nbdattach connect nbd://db1/disk"),
    ("nbd0 [ nbdkit memory 1G ]", "nbdattach connect [ nbdkit memory 1G ] nbd0"),
    ("--json status", "nbdattach status --json"),
    ("close nbd0", "nbdattach disconnect nbd0"),
    ("restart nbd0", "nbdattach reconnect nbd0"),
    ("start nbd0", "nbdattach up nbd0"),
    ("ifup nbd0", "if ifup is a host: nbdattach connect ifup nbd0"),
    ("server -swap nbd0", "if server is a host: nbdattach connect --swap server nbd0"),
    ("nbd0 down", "nbdattach down nbd0"),
    ("STATUS", "nbdattach status"),
    ("dis nbd0", "nbdattach disconnect nbd0"),
    ("detach -a", "nbdattach disconnect --all"),
    ("detach db1 10809", "nbdattach disconnect db1:10809"),
    ("detach ::1", "nbdattach disconnect '[::1]'"),
    ("nbdattach connect db1 nbd0", "nbdattach connect db1 nbd0"),
    ("nbdattach connect --ro db1", "nbdattach connect --read-only db1"),
    ("help umount", "nbdattach help disconnect"),
    ("help conect", "nbdattach help connect"),
]
OPTIONS = [
    ("connect --name disk db1", "nbdattach connect --export disk db1"),
    ("info --name disk db1", "nbdattach info --export disk db1"),
    ("info --name disk", "nbdattach info --export disk TARGET"),
    ("connect --ro db1", "nbdattach connect --read-only db1"),
    ("connect --readonly db1", "nbdattach connect --read-only db1"),
    ("connect -readonly db1", "nbdattach connect --read-only db1"),
    ("connect -block-size 512 db1", "nbdattach connect --block-size 512 db1"),
    ("connect -t 30 db1", "nbdattach connect --io-timeout 30 db1"),
    ("connect -persist db1", f"nbdattach connect db1; {PERSIST}"),
    ("connect --port 10810 db1", "nbdattach connect db1:10810"),
    ("connect --host db1 --port 10810 nbd0", "nbdattach connect db1:10810 nbd0"),
    ("check -p 10810", "nbdattach check localhost:10810"),
    ("connect db1 -c /dev/nbd0", "nbdattach connect db1 /dev/nbd0"),
    (
        "connect --aio=threads --format raw disk.img",
        "nbdattach connect [ qemu-nbd -t -e 0 --aio=threads --format raw disk.img ]",
    ),
    ("connect -d nbd0", "nbdattach disconnect nbd0"),
    ("connect db1 10809 /dev/nbd0", "nbdattach connect db1:10809 /dev/nbd0"),
    ("connect -r db1 10809", "if it is the port: nbdattach connect -r db1:10809"),
    ("connect /dev/nbd0 db1", "nbdattach connect db1 /dev/nbd0"),
    ("connect -r --tls /dev/nbd0 db1", "nbdattach connect -r --tls db1 /dev/nbd0"),
    ("connect nbd0 [ nbdkit memory 1G ]", "nbdattach connect [ nbdkit memory 1G ] nbd0"),
    ("connect -f qcow2 disk.qcow2", "nbdattach connect --format qcow2 disk.qcow2"),
    ("connect -f qcow2 disk.qcow2 nbd0", "nbdattach connect --format qcow2 disk.qcow2 nbd0"),
    (
        "connect --shared=3 disk.qcow2",
        "nbdattach connect disk.qcow2; --shared is left out: the server is for one device",
    ),
    ("list db1 10810", "nbdattach list db1:10810"),
    ("info -N disk db1 10810", "nbdattach info -N disk db1:10810"),
    ("check --tls db1 10810", "nbdattach check --tls db1:10810"),
    ("reconnect nbd0 db2 10810", "nbdattach reconnect nbd0 db2:10810"),
    ("reconnect --tls db1 nbd0", "nbdattach reconnect --tls nbd0 db1"),
    ("reconnect nbd0 --host db2 --port 10810", "nbdattach reconnect nbd0 db2:10810"),
    ("disconnect -a", "nbdattach disconnect --all"),
    ("connect -P db1 nbd0", "nbdattach connect db1 nbd0; -P is left out: connect makes a device of each partition"),
    ("disconnect db1 10809 -N disk", "nbdattach disconnect -N disk db1:10809"),
    ("info --timeout 5 db1", "nbdattach info --connect-timeout 5 db1"),
    # One dash before a long option of ours: letters of other programs' options are in it.
    ("connect -export=disk db1", "nbdattach connect --export disk db1"),
    ("connect -tls db1", "nbdattach connect --tls db1"),
    ("connect -read-only db1", "nbdattach connect --read-only db1"),
    ("connect -ro db1", "nbdattach connect --read-only db1"),
    ("connect -backend ioctl db1", "nbdattach connect --backend ioctl db1"),
    ("disconnect -force nbd0", "nbdattach disconnect --force nbd0"),
    ("up -check", "nbdattach up --check"),
    (f"connect --ro nbd://db1/{'x' * 250}", f"nbdattach connect --read-only nbd://db1/{'x' * 250}"),
]
ALL = [*NBD_CLIENT, *QEMU_NBD, *LOSETUP, *COMMANDS, *OPTIONS]


def said(capsys: Capture, *words: str) -> tuple[str, str]:
    """The error and the hint of a usage error: all that is printed."""
    assert main.run([*words]) == 2
    out, err = capsys.readouterr()
    assert out == "" or "--json" in words
    line, hint = err.removesuffix("\n").split("\n")
    return line, hint[1:-1]


@pytest.mark.parametrize(("words", "hint"), ALL)
def test_hint_is_the_command_that_was_meant(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: str, hint: str
) -> None:
    for module, name in ((attachment, "attach"), (detachment, "detach"), (handover, "reconnect")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was done in spite of the mistake"))
    assert said(capsys, *shlex.split(words))[1] == hint


@pytest.mark.parametrize("hint", sorted({hint for _, hint in ALL if "nbdattach reads" not in hint}))
def test_hint_can_be_typed(hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for image in ("disk.img", "disk.qcow2", "vm1"):
        Path(image).touch()
    parse(shlex.split(re.sub("^if [^:]*: ", "", hint).split("; ")[0])[1:])


NO_GUESS = [
    ("frobnicate", "see nbdattach --help"),
    ("--frob db1 nbd0", "see nbdattach --help"),
    ("frob --json", "see nbdattach --help"),
    ("-- --frob", "see nbdattach --help"),
    ("-N", "write it behind the command; see nbdattach --help"),
    ("-d /dev/loop0", "nbdattach disconnect DEVICE; see nbdattach --help"),
    ("-swap", "write it behind the command; see nbdattach --help"),
    ("check --ro db1", "connect has it; see nbdattach check --help"),
    ("up --ro nbd0", "connect has it; in /etc/nbdtab it is read-only; see nbdattach up --help"),
    ("status --name x", "check, connect, disconnect, info and reconnect have it; see nbdattach status --help"),
    ("connect -size 1G db1", "did you mean --size? see nbdattach connect --help"),
    ("connect -b 1000 nbd0", "try --block-size 4096; see nbdattach connect --help"),
    ("disconnect nbd0 --all", "see nbdattach disconnect --help"),
    ("connect", "see nbdattach connect --help"),
    ("check db1 db2 10810", "a port is part of the TARGET: HOST:PORT"),
    ("mount /dev/nbd0 /mnt", "did you mean connect? see nbdattach --help"),
    ("umount /mnt", "did you mean disconnect? see nbdattach --help"),
    ("connect --name disk nbd://db1", "did you mean --export? see nbdattach connect --help"),
    ("connect --cert c.pem --psk k db1", "did you mean --tls-cert? see nbdattach connect --help"),
    ("connect -rZ db1", "see nbdattach connect --help"),
    ("help nosuch", "see nbdattach help --help"),
    (
        "doctor --aio x",
        "write it in the command of a server: [ qemu-nbd -t -e 0 OPTION disk.img ]; see nbdattach doctor --help",
    ),
    ("info -persist db1", "leave it out: it is the default; see nbdattach info --help"),
    ("-help", "nbdattach --help"),
    ("detach -N x nbd://db1/disk", "did you mean disconnect? see nbdattach --help"),
    ("detach -N x disk.img", "did you mean disconnect? see nbdattach --help"),
    ("help -v nbd0", "did you mean --debug? see nbdattach help --help"),
    ("status -nofork", "connect has it; see nbdattach status --help"),
    ("show -o 512", "did you mean status? see nbdattach --help"),
    (
        "--bind db2 disk.img nbd0 10809",
        "it is part of the TARGET: HOST:PORT, or the path of a socket; see nbdattach --help",
    ),
    ("status --format yaml", "try --format table; see nbdattach status --help"),
    ("disconnect //dev/nosuch", "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ..."),
    ("close -d nbd0 db1 10809", "did you mean disconnect? see nbdattach --help"),
    ("disconnect --kill nbd0", "see nbdattach disconnect --help"),
    ("connect --target db1", "see nbdattach connect --help"),
    ("connect --sched none db1", "did you mean --shared or --scheduler? see nbdattach connect --help"),
    ("connect --read_only db1", "did you mean --read-only? see nbdattach connect --help"),
    ("disconnect 'nbd0 nbd1'", "nbdattach disconnect nbd0 nbd1"),
    ("disconnect nbd0,nbd1", "nbdattach disconnect nbd0 nbd1"),
    ("disconnect -l", "nbdattach list TARGET or nbdattach status; see nbdattach disconnect --help"),
    ("disconnect -f nbd0", "connect has it; see nbdattach disconnect --help"),
    ("up -n nbd0", "see nbdattach up --help"),
    ("resize --all", "disconnect, down and up have it; see nbdattach resize --help"),
    (
        "reconnect nbd0 --port 10810",
        "it is part of the TARGET: HOST:PORT, or the path of a socket; see nbdattach reconnect --help",
    ),
    ("disconnect nbd0 1", "a port is part of the TARGET: HOST:PORT"),
    # What would be accepted by the parser, and refused by the command.
    ("attach --format raw db1", "did you mean connect? see nbdattach --help"),
    ("attach --swap disk.img", "did you mean connect? see nbdattach --help"),
    ("attach --tls disk.img", "did you mean connect? see nbdattach --help"),
    ("attach --also db2 disk.img", "did you mean connect? see nbdattach --help"),
    ("attach -N x disk.img", "did you mean connect? see nbdattach --help"),
    ("attach --snapshot [ nbdkit memory 1G ]", "did you mean connect? see nbdattach --help"),
    ("connect --ro --rw db1", "did you mean --read-only? see nbdattach connect --help"),
    ("qemu-nbd -f raw -c nbd0 nbd://db1", "see nbdattach --help"),
    ("-D nbd0", "see nbdattach --help"),
    ("detach nbd0 --all", "did you mean disconnect? see nbdattach --help"),
    ("reconnect nbd0 --name x", "did you mean --export? see nbdattach reconnect --help"),
    # What would lose a word, or take it for something else.
    ("-df nbd0", "nbdattach disconnect DEVICE; see nbdattach --help"),
    ("connect -d nbd0 db1", "nbdattach disconnect DEVICE; see nbdattach connect --help"),
    ("connect -B 512 db1", "did you mean --size? see nbdattach connect --help"),
    (
        "connect --port 10810 /run/s",
        "it is part of the TARGET: HOST:PORT, or the path of a socket; see nbdattach connect --help",
    ),
    ("connect -k db1", "it is part of the TARGET: HOST:PORT, or the path of a socket; see nbdattach connect --help"),
    ("-unix run/s nbd0", "nbdattach connect PATH; see nbdattach --help"),
    ("connect --ro -N 'a\tb' db1", "did you mean --read-only? see nbdattach connect --help"),
    ("-l 'a\tb' disk.qcow2", "see nbdattach --help"),
]


@pytest.mark.parametrize(("words", "hint"), NO_GUESS)
def test_no_command_is_made_up(capsys: Capture, words: str, hint: str) -> None:
    assert said(capsys, *shlex.split(words))[1] == hint


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("connect -readonly db1", "nbdattach connect: No such option '-readonly'."),
        ("connect -block-size 512 db1", "nbdattach connect: No such option '-block-size'."),
        ("connect -block-size=512 db1", "nbdattach connect: No such option '-block-size'."),
        ("connect -rZ db1", "nbdattach connect: No such option '-Z'."),
    ],
)  # fmt: skip
def test_a_long_option_with_one_dash_is_named_as_it_was_typed(capsys: Capture, words: str, line: str) -> None:
    assert said(capsys, *shlex.split(words))[0] == line


def test_hint_cannot_write_on_the_terminal(capsys: Capture) -> None:
    for words in (["x\x1b[2J\n", "/dev/nbd0"], ["-d", "n\x1b\nbd"], ["connect", "--name", "\x1b\n", "db1"]):
        assert all(text.isprintable() for text in said(capsys, *words))


def test_json_has_the_same_hint(capsys: Capture) -> None:
    assert main.run(["connect", "--json", "--ro", "db1"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["hint"] == "nbdattach connect --json --read-only db1"


# -- help --------------------------------------------------------------------------------------------------------------


def printed(capsys: Capture, *words: str) -> str:
    assert main.run([*words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_help_is_the_help(capsys: Capture) -> None:
    assert printed(capsys, "help") == printed(capsys, "--help")


@pytest.mark.parametrize("command", main.cli.commands)
def test_help_of_a_command_without_a_terminal_is_its_help(capsys: Capture, command: str) -> None:
    assert printed(capsys, "help", command) == printed(capsys, command, "--help")


@pytest.mark.parametrize(
    ("pages", "shown"),
    [
        ("nbdattach", "page nbdattach"),
        ("nbdattach nbdattach-list", "page nbdattach-list"),
        ("", "Usage: nbdattach list [OPTIONS] TARGET"),
        (None, "Usage: nbdattach list [OPTIONS] TARGET"),
    ],
)
def test_help_of_a_command_on_a_terminal_is_its_manual_page(tmp_path: Path, pages: str | None, shown: str) -> None:
    """If man is missing, or has no page, it is the help."""
    if pages is not None:
        man = tmp_path / "man"
        man.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = -w ]; then case " {pages} " in *" $2 "*) exit 0;; esac; exit 16; fi\n'
            "echo page $1\n"
        )
        man.chmod(0o755)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.Popen(
            [sys.executable, "-m", "nbdattach", "help", "list"],
            stdin=theirs, stdout=theirs, stderr=theirs, env={"PATH": str(tmp_path)},
        )  # fmt: skip
        os.close(theirs)
        text = b""
        while done.poll() is None or not text:
            try:
                text += terminal.read(4096)
            except OSError:  # its end of the terminal is closed
                break
        assert done.wait(60) == 0
    assert text.decode().splitlines()[0] == shown


# -- by chance ---------------------------------------------------------------------------------------------------------

_VALUES = {
    "ADDRESS": "db2", "BYTES": "512", "DEVICE": "/dev/nbd3", "FORMAT": "raw", "MODE": "on", "N": "4", "NUM": "4",
    "PATH": "/run/s2", "PORT": "10810", "SECONDS": "30", "SIZE": "1M", "TIME": "7",
}  # fmt: skip
_OF_CONNECT = ["-r", "--tls", "-f", "--swap", "--snapshot", "--all", "--force", "-tls", "-read-only", "--no-handshake"]
_HEADS = ["", *migration.COMMANDS, *(program.name for program in migration.PROGRAMS), "help"]
_HEADS += [name for name in main.cli.commands if name not in ("monitor", "doctor")]
_OPERANDS = ["db1", "db1:10809", "10809", "nbd0", "/dev/nbd1", "nbd0p1", "disk.img", "/run/s", "nbd://db1/disk", "::1"]
_OPERANDS += ["/dev/disk/by-nbd/vm1", "nbd:db1:10809:exportname=e", "unix:/run/s", "[ nbdkit memory 1G ]"]


def _typed(other: migration.Other, name: str) -> list[str]:
    value = {"--cache": "none", "--discard": "unmap"}.get(name, _VALUES.get(other.value, "value"))
    return [name, value] if other.value else [name]


_OPTIONS = [
    _typed(other, name)
    for program in (*migration.PROGRAMS, migration.HABITS)
    for other in program.options
    for name in other.names.split()
    if other.ours != "--help"
] + [[name] for name in _OF_CONNECT]
_PIECES = st.one_of(st.sampled_from(_OPTIONS), st.sampled_from(_OPERANDS).map(str.split).map(list))
_LINES = st.tuples(st.sampled_from(_HEADS), st.lists(_PIECES, max_size=5))
# What the hint of a line that was corrected may still be told: such a file, or a line of the table, is not there.
_MISSING = (
    "no such image|no such device, socket or image|no line for it|no such table|is mounted|neither an image"
    "|'[^']*': not an nbd device"
)


@settings(max_examples=400, deadline=None)
@given(_LINES)
def test_a_corrected_command_is_no_usage_error_and_keeps_read_only(line: tuple[str, list[list[str]]]) -> None:
    head, pieces = line
    words = [*head.split(), *(word for piece in pieces for word in piece)]
    hint = corrected.corrected(words, main.cli)
    command = re.search("nbdattach .*", hint.split("; ")[0])
    if not command or hint.startswith("nbdattach reads") or {"TARGET", "DEVICE"} & {*hint.split()}:
        return
    typed = shlex.split(command[0])[1:]
    if typed[0] == "connect" and {"-R", "--ro", "--readonly", "-read-only", "--read-only"} & {*words}:
        assert "--read-only" in command[0] or "--ro" in command[0]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        for module, name in ((api, "connect"), (detachment, "detach"), (handover, "reconnect"), (client, "dial")):
            patch.setattr(module, name, _done)
        with contextlib.redirect_stdout(io.StringIO()):
            code = main.run(typed)
    assert code != 2 or re.search(_MISSING, said.getvalue()), (words, hint, said.getvalue())


def _done(*_: object, **__: object) -> None:
    raise NbdattachError("it", "would be done", "")
