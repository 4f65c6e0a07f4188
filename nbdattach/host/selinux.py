# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether SELinux's rules apply to the nbd driver's own use of its sockets.

The driver sends from within the system call of the program that reads or writes. Kernels from 6.10 on do so for nearly
all requests (060406c61c7c, "block: add plug while submitting IO"). SELinux then checks whether that program may use the
socket, which belongs to the process that attached the device. If it may not, the connection is lost: "Send control
failed (result -13)". Since 81ccca31214e, "nbd: override creds to kernel when calling sock_{send,recv}msg()", the kernel
sends with rights of its own.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time

ENFORCE = "/sys/fs/selinux/enforce"
POLICIES = "/etc/selinux/*/policy/policy.*"
KERNEL_LOG = "/dev/kmsg"
FIXED_IN = "6.12.56, 6.17.6 or 6.18"
_ENDLESS = 1 << 24  # bytes: the largest log of a kernel; ends the read if a program keeps filling the log
# prefix "level,sequence,microseconds,flags;" (Documentation/ABI/testing/dev-kmsg)
_DENIED = re.compile(r"^\d+,\d+,(\d+),[^;]*;.*\bnbd\d+: (?:Send|Receive) (?:control|data) failed \(result -13\)", re.M)


def enforcing() -> bool:
    try:
        with open(ENFORCE) as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def may_lack_fix(release: str) -> bool:
    """By the kernel's number; distributions may have fixed older ones."""
    version = [int(part) for part in re.findall(r"\d+", release.partition("-")[0])]
    fixed = {(6, 12): [6, 12, 56], (6, 17): [6, 17, 6]}.get((version[0], version[1]), [6, 18])
    return [6, 10] <= version < fixed


def denied() -> int:
    """How often since the boot, and since the policy was changed last, a connection was lost to -13 (EACCES)."""
    # The log counts from the boot, files are dated.
    boot = time.time() - time.monotonic()
    changed = max((os.path.getmtime(name) for name in glob.glob(POLICIES)), default=0.0)
    return sum(boot + int(match[1]) / 1e6 > changed for match in _DENIED.finditer(_kernel_log()))


def _kernel_log() -> str:
    """One read is one record; EAGAIN is the end, EPIPE a record that was overwritten before we got to it."""
    text = bytearray()
    try:
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(log, "rb", buffering=0) as file:
        while len(text) < _ENDLESS:
            with contextlib.suppress(BrokenPipeError):
                record = file.read(8192)  # None at EAGAIN
                if not record:
                    break
                text += record
    return text.decode(errors="replace")
