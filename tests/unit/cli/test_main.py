# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a user calls it: exit codes, one line and one hint for each error, no traceback ever."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import wire
from host import Host, pretend
from peer import Serve, closed_port, listening, says, says_and_hears, silence

import nbdattach
from nbdattach.attached import state, status
from nbdattach.attached.state import Record
from nbdattach.backends import choice
from nbdattach.cli import foreground, main, screen
from nbdattach.connect_options import ConnectOptions
from nbdattach.connection import client
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError, NotAttached
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.operations import attachment, detachment, handover, release
from nbdattach.operations.handle import DETACH_SECONDS, Attachment
from nbdattach.protocol.target import Target

Capture = pytest.CaptureFixture[str]
GO = wire.greeting() + wire.sized(wire.GO) + wire.blocks(wire.GO, 512, 4096, 65536) + wire.ack(wire.GO)
INFO = wire.greeting() + wire.sized(wire.INFO) + wire.blocks(wire.INFO, 512, 4096, 65536) + wire.ack(wire.INFO)
READ = wire.simple_reply(0, client.CHECK_COOKIE) + bytes(4096)
LISTING = wire.greeting() + wire.listed(b"root", b"of all") + wire.ack(wire.LIST)
LISTING += wire.sized(wire.INFO) + wire.ack(wire.INFO)
COMMANDS = sorted(main.cli.commands)


