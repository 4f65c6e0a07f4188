# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers of the command line, as one text: usage errors, help, completions, and each exit code that needs no root.

transcript.txt holds it. `on_each_library` compares it with the output of each version of click. To write it anew:

    .venv/bin/python tests/unit/cli/transcript.py >tests/unit/cli/transcript.txt
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import wire
from peer import listening, says, says_and_hears

from nbdattach import __version__
from nbdattach.cli import main
from nbdattach.connection import stream
from nbdattach.errors import DeviceInUse, KernelRefused, NotAttached

COMMANDS = sorted(main.cli.commands)
NO_COMMAND = ["", "--debug"]
USAGE = r"""
frobnicate
ls
conect db1
--frob
-N
--versio
--debug=1
--help=1
-- --frob
connect
disconnect
reconnect
resize
list
info
check
up
down
disconnect --all nbd0
disconnect --tag a --all
up --all nbd0
down --all nbd0
info --frob db1
info --xport db1
connect --rea db1
connect --read-onl db1
connect --on-los wait db1
connect -Z db1
connect -rZ db1
connect -r-f db1
info db1 x
info db1 x 'y z'
resize nbd0 db1
monitor nbd0
doctor x
info -N
info --export
connect db1 -C
connect db1 --connect-timeout
disconnect --tag
connect --tls=3 db1
connect --debug=1 db1
connect --read-only= db1
connect -C 999 db1
connect -b 4x db1
connect -b 1000 db1
connect -b 1_024 db1
connect -b '' db1
connect --size 0 --no-handshake db1
connect --size 1e3 --no-handshake db1
connect --expect-size -1 db1
connect --expect-size 99999999999999999999 db1
connect --retry-for 5M db1
connect --dead-peer 0.5 db1
connect --connect-timeout nan db1
connect --io-timeout -1 db1
connect --on-loss maybe db1
connect --on-loss wait:1w db1
connect --backend kernel db1
connect --backend KERNEL db1
connect --tls-transport '' db1
disconnect --timeout 1e9 nbd0
disconnect --timeout 999999999 nbd0
up --retry-for soon --all
status --json --watch
status sda
connect db1 /dev/sda
connect --tag '' db1
connect --size 512 db1
connect http://db1
info db1:0
-d /dev/nbd0
-c /dev/nbd0 disk.qcow2
-l db1
-V
db1 10809 /dev/nbd0
localhost /dev/nbd0 -persist -nofork
-x disk -t -f qcow2 disk.qcow2
--connect=/dev/nbd0 --aio=threads disk.img
-f --show disk.img
umount /dev/nbd0
connect --name disk db1
connect --ro db1
connect -block-size 512 db1
connect -readonly db1
connect -t 30 db1
connect db1 10809 /dev/nbd0
connect db1 10809
connect -r /dev/nbd0 db1
connect --tls-creds x db1
check --ro db1
info --name disk
reconnect db1 nbd0
help nosuch
help umount
--json status
info "a'b"
info '--frob\x1b'
"""
# The requests of a shell when the user presses Tab. Answers that depend on the machine are left out.
COMPLETIONS = [
    "", "li", "--", "-", "connect -", "connect --backend ", "connect --backend=n", "connect --on-loss w", "connect -C ",
    "connect --tls-transport r", "info --tls-ca /et", "connect /run/", "up --table /e", "disconnect --if", "frob ",
    "--debug in", "info db1 -", "check --connect-timeout ", "connect --on-loss 'wa", "connect --backend 'net",
]  # fmt: skip

