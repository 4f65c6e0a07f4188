# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaches the root file system, from an initramfs: what the kernel's command line asks for.

The kernel keeps the connection, what is known of it moves along in /run, and the monitor of the real system finds both
there. Until that one is loaded, from the very root that it is to watch over, another one stands in; no process of the
initramfs stays for longer. Only this module and what it calls are in an initramfs.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
import sys
import time
from dataclasses import replace

import nbdattach
from nbdattach.boot import kernel_command_line
from nbdattach.connection import stream
from nbdattach.device import Device
from nbdattach.errors import NbdattachError, NoConnection
from nbdattach.monitor import service
from nbdattach.operations import attachment
from nbdattach.protocol.target import Target

# Where the hook has put certificates and keys, when nothing else is said. The real root has them there, too.
TLS_FOLDER = "/etc/nbdattach/tls"
_KERNEL_LINE = "/proc/cmdline"
# In the environment, of an initramfs that reads words from elsewhere, too: all of them.
_ALL_WORDS = "NBDATTACH_CMDLINE"
# In the environment, of one that calls us again and again: the uptime, in seconds, of the first time.
_FIRST_TURN = "NBDATTACH_SINCE"
# Seconds of such a turn. Others want to do something, too: the next network card may be the right one.
_TURN = 10.0
# The exit code that asks for another turn (EX_TEMPFAIL of sysexits.h).
_ANOTHER_TURN = 75


def main() -> None:
    """Prints what the initramfs has to know, as assignments of a shell. Nothing where the root is elsewhere."""
    try:
        root = kernel_command_line.parse(_words(), os.environ)
        if root:
            sys.stdout.write(_assignments(root, _attach_in_turns(root)))
            sys.stdout.flush()
            missing = service.stand_in()
            if missing:
                _say(f"nobody connects again before the real monitor runs: {missing}")
    except NbdattachError as error:
        _say(f"{error}\n({error.hint})")
        sys.exit(error.exit_code)


def _words() -> str:
    if _ALL_WORDS in os.environ:
        return os.environ[_ALL_WORDS]
    with open(_KERNEL_LINE) as file:
        return file.read()


def _attach_in_turns(root: kernel_command_line.Root) -> Device:
    """`attach`, or its beginning: exits where another turn may do what this one did not."""
    if _FIRST_TURN not in os.environ:
        return attach(root)
    left = root.wishes.retry_for - (time.monotonic() - float(os.environ[_FIRST_TURN]))
    try:
        return attach(replace(root, wishes=replace(root.wishes, retry_for=max(0.0, min(left, _TURN)))))
    except NoConnection:
        if left <= _TURN:
            raise
        sys.exit(_ANOTHER_TURN)


def attach(root: kernel_command_line.Root) -> Device:
    """Raises `NbdattachError`; then nothing is attached."""
    target = _trusting(root.target)
    _say(f"attaching {target.uri}")
    failures: set[str] = set()

    def tell(step: str) -> None:
        if "cannot" in step and step not in failures:  # it is tried for minutes, and somebody may look at the screen
            failures.add(step)
            _say(step)

    done = attachment.attach(target, root.device, root.wishes, tell)
    for note in done.notes:
        _say(note)
    return done.device


def _trusting(target: Target) -> Target:
    """There are no authorities of a machine in an initramfs: whom to trust is named, or in the folder."""
    named = target.tls_ca or target.tls_cert or target.tls_certificates or target.tls_psk_file
    return target if named or not target.tls or not target.tls_verify else replace(target, tls_ca=TLS_FOLDER)


def _assignments(root: kernel_command_line.Root, device: Device) -> str:
    told = {"ROOT": root.root, "ROOTFSTYPE": root.fstype, "ROOTFLAGS": root.flags and f"-o {root.flags}"}
    told["NBDATTACH_DEVICE"] = device.path
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in told.items() if value)


def _say(words: str) -> None:
    sys.stderr.write(f"nbdattach: {words}\n")
    sys.stderr.flush()


def see_all_is_there() -> None:
    """For whoever made the initramfs, and in it: does there what can be done without a kernel of its own."""
    for module in pkgutil.walk_packages(nbdattach.__path__, "nbdattach."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    stream.warm_up()