def ran(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main.run(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def said_error(capsys: Capture, code: int, *arguments: str) -> tuple[str, str]:
    """The error's line and its hint: all that is printed."""
    got, out, err = ran(capsys, *arguments)
    assert (got, out) == (code, "")
    line, hint = err.removesuffix("\n").split("\n")
    assert line.startswith("nbdattach")
    assert hint.startswith("(")
    assert hint.endswith(")")
    assert line.isprintable()
    assert hint.isprintable()
    return line, hint[1:-1]


# -- usage -------------------------------------------------------------------------------------------------------------

NO_TIME = "is not a time from {} up: seconds, or a number with ms, s, m, h or d"
NO_SIZE = "is not a size from {} up: bytes, or a number with K, M, G, T or P"
NO_BLOCK = "is not one of 512, 1024, 2048, 4096"
NO_TIMES = ("nan", "-nan", "inf", "-inf", "Infinity", "1e999", "-1", "", "soon", "1x", "0x1", "1 2", "\x1b[2J")
USAGE: list[tuple[list[str], str, str]] = [
    (["frobnicate"], "nbdattach: No such command 'frobnicate'.", ""),
    (["fr\x1b\nob"], r"nbdattach: No such command 'fr\x1b\nob'.", ""),
    (["--frob"], "nbdattach: No such option '--frob'.", ""),
    (["info"], "nbdattach info: Missing argument 'TARGET'.", "info "),
    (["list"], "nbdattach list: Missing argument 'TARGET'.", "list "),
    (["check"], "nbdattach check: Missing argument 'TARGET...'.", "check "),
    (["connect"], "nbdattach connect: Missing argument 'TARGET'.", "connect "),
    (["disconnect"], "nbdattach disconnect: Give devices or targets, or --tag, or --all.", "disconnect "),
    (
        ["disconnect", "--all", "nbd0"],
        "nbdattach disconnect: Give devices or targets, or --tag, or --all.",
        "disconnect ",
    ),
    (
        ["disconnect", "--tag", "a", "--all"],
        "nbdattach disconnect: Give devices or targets, or --tag, or --all.",
        "disconnect ",
    ),
    (["info", "db1", "x"], "nbdattach info: Got unexpected extra argument (x)", "info "),
    (["info", "--frob", "db1"], "nbdattach info: No such option '--frob'.", "info "),
]
USAGE += [
    (["reconnect"], "nbdattach reconnect: Missing argument 'DEVICE'.", "reconnect "),
    (["resize"], "nbdattach resize: Missing argument 'DEVICE'.", "resize "),
    (["resize", "nbd0", "db1"], "nbdattach resize: Got unexpected extra argument (db1)", "resize "),
    (["monitor", "nbd0"], "nbdattach monitor: Got unexpected extra argument (nbd0)", "monitor "),
]


@pytest.mark.parametrize(("arguments", "line", "of"), USAGE)
def test_usage_error_is_one_line_and_one_hint(capsys: Capture, arguments: list[str], line: str, of: str) -> None:
    assert said_error(capsys, 2, *arguments) == (line, f"see nbdattach {of}--help")


# Invalid values: command, option as typed, its names in the error, values, why they are invalid, and what to type.
VALUES: list[tuple[str, str, str, tuple[str, ...], str, str]] = [
    (
        "connect",
        "-C",
        "'-C' / '--connections'",
        ("0", "65", "-1", "+1", "1.0", "", " 1", "nan", "two", "٣", "1\n", "1K"),
        "is neither auto nor a number from 1 to 64",
        "--connections auto",
    ),
    *(
        (command, option, f"'{option}'", NO_TIMES, NO_TIME.format(least), f"{option} 30s")
        for command, option, least in (
            ("info", "--connect-timeout", "0.001"),
            ("list", "--connect-timeout", "0.001"),
            ("check", "--connect-timeout", "0.001"),
            ("connect", "--connect-timeout", "0.001"),
            ("connect", "--retry-for", "0"),
            ("connect", "--dead-peer", "1"),
            ("connect", "--io-timeout", "0"),
            ("disconnect", "--timeout", "0"),
            ("up", "--retry-for", "0"),
        )
    ),
    (
        "info",
        "--connect-timeout",
        "'--connect-timeout'",
        ("0", "0.0009", "0.9ms", "0s"),
        NO_TIME.format("0.001"),
        "--connect-timeout 30s",
    ),
    ("connect", "--dead-peer", "'--dead-peer'", ("0", "0.999", "999ms"), NO_TIME.format("1"), "--dead-peer 30s"),
    (
        "connect",
        "--retry-for",
        "'--retry-for'",
        ("5M", "5 m", "5minutes", "5mins"),
        NO_TIME.format("0"),
        "--retry-for 5m",
    ),
    (
        "connect",
        "--on-loss",
        "'--on-loss'",
        ("", "fail:", "fail:5", "5", "inf", ":", ":5", "wait ", " wait", "waits", "wait=5", "no"),
        "is not one of wait, wait:TIME, fail",
        "--on-loss wait:5m",
    ),
    ("connect", "-b", "'-b' / '--block-size'", ("1000", "8K", "0", "4x", "512b", ""), NO_BLOCK, "--block-size 4096"),
    ("connect", "--size", "'--size'", ("0", "-1", "", "1.3", "1b", "1e3", "8E", "0K"), NO_SIZE.format(1), "--size 1G"),
    ("connect", "--offset", "'--offset'", ("2 GB", "2 Gigabytes"), NO_SIZE.format(0), "--offset 2G"),
    ("connect", "--expect-size", "'--expect-size'", ("1,5G",), NO_SIZE.format(0), "--expect-size 1.5G"),
    (
        "connect",
        "--expect-size",
        "'--expect-size'",
        ("9223372036854775808", "8192P"),
        "is more than the kernel's largest size, 8 EiB less one byte",
        "--expect-size 1G",
    ),
    ("up", "--retry-for", "'--retry-for'", ("366d", "31536001"), "is more than a year", "--retry-for 365d"),
]


@pytest.mark.parametrize(
    ("command", "option", "names", "value", "why", "correct"),
    [(command, option, names, value, *rest) for command, option, names, values, *rest in VALUES for value in values],
)
def test_an_invalid_value_is_named_with_what_is_allowed_and_what_to_type(
    capsys: Capture, command: str, option: str, names: str, value: str, why: str, correct: str
) -> None:
    line, hint = said_error(capsys, 2, command, option, value, "nbd0")
    assert line == f"nbdattach {command}: Invalid value for {names}: {value!r} {why}"
    assert hint == f"try {correct}; see nbdattach {command} --help"


# What is typed, and the hint before "see nbdattach COMMAND --help".
OTHER_NAMES = [
    ("reconnect --connect-timeout 5 nbd0", "check, connect, info and list have it; the device keeps that of connect; "),
    ("resize --connect-timeout 5 nbd0", "check, connect, info and list have it; the device keeps that of connect; "),
    (
        "up --connect-timeout 5 nbd0",
        "check, connect, info and list have it; in /etc/nbdtab it is connect-timeout=TIME; ",
    ),
    ("disconnect --connect-timeout 5 nbd0", "did you mean --timeout? check, connect, info and list have it; "),
    ("status --tag x", "connect and disconnect have it; "),
    ("info --read-only db1", "connect has it; "),
    ("up --read-only nbd0", "connect has it; in /etc/nbdtab it is read-only; "),
    ("down --force nbd0", "disconnect has it; "),
    ("doctor --fix", ""),
]


@pytest.mark.parametrize(("typed", "hint"), OTHER_NAMES)
def test_an_option_of_other_commands_or_programs_is_explained(capsys: Capture, typed: str, hint: str) -> None:
    command = typed.split()[0]
    assert said_error(capsys, 2, *typed.split())[1] == f"{hint}see nbdattach {command} --help"


@pytest.mark.parametrize("value", ["", "-1", "+5", "nan", "inf", "1e3", "5x", "5:", "wait:5", "٣"])
def test_an_invalid_time_of_on_loss_is_named(capsys: Capture, value: str) -> None:
    line, hint = said_error(capsys, 2, "connect", "--on-loss", f"wait:{value}", "db1")
    assert line == f"nbdattach connect: Invalid value for '--on-loss': {value!r} {NO_TIME.format('0')}"
    assert hint == "try --on-loss wait:30s; see nbdattach connect --help"


@pytest.mark.parametrize("backend", ["", "kernel", "IO CTL"])
def test_backend_is_one_of_a_few(capsys: Capture, backend: str) -> None:
    line, hint = said_error(capsys, 2, "connect", "--backend", backend, "db1")
    assert line == f"nbdattach connect: Invalid value for '--backend': {backend!r} is not one of auto, netlink, ioctl"
    assert hint == "try --backend auto; see nbdattach connect --help"


MALFORMED: list[tuple[list[str], str, str]] = [
    (
        ["connect", "--size", "512", "db1"],
        "nbdattach: --size: needs --no-handshake",
        "give both, or none",
    ),
    (
        ["connect", "--no-handshake", "db1"],
        "nbdattach: --no-handshake: needs --size SIZE",
        "give both, or none",
    ),
    (
        ["connect", "db1", "/dev/null"],
        "nbdattach: '/dev/null': not an nbd device",
        "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ...",
    ),
    (
        ["disconnect", "nbd0", "/dev/sda"],
        "nbdattach: '/dev/sda': not an nbd device",
        "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ...",
    ),
    (
        ["status", "/dev/nbd0p1"],
        "nbdattach: '/dev/nbd0p1': a partition, not a whole device",
        "name the device: /dev/nbd0",
    ),
    (
        ["info", "nbd://db1/x", "-N", "y"],
        "nbdattach: 'nbd://db1/x': -N/--export cannot be combined with a URI",
        "write nbd://db1/y",
    ),
    (
        ["check", "db1:0"],
        "nbdattach: 'db1:0': not a port: '0'",
        "a port is a number from 1 to 65535",
    ),
    (
        ["reconnect", "nbd0", "-N", "disk"],
        "nbdattach: --export: needs a TARGET",
        "leave it out to keep the export",
    ),
    (
        ["reconnect", "nbd0", "--shared"],
        "nbdattach: --shared: needs a TARGET",
        "leave it out to keep the server",
    ),
    (
        ["reconnect", "nbd0", "-N", ""],
        "nbdattach: --export: needs a TARGET",
        "leave it out to keep the export",
    ),
    (
        ["reconnect", "db1", "nbd0"],
        "nbdattach: 'db1': not an nbd device",
        "nbdattach reconnect nbd0 db1",
    ),
    (
        ["reconnect", "nbd0", "nbd://db2/x", "-N", "y"],
        "nbdattach: 'nbd://db2/x': -N/--export cannot be combined with a URI",
        "write nbd://db2/y",
    ),
    (
        ["resize", "nbd0p1"],
        "nbdattach: 'nbd0p1': a partition, not a whole device",
        "name the device: nbd0",
    ),
    (
        ["list", "http://db1"],
        "nbdattach: 'http://db1': no NBD URI, but one of http",
        "for a file there: [ nbdkit curl http://db1 ]; an NBD server is nbd://HOST",
    ),
    (
        ["connect", "/dev/nbd0", "db1"],
        "nbdattach: /dev/nbd0: a device of the nbd driver in the place of TARGET",
        "nbdattach connect db1 /dev/nbd0",
    ),
    (
        ["connect", "db1", "10809"],
        "nbdattach: '10809': not an nbd device",
        "if it is the port: nbdattach connect db1:10809",
    ),
    (
        ["info", "/dev/nbd7"],
        "nbdattach: '/dev/nbd7': a device of the nbd driver, not a server",
        "name a server or an image",
    ),
]


@pytest.mark.parametrize(("arguments", "line", "hint"), MALFORMED)
def test_malformed_argument_is_one_line_and_one_hint(
    capsys: Capture, arguments: list[str], line: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing = ((attachment, "attach"), (detachment, "detach"), (handover, "reconnect"), (handover, "resize"))
    for module, name in doing:
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was done in spite of the mistake"))
    assert said_error(capsys, 2, *arguments) == (line, hint)


def test_target_cannot_write_on_the_terminal(capsys: Capture) -> None:
    line, _ = said_error(capsys, 2, "info", "db\x1b[2J\n1\udcff")
    assert line == r"nbdattach: 'db\x1b[2J\n1\udcff': not a host name"


@pytest.mark.parametrize("value", ["1_0", "٣", " 5 "])
def test_seconds_are_written_as_numbers_are(capsys: Capture, value: str) -> None:
    said_error(capsys, 2, "info", "--connect-timeout", value, f"127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("value", ["1e300", "1e19", "9223372037"])
def test_many_seconds_are_a_usage_error_or_a_long_time(capsys: Capture, value: str) -> None:
    code, _, err = ran(capsys, "info", "--connect-timeout", value, f"127.0.0.1:{closed_port()}")
    assert code in (2, 3)
    assert "internal error" not in err


def test_a_number_without_end_is_a_usage_error(capsys: Capture) -> None:
    said_error(capsys, 2, "connect", "-C", "9" * 5000, "db1")


def test_extra_argument_cannot_write_on_the_terminal(capsys: Capture) -> None:
    said_error(capsys, 2, "info", "db1", "x\n\x1b[2J")


# -- help --------------------------------------------------------------------------------------------------------------


def test_no_command_is_the_help_and_a_usage_error(capsys: Capture) -> None:
    code, out, err = ran(capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: nbdattach [OPTIONS] COMMAND [ARGS]...\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_all(capsys: Capture, flag: str) -> None:
    code, out, err = ran(capsys, flag)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: nbdattach [OPTIONS] COMMAND [ARGS]...\n")
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(capsys: Capture, command: str, flag: str) -> None:
    code, out, err = ran(capsys, command, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: nbdattach {command} [OPTIONS]")
    assert max(map(len, out.split("\n"))) <= 80
    assert "--debug" in out


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"monitor", "help"}))
def test_json_is_offered_where_the_contract_says(command: str) -> None:
    names = [name for param in main.cli.commands[command].params for name in param.opts]
    assert "--json" in names


def test_version(capsys: Capture) -> None:
    assert ran(capsys, "--version") == (0, f"nbdattach {nbdattach.__version__}\n", "")


# -- things that must not happen ---------------------------------------------------------------------------------------


def breaking(error: BaseException) -> Callable[..., Any]:
    def broken(*_: object) -> None:
        raise error

    return broken


UNEXPECTED = [RuntimeError("boom"), ValueError("boom"), KeyError("boom"), OSError(5, "boom"), AssertionError("boom")]


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_unexpected_exception_is_no_traceback(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(client, "inspect", breaking(error))
    line, hint = said_error(capsys, 1, "info", "db1")
    assert line == f"nbdattach: internal error: {type(error).__name__}: {error}"
    assert hint == "run it again with --debug, and report the result"


@pytest.mark.parametrize("arguments", [["--debug", "info", "db1"], ["info", "--debug", "db1"]])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(client, "inspect", breaking(RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):
        main.run(arguments)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), click.Abort()])
def test_interrupt_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    monkeypatch.setattr(client, "inspect", breaking(stop))
    code, out, err = ran(capsys, "info", "db1")
    assert (code, out, err.strip()) == (1, "", "nbdattach: interrupted")


@pytest.mark.parametrize(
    "error", [NbdattachError("it", "no", "try"), KernelRefused("it", "no", "try"), NotAttached("")]
)
def test_error_of_ours_has_its_exit_code(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: NbdattachError
) -> None:
    monkeypatch.setattr(client, "inspect", breaking(error))
    assert said_error(capsys, error.exit_code, "info", "db1") == (f"nbdattach: {error}", error.hint)


def test_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m nbdattach doctor --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1)
    assert done.stderr == ""


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("frobnicate", 2)])
def test_a_command_has_written_all_when_it_ends_without_the_end_of_python(argument: str, code: int) -> None:
    program = f"""
import atexit, sys
atexit.register(print, "Python's own end")
print("begun", end=";")
print("half a line", end="", file=sys.stderr)
sys.argv = ["nbdattach", "{argument}"]
from nbdattach.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout[:6], "Python" in done.stdout) == (code, "begun;", False)
    assert "half a line" in done.stderr


# -- import time -------------------------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stderr.split())


def test_command_line_imports_nothing_heavy() -> None:
    loaded = loaded_by("import nbdattach.cli.main")
    assert "nbdattach.cli.main" in loaded
    assert loaded & {"pyroute2", "ssl", "_ssl", "socket", "_socket", "subprocess", "ctypes", "asyncio"} == set()
    ours = {name.removeprefix("nbdattach.") for name in loaded if name.startswith("nbdattach.")}
    modules = "failure main offers options parameters report types usage"
    ground = {"errors", "reporter", "text"}
    assert ours == {"cli", *(f"cli.{name}" for name in modules.split()), *ground}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-h"],
        ["connect", "-h"],
        ["up", "-h"],
        ["--version"],
        ["help", "up"],
        ["frobnicate"],
        ["connect"],
        ["db1", "10809", "/dev/nbd0", "-persist"],
        ["connect", "--ro", "disk.img"],
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(f"from nbdattach.cli.main import run; run({arguments!r})")
    assert loaded & {"pyroute2", "ssl", "_ssl", "socket", "_socket", "subprocess"} == set()


def test_help_of_all_imports_no_options_and_makes_those_of_no_command() -> None:
    counted = """
