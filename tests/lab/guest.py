#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command as root in a throw-away guest, on top of this machine's own root file system, or another release's.

Knows how guests start and end. Must not know nbdattach.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import kernels
import qemu
import roots
import uml
from job import KERNELS, UML, Job, LabError, write_control

TIMED_OUT = 124  # as timeout(1)
NO_STATUS = 125

CONSOLE_TAIL = 60
PATIENCE = 5.0  # seconds for QEMU and for the wrapper of UML to obey a signal


def run(job: Job, control: Path) -> int:
    status = job.out / "status"
    status.unlink(missing_ok=True)
    console = job.out / "console.log"
    kernel = kernels.kernel_folder(job.kernel)
    write_control(job, control, kernel)
    argv = (uml if job.uml else qemu).command(job, control, kernel)
    deadline = time.monotonic() + job.timeout
    with console.open("wb") as log, started(job, argv, kernel, log.fileno()) as guest:
        in_time = attend(guest, deadline)
    if status.exists():
        return int(status.read_text())
    return explain(console, job.timeout, in_time)


@contextlib.contextmanager
def started(job: Job, argv: list[str], folder: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    guest = subprocess.Popen(
        argv,
        stdin=None if job.shell else subprocess.DEVNULL,
        stdout=None if job.shell else subprocess.PIPE,
        stderr=log,
        cwd=folder,
        start_new_session=True,
    )
    try:
        with kept_terminal():
            yield guest
    finally:
        end(guest)


def end(guest: subprocess.Popen[bytes]) -> None:
    guest.terminate()
    try:
        guest.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        guest.kill()
        guest.wait()


@contextlib.contextmanager
def kept_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def attend(guest: subprocess.Popen[bytes], deadline: float) -> bool:
    """Passes the guest's output on until it ends. False if the time is over."""
    try:
        if guest.stdout is not None and not copy_output(guest, guest.stdout.fileno(), deadline):
            return False
        guest.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def copy_output(guest: subprocess.Popen[bytes], source: int, deadline: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(min(left, 0.2)):
                # Helper processes of UML may hold the pipe after its end.
                if guest.poll() is not None:
                    return True
                continue
            data = os.read(source, 65536)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def explain(console: Path, timeout: float, in_time: bool) -> int:
    reason = "ended without a status" if in_time else f"did not end within {timeout:g} s"
    lines = console.read_text(errors="replace").splitlines()[-CONSOLE_TAIL:]
    print(f"lab: the guest {reason}; the end of its console:", *lines, sep="\n", file=sys.stderr)
    return NO_STATUS if in_time else TIMED_OUT


# --- The command line


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guest.py", description=__doc__)
    parser.add_argument("--kernel", choices=KERNELS, default="6.1", help="those without -qemu are user-mode Linux")
    parser.add_argument("--root", choices=roots.ROOTS, help="another release's root file system")
    parser.add_argument("--timeout", type=float, default=600, metavar="SEC")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--udev", action="store_true", help="start systemd-udevd first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="writable in the guest, with its logs")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--shell", action="store_true", help="an interactive bash")
    parser.add_argument("--boot", type=Path, metavar="DIR", help="boot systemd, with the files of DIR in the root")
    parser.add_argument("--tap", default="", metavar="NAME", help="a tap device to which the guest's vec0 leads")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND")
    options = parser.parse_args(arguments)
    if options.shell == bool(options.command):
        parser.error("either --shell or -- COMMAND")
    if options.kernel not in UML and (options.boot or options.tap or options.root):
        parser.error("--boot, --tap and --root go with user-mode Linux")
    if options.shell and (options.boot or options.tap):
        parser.error("--boot and --tap go with a COMMAND")
    return options


def make_job(options: argparse.Namespace, out: Path) -> Job:
    return Job(
        kernel=options.kernel,
        command=tuple(options.command),
        out=out,
        timeout=options.timeout,
        memory=options.memory,
        udev=options.udev,
        environment=tuple(options.env),
        root=roots.root_folder(options.root) if options.root else Path("/"),
        boot=options.boot,
        tap=options.tap,
    )


@contextlib.contextmanager
def control_folder(job: Job) -> Iterator[Path]:
    """Below the guest's root: the kernel starts its program before anything else could be mounted."""
    place = job.root / "lab" if job.foreign else None
    if place:
        place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lab-", dir=place) as folder:
        yield Path(folder)


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    options = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        out = (options.out or Path(folder)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        try:
            job = make_job(options, out)
            with control_folder(job) as control:
                return run(job, control)
        except LabError as error:
            print(f"lab: {error}", file=sys.stderr)
            return NO_STATUS


if __name__ == "__main__":
    sys.exit(main())
