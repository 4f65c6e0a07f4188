# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: all commands, and the exit code and error message of each.

Modules that do the work are imported in the functions that use them, so that --help is fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NoReturn

import click

from nbdattach import __version__
from nbdattach.cli import failure, usage
from nbdattach.cli.failure import Failures
from nbdattach.cli.options import debug_option
from nbdattach.cli.report import say, say_error
from nbdattach.errors import Malformed, NbdattachError
from nbdattach.text import plain

_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EBADF)  # of standard output: its reader exited, or the disk is full


# The module and the function of each command.
_COMMANDS = {
    "connect": "connect.connect",
    "disconnect": "disconnect.disconnect",
    "status": "show.status",
    "reconnect": "change.reconnect",
    "resize": "change.resize",
    "monitor": "change.monitor",
    "list": "show.list_",
    "info": "show.info",
    "check": "show.check",
    "doctor": "show.doctor",
    "up": "up_down.up",
    "down": "up_down.down",
    "help": "manual.help_",
}


@click.group(cls=usage.Group, commands=usage.OnDemand(_COMMANDS))
@click.version_option(__version__, message="nbdattach %(version)s")
@debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Attach exports of NBD servers to /dev/nbdX, and detach them safely.

    TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, the path of a Unix socket, an NBD URI such as nbd://db1/disk, a disk
    image such as disk.qcow2, or a server to start, in brackets: [ nbdkit memory 1G ]. DEVICE is /dev/nbd0 or nbd0.
    """
    usage.require_command(ctx)


def main() -> NoReturn:
    """The console script: one line and one hint for each error, the documented exit code, no traceback."""
    # None of our sockets and pipes may get the number of a standard file that the caller has closed.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    code = run(sys.argv[1:])
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # an error has been said already
            file.flush()
    # Without Python's own end, which frees all objects one by one: that takes an eighth of a short command's time.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    debug, as_json = "--debug" in arguments, failure.asked_for(arguments)
    if os.environ.get("_NBDATTACH_COMPLETE", "").endswith("_complete"):
        from nbdattach.cli import shell

        shell.speak_ours()
    try:
        code = cli.main(arguments, prog_name="nbdattach", standalone_mode=False)
        sys.stdout.flush()
    except (NbdattachError, Failures) as error:
        if debug:
            import traceback

            traceback.print_exc()
        code = _say_failures(error if isinstance(error, Failures) else Failures([error]), as_json)
    except click.UsageError as error:
        code = _say_usage(error, as_json)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        code = 1
        if as_json:
            _write(failure.document_of(NbdattachError.word, code, "nbdattach", "interrupted", ""))
    except Exception as error:
        if debug:
            raise
        code = 1
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            say(f"cannot write the result: {error.strerror}")
            hint = "run it again with a writable output; nbdattach status shows the attached devices"
            click.echo(f"({hint})", err=True)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - at exit Python would flush the old one once more
            return code
        cause = f"internal error: {type(error).__name__}: {error}"
        hint = "run it again with --debug, and report the result"
        say(cause)
        click.echo(f"({hint})", err=True)
        if as_json:
            _write(failure.document_of(NbdattachError.word, code, "nbdattach", cause, hint))
    return code if isinstance(code, int) else 0


def _say_failures(failures: Failures, as_json: bool) -> int:
    """The first one last, because it decides the exit code."""
    if not failures.said:
        for error in (*failures.errors[1:], failures.errors[0]):
            say_error(error)
    if as_json:
        _write(failures.document)
    return failures.errors[0].exit_code


def _say_usage(error: click.UsageError, as_json: bool) -> int:
    where = usage.path(error)
    if isinstance(error, usage.NoCommand):
        cause, hint = "a command is missing", f"see {where} --help"
        click.echo(error.message, err=True)
    else:
        cause, hint = plain(error.message), usage.hint(error)
        click.echo(f"{where}: {cause}\n({hint})", err=True)
    if as_json:
        _write(failure.document_of(Malformed.word, error.exit_code, where, f"{where}: {cause}", hint))
    return error.exit_code


def _write(document: object) -> None:
    from nbdattach.cli import render

    with contextlib.suppress(OSError):  # the error has been said
        click.echo(render.as_json(document))