import contextlib, gc, io, sys
import nbdattach.cli.main as main
with contextlib.redirect_stdout(io.StringIO()) as text:
    main.run(["--help"])
made = [one.opts[-1] for one in gc.get_objects() if isinstance(one, main.click.Parameter)]
print("Attach an export, " in text.getvalue(), *sorted(made))
print(*sorted(name for name in sys.modules if name.startswith("nbdattach.") and ".cli" not in name))
"""
    done = subprocess.run([sys.executable, "-c", counted], capture_output=True, text=True, check=True, timeout=60)
    made, ours = done.stdout.splitlines()
    assert made.replace(" --help", "") == "True --debug --version"  # click 8.1.3 does not keep its --help
    assert ours == "nbdattach.errors nbdattach.reporter nbdattach.text"


@pytest.mark.parametrize("command", [["connect", "--size", "512", "127.0.0.1"], ["info", "127.0.0.1:1"], ["status"]])
def test_words_of_other_programs_are_imported_after_an_error_only(command: list[str]) -> None:
    loaded = loaded_by(f"from nbdattach.cli.main import run; run({command!r})")
    assert "nbdattach.cli.usage" in loaded
    assert (
        not {f"nbdattach.cli.{name}" for name in ("corrected", "foreign", "manual", "migration", "other_names")}
        & loaded
    )


def test_info_and_list_import_neither_the_kernels_side_nor_tls() -> None:
    loaded = loaded_by("from nbdattach.cli.main import run; run(['info', '127.0.0.1:1'])")
    assert "nbdattach.connection.client" in loaded
    assert (
        loaded
        & {
            "pyroute2",
            "ssl",
            "nbdattach.operations.attachment",
            "nbdattach.kernel.ioctl",
            "nbdattach.backends.by_ioctl",
        }
        == set()
    )


# -- list, info, check against a server --------------------------------------------------------------------------------


def test_info_tells_the_export(capsys: Capture) -> None:
    with listening(says_and_hears(INFO, [])) as target:
        code, out, err = ran(capsys, "info", f"127.0.0.1:{target.port}", "-N", "disk")
    assert (code, err) == (0, "")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert {key: value.strip() for key, value in lines.items()} == {
        "target": f"nbd://127.0.0.1:{target.port}/disk",
        "export": "disk",
        "description": "-",
        "size": "1048576 (1 MiB)",
        "access": "read-only",
        "flags": "has_flags, read_only",
        "block size": "minimum 512, preferred 4096, maximum 65536",
        "protocol": "newstyle-fixed",
        "tls": "no",
    }


def test_info_json_is_one_document(capsys: Capture) -> None:
    with listening(says_and_hears(INFO, [])) as target:
        code, out, err = ran(capsys, "info", "--json", target.uri)
    assert (code, err) == (0, "")
    found = json.loads(out)
    keys = ["target", "export", "description", "size", "flags", "block_size", "protocol", "tls", "cannot_be_attached"]
    assert list(found) == keys
    assert (found["target"], found["size"], found["cannot_be_attached"]) == (target.uri, wire.SIZE, None)


def test_list_tells_the_exports(capsys: Capture) -> None:
    with listening(says_and_hears(LISTING, [])) as target:
        code, out, err = ran(capsys, "list", target.uri)
    assert (code, err) == (0, "")
    assert out == "NAME  SIZE   DESCRIPTION\nroot  1 MiB  of all\n"


def test_list_json_is_one_document(capsys: Capture) -> None:
    with listening(says_and_hears(LISTING, [])) as target:
        code, out, err = ran(capsys, "list", "--json", target.uri)
    assert (code, err) == (0, "")
    exports = [{"name": "root", "description": "of all", "size": wire.SIZE}]
    assert json.loads(out) == {"target": target.uri, "exports": exports}


def test_check_json_of_an_empty_export_has_no_time_of_a_read(capsys: Capture) -> None:
    said = wire.greeting() + wire.sized(wire.GO, 0) + wire.ack(wire.GO)
    with listening(says_and_hears(said, [])) as target:
        code, out, err = ran(capsys, "check", "--json", target.uri)
    cause = f"{target.uri}: the export has 0 bytes, less than one block of 512"
    assert (code, err) == (4, f"nbdattach: {cause}\n(is the image behind it empty?)\n")
    found = json.loads(out)
    assert found.pop("handshake_ms") > 0
    assert found.pop("error")["message"] == cause
    assert found == {"target": target.uri, "ok": False, "read_ms": None}


def test_check_says_how_long_it_took(capsys: Capture) -> None:
    with listening(says_and_hears(GO + READ, [])) as target:
        code, out, err = ran(capsys, "check", target.uri)
    assert (code, err) == (0, "")
    assert out.startswith(f"{target.uri}: ok, handshake ")
    assert out.count("\n") == 1


def test_check_json_is_one_document(capsys: Capture) -> None:
    with listening(says_and_hears(GO + READ, [])) as target:
        code, out, err = ran(capsys, "check", "--json", target.uri)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["target", "ok", "handshake_ms", "read_ms", "error"]
    assert (found["target"], found["ok"], found["error"]) == (target.uri, True, None)
    assert found["handshake_ms"] > 0
    assert found["read_ms"] > 0


def test_several_servers_are_checked_at_the_same_time_and_told_in_the_order_given(capsys: Capture) -> None:
    """Each server answers once all have a client."""
    together = threading.Barrier(3)

    def after_all(serve: Serve) -> Serve:
        def served(sock: socket.socket) -> None:
            together.wait(30)
            serve(sock)

        return served

    good, bad = after_all(says_and_hears(GO + READ, [])), after_all(says(b""))
    with listening(good) as first, listening(bad) as second, listening(good) as third:
        code, out, err = ran(capsys, "check", first.uri, second.uri, third.uri)
    assert code == 3
    assert [line.partition(": ")[0] for line in out.splitlines()] == [first.uri, third.uri]
    assert err.startswith(f"nbdattach: {second.uri}: the server closed the connection")


def test_ctrl_c_ends_a_check_of_silent_servers_at_once() -> None:
    """Python waits for its threads, and those for the servers, at the end of a process."""
    asked = threading.Barrier(3)

    def silent_for_long(sock: socket.socket) -> None:
        asked.wait(30)
        sock.recv(1)

    with listening(silent_for_long) as first, listening(silent_for_long) as second:
        program = [sys.executable, "-m", "nbdattach", "check", first.uri, second.uri]
        checking = subprocess.Popen(program, stderr=subprocess.PIPE, preexec_fn=heed_interrupts)
        asked.wait(30)
        checking.send_signal(signal.SIGINT)
        try:
            checking.communicate(timeout=10)  # the servers have 30 s to answer
        finally:
            checking.kill()
    assert checking.returncode == -signal.SIGINT


def heed_interrupts() -> None:
    """The process that runs the tests may ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_json_of_several_servers_is_one_document(capsys: Capture) -> None:
    closed = f"nbd://127.0.0.1:{closed_port()}"
    with listening(says_and_hears(GO + READ, [])) as target:
        code, out, err = ran(capsys, "check", "--json", closed, target.uri)
    found = json.loads(out)
    assert (code, list(found), found["ok"]) == (3, ["ok", "error", "checks"], False)
    assert found["error"] == found["checks"][0]["error"]
    assert [(one["target"], one["ok"]) for one in found["checks"]] == [(closed, False), (target.uri, True)]
    assert err.startswith(f"nbdattach: {closed}: cannot connect: Connection refused\n")


