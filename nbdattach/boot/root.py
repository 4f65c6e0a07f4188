# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaches the root file system from an initramfs, as the kernel's command line asks for.

The kernel keeps the connection, the state file moves along in /run, and the monitor of the real system finds both.
That monitor is loaded from the very root that it watches over. Until it runs, an interim monitor of the initramfs does
its work; no process of the initramfs stays longer. An initramfs has only this module and the modules that it uses.
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
from nbdattach.boot import kernel_command_line, nbdtab
from nbdattach.connection import stream
from nbdattach.device import Device, parse_device
from nbdattach.errors import NbdattachError, NoConnection
from nbdattach.monitor import service
from nbdattach.operations import attachment
from nbdattach.protocol.target import Target
from nbdattach.reporter import Reporter

# The hook puts certificates and keys here; used if no option names others. The real root has them there, too.
TLS_FOLDER = "/etc/nbdattach/tls"
_KERNEL_LINE = "/proc/cmdline"
# Environment variable: the whole command line, from an initramfs that reads parts of it from elsewhere, too.
_ALL_WORDS = "NBDATTACH_CMDLINE"
# Environment variable, from an initramfs that calls us again and again: the uptime at the first call, in seconds.
_FIRST_TURN = "NBDATTACH_SINCE"
# Seconds of one such call. The initramfs has other work between them: the next network card may be the right one.
_TURN = 10.0
# The exit code that asks to be called again (EX_TEMPFAIL of sysexits.h).
_ANOTHER_TURN = 75


def main() -> None:
    """Attaches the root and prints shell assignments for the initramfs. Does nothing if the root is not on NBD."""
    try:
        root = kernel_command_line.parse(_words(), os.environ)
        if root:
            sys.stdout.write(_assignments(root, _attach_in_turns(root)))
            sys.stdout.flush()
            missing = service.stand_in()
            if missing:
                _say(f"a lost connection is not made again before the real system's monitor runs: {missing}")
    except NbdattachError as error:
        _say(f"{error}\n({nbdtab.as_option(error.hint)})")
        sys.exit(error.exit_code)


def _words() -> str:
    if _ALL_WORDS in os.environ:
        return os.environ[_ALL_WORDS]
    with open(_KERNEL_LINE) as file:
        return file.read()


def _attach_in_turns(root: kernel_command_line.Root) -> Device:
    """`attach`; if the initramfs calls us repeatedly, tries for one turn, and exits if there is time for another."""
    if _FIRST_TURN not in os.environ:
        return attach(root)
    left = root.options.retry_for - (time.monotonic() - float(os.environ[_FIRST_TURN]))
    try:
        return attach(replace(root, options=replace(root.options, retry_for=max(0.0, min(left, _TURN)))))
    except NoConnection:
        if left <= _TURN:
            raise
        sys.exit(_ANOTHER_TURN)


def attach(root: kernel_command_line.Root) -> Device:
    """Raises `NbdattachError` if nothing was attached."""
    target = _trusting(root.target)
    _say(f"attaching {target.uri}")
    done = attachment.attach(target, root.device, root.options, _Failures())
    for note in done.notes:
        _say(note)
    return parse_device(done.device)


class _Failures(Reporter):
    """Says each failed try once, because tries go on for minutes, and a user may look at the screen."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def trace(self, step: str) -> None:
        if "cannot" in step and step not in self._said:
            self._said.add(step)
            _say(step)


def _trusting(target: Target) -> Target:
    """Trusts the folder's authorities if no option names others: an initramfs has no system-wide ones."""
    named = target.tls_ca or target.tls_cert or target.tls_certificates or target.tls_psk_file
    return target if named or not target.tls or not target.tls_verify else replace(target, tls_ca=TLS_FOLDER)


def _assignments(root: kernel_command_line.Root, device: Device) -> str:
    told = {"ROOT": root.root, "ROOTFSTYPE": root.fstype, "ROOTFLAGS": root.flags and f"-o {root.flags}"}
    told["NBDATTACH_DEVICE"] = device.path
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in told.items() if value)


def _say(words: str) -> None:
    sys.stderr.write(f"nbdattach: {words}\n")
    sys.stderr.flush()


def require_all_modules() -> None:
    """Tests an initramfs from inside its tree, on a running system: imports all modules, looks up one name."""
    for module in pkgutil.walk_packages(nbdattach.__path__, "nbdattach."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    stream.warm_up()
