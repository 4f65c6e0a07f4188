# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGINT and SIGTERM that come when an attachment is complete, but the command has not ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nbdattach.device import Device
from nbdattach.errors import NbdattachError

# Seconds that the kernel gets to free the device.
_CLEAR_SECONDS = 5.0


@contextmanager
def delayed(device: Device) -> Iterator[None]:
    """Delays SIGINT and SIGTERM from the commit until we hold nothing any more. If one came, detaches the device."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
        if came:
            came[:] = came[:1] if _is_detached(device) else []
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _is_detached(device: Device) -> bool:
    """Detaches the device again. False if it is in use already: then connect had succeeded before the interrupt."""
    from nbdattach.operations import detachment

    try:
        detachment.detach(device, _CLEAR_SECONDS)
    except NbdattachError:
        return False
    return True