@pytest.mark.parametrize(
    ("bad", "options", "exit_code", "said"),
    [
        ("./none.raw", [], 2, "./none.raw: no such image: No such file or directory"),
        ("none.qcow2", [], 2, "none.qcow2: no such image: No such file or directory"),
        ("there.qcow2", [], 2, "there.qcow2: named .qcow2, but it has no qcow2 header"),
        ("db1:0", [], 2, "'db1:0': not a port: '0'"),
        ("nbd://db1?no=1", [], 2, "'nbd://db1?no=1': unknown parameter 'no'"),
        ("/", [], 2, "/: neither an image nor a socket"),
        ("[ ]", [], 2, "'[ ]': no command in the brackets"),
        ("[ nbdattach-no-such-server ]", [], 6, "it needs the program nbdattach-no-such-server"),
        ("there.raw", ["-N", "disk"], 2, "--export: there.raw is an image, which has no exports"),
    ],
)
def test_a_mistake_in_one_target_of_a_check_does_not_stop_the_others(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bad: str,
    options: list[str],
    exit_code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.raw", "there.qcow2"):
        (tmp_path / name).write_bytes(bytes(4096))
    with listening(says_and_hears(GO + READ, [])) as one, listening(says_and_hears(GO + READ, [])) as two:
        servers = [f"127.0.0.1:{server.port}" for server in (one, two)]
        code, out, err = ran(capsys, "check", "--json", *options, servers[0], bad, servers[1])
    found = json.loads(out)
    assert [check["ok"] for check in found["checks"]] == [True, False, True]
    assert (found["ok"], found["error"]) == (False, found["checks"][1]["error"])
    assert (code, found["error"]["exit_code"]) == (exit_code, exit_code)
    assert said in found["error"]["message"]
    assert found["checks"][1]["target"].endswith(bad)
    assert err.startswith(f"nbdattach: {found['error']['message']}\n(")


def test_the_document_of_one_wrong_target_is_that_of_any_check(capsys: Capture) -> None:
    code, out, _ = ran(capsys, "check", "--json", "./none.raw")
    found = json.loads(out)
    assert (code, found["target"], found["ok"], found["error"]["kind"]) == (2, "./none.raw", False, "usage")


ROOT = wire.listed(b"root") + wire.ack(wire.LIST)
UNKNOWN = {asked: wire.greeting() + wire.reply(asked, wire.UNKNOWN) + ROOT for asked in (wire.INFO, wire.GO)}
NO_TLS = wire.greeting() + wire.reply(wire.STARTTLS, wire.UNSUP)
FAILURES: dict[str, tuple[list[str], Serve, str, int, str]] = {
    "closed": (["info", "list", "check"], says(b""), "", 3, "the server closed the connection"),
    "silent": (["info", "list", "check"], silence, "", 3, "no answer within 0.3 s"),
    "no NBD server": (["info", "list", "check"], says_and_hears(b"SSH-2.0-OpenSSH", []), "", 4, "not an NBD server"),
    "unknown": (["info"], says_and_hears(UNKNOWN[wire.INFO], []), "/x", 4, "the server has no export named 'x'"),
    "not there": (["check"], says_and_hears(UNKNOWN[wire.GO], []), "/x", 4, "the server has no export named 'x'"),
    "policy": (
        ["list"],
        says_and_hears(wire.greeting() + wire.reply(wire.LIST, wire.POLICY), []),
        "",
        4,
        "the server's policy forbids listing its exports",
    ),
    "no TLS": (["info", "list", "check"], says_and_hears(NO_TLS, []), "s", 5, "the server refuses TLS"),
}


def uri_of(place: str, port: int) -> str:
    return f"nbds://127.0.0.1:{port}" if place == "s" else f"nbd://127.0.0.1:{port}{place}"


@pytest.mark.parametrize(
    ("what", "command"), [(what, command) for what, failure in FAILURES.items() for command in failure[0]]
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_failure_has_its_exit_code_line_and_hint(capsys: Capture, what: str, command: str, flags: list[str]) -> None:
    _, serve, place, code, cause = FAILURES[what]
    with listening(serve) as target:
        uri = uri_of(place, target.port)
        patience = "0.3" if what == "silent" else "60"
        got, out, err = ran(capsys, command, *flags, "--connect-timeout", patience, uri)
    line, hint = err.removesuffix("\n").split("\n")
    assert got == code
    assert line.startswith(f"nbdattach: {uri}: {cause}")
    assert hint.startswith("(")
    if command == "check" and flags:
        found = json.loads(out)
        assert list(found) == ["target", "ok", "handshake_ms", "read_ms", "error"]
        assert (found["ok"], found["target"], found["read_ms"]) == (False, uri, None)
        assert line == f"nbdattach: {found['error']['message']}"
        assert found["error"]["exit_code"] == code
    elif flags:
        words = {3: "no-connection", 4: "refused", 5: "tls"}
        message, hint = line.removeprefix("nbdattach: "), hint[1:-1]
        error = {"kind": words[code], "exit_code": code, "thing": uri, "message": message, "hint": hint, "users": []}
        assert json.loads(out) == {"error": error}
    else:
        assert out == ""


@pytest.mark.parametrize("command", ["info", "list", "check"])
def test_closed_port_is_exit_code_3(capsys: Capture, command: str) -> None:
    port = closed_port()
    line, hint = said_error(capsys, 3, command, f"127.0.0.1:{port}")
    assert line == f"nbdattach: nbd://127.0.0.1:{port}: cannot connect: Connection refused"
    assert hint == f"is the server running, and does it listen on port {port}?"


def test_check_json_of_a_failed_read_keeps_the_time_of_the_handshake(capsys: Capture) -> None:
    with listening(says_and_hears(GO + wire.simple_reply(5, client.CHECK_COOKIE), [])) as target:
        code, out, err = ran(capsys, "check", "--json", target.uri)
    found = json.loads(out)
    cause = "reading 4096 bytes at 0 failed: input/output error (5)"
    assert (code, found["ok"], found["read_ms"]) == (4, False, None)
    assert found["handshake_ms"] > 0
    assert found["error"]["message"] == f"{target.uri}: {cause}"
    assert err == f"nbdattach: {target.uri}: {cause}\n(see the server's log)\n"


@pytest.mark.row(13)
@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_each_step_on_stderr(capsys: Capture, before: bool) -> None:
    with listening(says_and_hears(INFO, [])) as target:
        arguments = ["--debug", "info"] if before else ["info", "--debug"]
        code, out, err = ran(capsys, *arguments, "--json", target.uri)
    assert code == 0
    assert json.loads(out)["size"] == wire.SIZE
    assert err.splitlines() == [
        f"nbdattach: debug: {text}"
        for text in (
            f"connecting to 127.0.0.1 port {target.port}",
            "waiting for the server's greeting",
            "new style, handshake flags 0x3",
            "NBD_OPT_INFO, 12 bytes of data",
            "NBD_REP_INFO, 12 bytes of data",
            "information of type 0, 10 bytes",
            "NBD_REP_INFO, 14 bytes of data",
            "information of type 3, 12 bytes",
            "NBD_REP_ACK, 0 bytes of data",
            "NBD_OPT_ABORT, 0 bytes of data",
        )
    ]


# -- several devices ---------------------------------------------------------------------------------------------------


def test_disconnect_goes_on_after_a_failure_and_the_first_one_counts(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def detach(device: Any, *_: object, force: bool, **__: object) -> str:
        assert not force
        done.append(device.index)
        if device.index == 1:
            raise DeviceInUse(device.path, "mounted at /srv", "release it first", ["mounted at /srv: umount /srv"])
        if device.index == 2:
            raise KernelRefused(device.path, "no", "ask again")
        return "" if device.index else "not attached"

    monkeypatch.setattr(detachment, "detach", detach)
    code, out, err = ran(capsys, "disconnect", "nbd0", "nbd1", "nbd2", "/dev/nbd3")
    assert (code, out, done) == (7, "", [0, 1, 2, 3])
    assert err.splitlines() == [
        "nbdattach: /dev/nbd0: not attached, nothing to do",
        "nbdattach: /dev/nbd2: no",
        "(ask again)",
        "nbdattach: /dev/nbd1: mounted at /srv",
        "  mounted at /srv: umount /srv",
        "(release it first)",
    ]


def test_data_is_given_up_only_where_that_is_asked_for(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float, bool]] = []

    def detach(device: Any, seconds: float, *, force: bool, **_: object) -> str:
        asked.append((device.index, seconds, force))
        return ""

    monkeypatch.setattr(detachment, "detach", detach)
    assert ran(capsys, "disconnect", "--force", "--timeout", "5", "nbd0", "nbd1") == (0, "", "")
    assert ran(capsys, "disconnect", "nbd0") == (0, "", "")
    assert asked == [(0, 5.0, True), (1, 5.0, True), (0, DETACH_SECONDS, False)]


def test_status_of_what_is_not_attached_is_exit_code_8(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: Any) -> None:
        raise NotAttached(device.path)

    monkeypatch.setattr(status, "status_of", missing)
    assert said_error(capsys, 8, "status", "nbd0") == (
        "nbdattach: /dev/nbd0: not attached",
        "nbdattach status shows the attached devices",
    )
    code, out, _ = ran(capsys, "status", "--json", "nbd0")
    error = {"kind": "not-attached", "exit_code": 8, "thing": "/dev/nbd0", "message": "/dev/nbd0: not attached"}
    error |= {"hint": "nbdattach status shows the attached devices", "users": []}
    assert (code, json.loads(out)) == (8, {"error": error, "results": []})


def test_status_of_nothing_attached_is_empty(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "all_attached", list)
    assert ran(capsys, "status") == (0, "", "")
    assert ran(capsys, "status", "--json") == (0, "[]\n", "")


def test_status_is_watched_by_people_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[list[Device]] = []
    monkeypatch.setattr(screen, "watch", watched.append)
    code, out, err = ran(capsys, "status", "--watch", "--json")
    hint = "leave one out; a program can run status --json repeatedly"
    assert (code, err) == (2, f"nbdattach: --watch: cannot be combined with --json\n({hint})\n")
    assert json.loads(out)["error"]["message"] == "--watch: cannot be combined with --json"
    assert said_error(capsys, 2, "status", "--watch", "sda")[0] == "nbdattach: 'sda': not an nbd device"
    for form in ("json", "openmetrics"):
        code, _, err = ran(capsys, "status", "--watch", "--format", form)
        assert (code, err) == (2, f"nbdattach: --watch: cannot be combined with --format {form}\n({hint})\n")
    code, _, err = ran(capsys, "status", "--json", "--format", "openmetrics")
    assert (code, err) == (2, "nbdattach: --json: cannot be combined with --format openmetrics\n(leave one out)\n")
    assert watched == []
    assert ran(capsys, "status", "--watch") == (0, "", "")
    assert ran(capsys, "status", "--watch", "nbd1", "/dev/nbd0") == (0, "", "")
    assert watched == [[], [Device(1), Device(0)]]


def test_foreground_is_asked_for_by_name_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """connect prints the device, and nothing else, on stdout; notes go to stderr."""

    done = Attachment("/dev/nbd3", 4711, ["a tail of 1 byte is ignored"])
    stayed: list[tuple[str, int | None]] = []
    monkeypatch.setattr(attachment, "attach", lambda *_: done)
    monkeypatch.setattr(foreground, "stay", lambda attached, *_: stayed.append((attached.device, attached.pid)))
    assert ran(capsys, "connect", "db1") == (0, "/dev/nbd3\n", "nbdattach: a tail of 1 byte is ignored\n")
    assert stayed == []
    assert ran(capsys, "connect", "-f", "db1")[:2] == (0, "/dev/nbd3\n")
    assert stayed == [("/dev/nbd3", 4711)]


# -- options and orders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ConnectOptions()),
        (["--on-loss", "wait"], ConnectOptions(on_loss=math.inf)),
        (["--on-loss", "wait:5"], ConnectOptions(on_loss=5.0)),
        (["--on-loss", "wait:0.5"], ConnectOptions(on_loss=0.5)),
        (["--on-loss", "wait:0"], ConnectOptions(on_loss=0.0)),
        (["--on-loss", "wait:31536000"], ConnectOptions(on_loss=365 * 24 * 3600.0)),
        (["--on-loss", "fail"], ConnectOptions(on_loss=0.0)),
        (["--dead-peer", "1", "--io-timeout", "90"], ConnectOptions(dead_peer=1.0, io_timeout=90.0)),
        (["--scheduler", "bfq", "--read-ahead", "65536"], ConnectOptions(scheduler="bfq", read_ahead=65536)),
        (["--backend", "netlink", "--no-reconnect"], ConnectOptions(backend="netlink", reconnect=False)),
        (["-C", "3", "--swap", "--tag", "t"], ConnectOptions(connections=3, swap=True, tag="t")),
        (["--size", "512", "--no-handshake"], ConnectOptions(raw_size=512)),
    ],
)
def test_options_of_connect_become_one_record(
    monkeypatch: pytest.MonkeyPatch, options: list[str], expected: ConnectOptions
) -> None:
    asked: list[tuple[Target, Device | None, ConnectOptions]] = []

    def attach(target: Target, device: Device | None, given: ConnectOptions, _: object) -> None:
        asked.append((target, device, given))
        raise KernelRefused("it", "no", "try")

    monkeypatch.setattr(attachment, "attach", attach)
    assert main.run(["connect", *options, "db1", "nbd3"]) == 6
    assert asked == [(Target("db1"), Device(3), expected)]


