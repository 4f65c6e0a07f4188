# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C while threads of a command wait for servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def killed_by_interrupt() -> Iterator[None]:
    """SIGINT kills the process, because KeyboardInterrupt does not reach threads. Nothing is left half done then.

    A process that ends by itself waits for its threads, and those for servers that do not answer.
    """
    import signal

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
