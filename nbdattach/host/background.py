# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process of ours leaves the command that started it, so that it can outlive that command and its terminal.

The worker imports this module, so it imports nothing but `os`.
"""

from __future__ import annotations

import os


def leave_parent() -> None:
    """Goes on in a child with a session of its own, while the process that was started ends.

    So init reaps us, and not the command, and the command's terminal sends us no signals.
    """
    if os.fork():
        os._exit(0)
    os.setsid()


def leave_terminal() -> None:
    """Puts /dev/null over standard input, output and error: a program that reads them then sees their end."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if null > 2:  # else one of the three was closed before
        os.close(null)