@pytest.mark.parametrize("tag", ["t", "nbd://db1/disk", "two words", "a" * 255, "ä" * 127, "磁盘"])
def test_a_tag_is_taken_as_it_was_typed(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    asked: list[str] = []

    def attach(_target: Target, _device: object, given: ConnectOptions, _trace: object) -> None:
        asked.append(given.tag)
        raise KernelRefused("it", "no", "try")

    monkeypatch.setattr(attachment, "attach", attach)
    assert main.run(["connect", "--tag", tag, "db1"]) == 6
    assert asked == [tag]


# The last two are Python's form of bytes that are not UTF-8, and a blank that is not ASCII.
UNFIT_TAGS = ["a\nb", "\x1b[2J", "\x00", "\x7f", "\u202e", " t", "t ", "\t", " ", "\udcff", "t\u3000"]


@pytest.mark.parametrize("tag", UNFIT_TAGS)
def test_a_tag_that_is_no_line_of_text_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.setattr(attachment, "attach", lambda *_: pytest.fail("it was attached"))
    said, hint = said_error(capsys, 2, "connect", "--tag", tag, "db1")
    assert said.startswith("nbdattach: --tag: '")
    assert said.endswith("' contains unprintable characters, or blanks at its ends")
    assert hint == "use letters and digits"


def test_an_unfit_tag_is_shown_as_other_names_are(capsys: Capture) -> None:
    said, _ = said_error(capsys, 2, "connect", "--tag", "a\n", "db1")
    assert said == r"nbdattach: --tag: 'a\n' contains unprintable characters, or blanks at its ends"


@pytest.mark.parametrize("tag", ["a" * 256, "ä" * 128, "磁" * 86])
def test_a_tag_that_is_too_long_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.setattr(attachment, "attach", lambda *_: pytest.fail("it was attached"))
    assert said_error(capsys, 2, "connect", "--tag", tag, "db1") == (
        "nbdattach: --tag: longer than 255 bytes", "use a shorter name",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ([], None),
        (["--trust"], None),
        (["db2"], Target("db2")),
        (["db2", "-N", "disk"], Target("db2", export="disk")),
        (["nbd://db2/disk"], Target("db2", export="disk")),
        (["--shared", "db2"], Target("db2")),
    ],
)
def test_reconnect_says_where_the_device_is_connected_now(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], target: Target | None
) -> None:
    asked: list[tuple[Device, Target | None, bool, bool]] = []

    def reconnect(device: Device, place: Target | None, any_content: bool, shared: bool) -> str:
        asked.append((device, place, any_content, shared))
        return "nbd://db2/disk"

    monkeypatch.setattr(Kernel, "pid", 4711)
    monkeypatch.setattr(handover, "reconnect", reconnect)
    assert ran(capsys, "reconnect", "nbd0", *arguments) == (
        0, "", "nbdattach: /dev/nbd0: connected to nbd://db2/disk\n",
    )  # fmt: skip
    assert asked == [(Device(0), target, "--trust" in arguments, "--shared" in arguments)]