_LISTING = wire.greeting() + wire.listed(b"root", b"of all") + wire.ack(wire.LIST) + wire.sized(wire.INFO)
_LISTING += wire.ack(wire.INFO)
_INFO = wire.greeting() + wire.sized(wire.INFO) + wire.blocks(wire.INFO, 512, 4096, 65536) + wire.ack(wire.INFO)
_EMPTY = wire.sized(wire.GO, 0) + wire.ack(wire.GO)
_SAID_TO_BE_EMPTY = wire.greeting() + wire.sized(wire.INFO, 0) + wire.ack(wire.INFO) + _EMPTY
_UNKNOWN = wire.greeting() + wire.reply(wire.INFO, wire.UNKNOWN) + wire.listed(b"root") + wire.ack(wire.LIST)
# Each answers one command.
SERVED = {
    "info TARGET": _INFO,
    "info --json TARGET": _INFO,
    "list TARGET": _LISTING,
    "list --json TARGET": _LISTING,
    "check TARGET": b"",
    "check --json TARGET": b"",
    "check -N empty TARGET": wire.greeting() + _EMPTY,
    "info -N empty TARGET": _SAID_TO_BE_EMPTY,
    "info --json -N empty TARGET": _SAID_TO_BE_EMPTY,
    "info -N x TARGET": _UNKNOWN,
    "list 'nbds+unix:///?socket=TARGET&tls-hostname=a'": b"SSH-2.0-OpenSSH",
    "info --tls-ca /nonexistent/ca.pem --tls-hostname db1 TARGET": wire.greeting() + wire.ack(wire.STARTTLS),
    "info --tls --tls-no-verify TARGET": wire.greeting() + wire.reply(wire.STARTTLS, wire.UNSUP),
}
# Command, the function that does its work, and the error that this raises.
RAISED: list[tuple[str, str, BaseException]] = [
    ("info db1", "connection.client.inspect", RuntimeError("boom")),
    ("info db1", "connection.client.inspect", KeyboardInterrupt()),
    ("info db1", "connection.client.inspect", OSError(28, "No space left on device")),
    ("connect db1", "operations.attachment.attach", KernelRefused.at("/dev/nbd0", "NBD_SET_SOCK", 16)),
    (
        "disconnect nbd0",
        "operations.detachment.detach",
        DeviceInUse("/dev/nbd0", "mounted", "umount it", ["mounted at /srv"]),
    ),
    ("status nbd0", "attached.status.status_of", NotAttached("/dev/nbd0")),
    ("status --json nbd0", "attached.status.status_of", NotAttached("/dev/nbd0")),
]


def said(line: str) -> str:
    """The command, its output, and its exit code."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    arguments = [word.encode().decode("unicode_escape") for word in shlex.split(line)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main.run(arguments)
        except SystemExit as end:
            code = end.code
    texts = [
        f"{number}> {text.replace(__version__, 'VERSION')}"
        for number, file in ((1, out), (2, err))
        for text in lines(file)
    ]
    return "\n".join([f"$ nbdattach {line}".rstrip(), *texts, f"exit {code}", ""])


def lines(file: io.TextIOWrapper) -> list[str]:
    file.seek(0)
    return file.read().splitlines()


def _completed(shell: str, line: str) -> str:
    words = ["nbdattach", *line.split(" ")]
    environment = {
        "_NBDATTACH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1),
    }
    with mock.patch.dict(os.environ, environment):
        return f"# {shell}: nbdattach {line}|\n" + said("").split("\n", 1)[1]


def _served(line: str, data: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "socket")
        with listening(says_and_hears(data, []) if data else says(b""), place):
            return said(line.replace("TARGET", str(place))).replace(str(place), "/run/nbd.socket")


def _raised(line: str, where: str, error: BaseException) -> str:
    def fails(*_: object, **__: object) -> NoReturn:
        raise error

    with mock.patch(f"nbdattach.{where}", fails):
        return said(line)


def parts() -> Iterator[str]:
    yield from map(said, NO_COMMAND)
    yield from map(said, USAGE.strip().splitlines())
    yield from map(said, ["--version", "-h", "--help", "connect -h", "help", "help list"])
    yield from (said(f"{command} --help") for command in COMMANDS)
    yield from (_served(line, data) for line, data in SERVED.items())
    yield from (_raised(*one) for one in RAISED)
    yield said("info --connect-timeout 5 /nonexistent/socket")
    yield from (_completed(shell, line) for shell in ("bash", "zsh", "fish") for line in COMPLETIONS)


def _no_such_name(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def transcript() -> str:
    # The texts must not depend on the width of the terminal, nor on how this machine finds names.
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "80", "LC_ALL": "C.UTF-8"}),
        mock.patch("socket.getaddrinfo", _no_such_name),
        mock.patch.object(stream, "_asked", {}),
    ):
        return "\n".join(parts())


if __name__ == "__main__":
    sys.stdout.write(transcript())