def test_resize_names_the_users_of_a_device_that_would_shrink(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The monitor finds them, and its answer has them."""
    monkeypatch.setattr(state, "RUN", str(tmp_path))
    monkeypatch.setattr(control, "PLACE", str(tmp_path / "monitor"))
    monkeypatch.setattr(Kernel, "pid", 4711)
    monkeypatch.setattr(handover, "resize", lambda device: control.ask(control.Request("resize", device.name)))
    cause = "the export is smaller now, and the device is mounted at /srv"
    refusal = DeviceInUse("/dev/nbd1", cause, "release the device first", ["mounted at /srv: umount /srv"])
    with contextlib.closing(control.Door()) as door:

        def refuse() -> None:
            with contextlib.closing(door.accept()) as caller:
                caller.read()
                caller.reply(refusal)

        monitor = threading.Thread(target=refuse, daemon=True)
        monitor.start()
        assert ran(capsys, "resize", "nbd1") == (
            7,
            "",
            f"nbdattach: /dev/nbd1: {cause}\n  mounted at /srv: umount /srv\n(release the device first)\n",
        )
        monitor.join()


def test_resize_says_what_became_of_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "pid", 4711)
    monkeypatch.setattr(handover, "resize", lambda device: f"{device.index + 1024} bytes now, 512 before")
    assert ran(capsys, "resize", "nbd1") == (0, "", "nbdattach: /dev/nbd1: 1025 bytes now, 512 before\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tag", ""), "--tag: an empty name"),
        (("--if-tag", "", "nbd0"), "--if-tag: an empty name"),
        (("ndb0",), "'ndb0': not an nbd device"),
        (("/dev/nbd0p1",), "'/dev/nbd0p1': a partition, not a whole device"),
        (("nbd0", "/dev/null"), "'/dev/null': not an nbd device"),
        (("nbd://db1?x=1",), "'nbd://db1?x=1': unknown parameter 'x'"),
    ],
)
def test_disconnect_of_what_cannot_be_meant_detaches_nothing(
    host: Host, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(detachment, "detach", lambda *_, **__: pytest.fail("it was detached"))
    assert said_error(capsys, 2, "disconnect", *arguments)[0] == f"nbdattach: {said}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Ours on nbd0 and nbd1, a stranger's on nbd2."""
    made = pretend(tmp_path, monkeypatch)
    for number, (tag, export) in enumerate((("db", "disk"), ("web", "root"))):
        made.attach(Device(number), tag=tag)
        record = Record(tag, f"nbd://db1/{export}", export, "netlink", 1, "2026-01-02T03:04:05Z", 4711)
        state.save(Device(number), record)
    made.attach(Device(2), tag="tag")
    return made


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("arguments", "detached", "said"),
    [
        (("--tag", "db"), [0], ""),
        (("--tag", "tag"), [2], ""),  # the kernel's name for the stranger's
        (("--tag", "dbx"), [], "nbdattach: tag dbx: not attached, nothing to do\n"),
        (("nbd://db1/root",), [1], ""),
        (("db1", "-N", "root"), [1], ""),
        (("nbd1", "nbd://db1/root", "nbd://db1/disk"), [1, 0], ""),
        (("nbd://db1/other",), [], "nbdattach: nbd://db1/other: not attached, nothing to do\n"),
        (
            ("--all",),
            [0, 1],
            "nbdattach: /dev/nbd2: left alone, because another program attached it; name it to detach it\n",
        ),
    ],
)
def test_disconnect_finds_what_is_meant(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], detached: list[int], said: str
) -> None:
    asked: list[int] = []

    def detach(device: Device, *_: object, **__: object) -> str:
        asked.append(device.index)
        return ""

    monkeypatch.setattr(detachment, "detach", detach)
    assert ran(capsys, "disconnect", *arguments) == (0, "", said)
    assert asked == detached


def test_disconnect_of_all_does_not_take_what_it_detached_before_for_another_programs(
    host: Host, capsys: Capture
) -> None:
    """A program keeps the device, so the kernel does, too."""
    for number in (0, 1):
        state.note_end(Device(number), state.identity_of(Device(number)))
    (host.sys / "block/nbd2/pid").unlink()
    ended = "detached; the kernel frees it when its last user releases it"
    lines = [f"nbdattach: /dev/nbd{number}: {ended}\n" for number in (0, 1)]
    assert ran(capsys, "disconnect", "--all") == (0, "", "".join(lines))
    assert ran(capsys, "disconnect", "--tag", "db") == (0, "", "nbdattach: tag db: not attached, nothing to do\n")


@pytest.mark.usefixtures("host")
def test_if_tag_leaves_alone_what_is_another_attachment(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def detach(device: Device, *_: object, only_tag: object, **__: object) -> str:
        seen.append(only_tag)
        return "holds another attachment now ('db')"

    monkeypatch.setattr(detachment, "detach", detach)
    said = "nbdattach: /dev/nbd0: holds another attachment now ('db'), nothing to do\n"
    assert ran(capsys, "disconnect", "--if-tag", "other", "nbd0") == (0, "", said)
    assert seen == ["other"]


@pytest.mark.parametrize("flags", [[], ["-b"], ["--background"]])
def test_monitor_is_not_started_where_there_is_no_netlink(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(choice, "why_no_netlink", lambda: KernelRefused("netlink backend", "not here", "get it"))
    monkeypatch.setattr(launch, "in_background", lambda: pytest.fail("it was started"))
    assert said_error(capsys, 6, "monitor", *flags) == ("nbdattach: netlink backend: not here", "get it")
    # The monitor does not have the option of the usual hint.
    monkeypatch.setattr(choice, "why_no_netlink", lambda: KernelRefused("netlink backend", "no", "use --backend ioctl"))
    assert said_error(capsys, 6, "monitor", *flags) == ("nbdattach: netlink backend: no", "see nbdattach doctor")


def test_detaching_what_a_missing_path_names_is_a_mistake(capsys: Capture, tmp_path: Path) -> None:
    """It may be a mount point, mistyped; a URI of a socket that has gone is no mistake."""
    path = f"{tmp_path}/none"
    assert ran(capsys, "disconnect", path) == (
        2,
        "",
        f"nbdattach: '{path}': no such device, socket or image\n(nbdattach status shows the attached devices)\n",
    )
    uri = f"nbd+unix:///?socket={path}"
    assert ran(capsys, "disconnect", uri) == (0, "", f"nbdattach: {uri}: not attached, nothing to do\n")


def test_release_that_has_nothing_to_do_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "planned", lambda _: ([], []))
    monkeypatch.setattr(detachment, "nothing_to_do", lambda *_: "")
    assert ran(capsys, "disconnect", "--release", "--dry-run", "nbd0") == (
        0,
        "",
        "nbdattach: /dev/nbd0: nothing to release\n",
    )


@pytest.mark.parametrize("flag", ["-b", "--background"])
def test_monitor_in_the_background_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    started: list[bool] = []
    monkeypatch.setattr(choice, "why_no_netlink", lambda: None)
    monkeypatch.setattr(launch, "in_background", lambda: started.append(True))
    assert (main.run(["monitor", flag]), started) == (0, [True])


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "No space left on device"), (errno.EBADF, "Bad file descriptor")]
)
def test_result_that_cannot_be_written_is_one_line_and_one_hint(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fails(*_: object) -> NoReturn:
        raise OSError(number, words)

    monkeypatch.setattr(client, "inspect", fails)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which run() replaces
    assert main.run(["info", "db1"]) == 1
    assert capsys.readouterr().err == (
        f"nbdattach: cannot write the result: {words}\n"
        "(run it again with a writable output; nbdattach status shows the attached devices)\n"
    )
