# SPDX-License-Identifier: GPL-2.0-or-later
"""What the files in /sys/block/nbdN/queue say, for the monitor, which must not wait for them.

A read there waits for each write there (queue_attr_show and queue_attr_store in block/blk-sysfs.c, q->sysfs_lock), and
since Linux 6.12 a write waits for all requests under way. If their server is away, those wait for the monitor: it would
wait for itself, in a state that no signal ends, and no device of the host would be connected again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

_T = TypeVar("_T")

# Seconds that the kernel gets for an answer, which it mostly has at once.
_PATIENCE = 0.1

_mutex = threading.Lock()
_under_way: set[str] = set()
_known: dict[str, Any] = {}


def known(name: str, ask: Callable[[], _T], otherwise: _T) -> _T:
    """What `ask` returns; what it returned last time if it now takes long, and `otherwise` if it never has.

    `name` says what is asked for. While an answer is missing, we do not ask again. If `ask` raises OSError, it has
    returned nothing.
    """
    thread = threading.Thread(target=_answer, args=[name, ask], name="unhurried", daemon=True)
    with _mutex:
        asks = name not in _under_way
        _under_way.add(name)
    if asks:
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads
            with _mutex:
                _under_way.discard(name)
        else:
            thread.join(_PATIENCE)
    with _mutex:
        return _known.get(name, otherwise)  # type: ignore[no-any-return]


def counts_requests(device: Device, otherwise: bool) -> bool:
    """As `Kernel.counts_requests`."""
    return known(f"{device.name} counts", lambda: Kernel(device).counts_requests, otherwise)


def _answer(name: str, ask: Callable[[], object]) -> None:
    try:
        found = ask()
        with _mutex:
            _known[name] = found
    except OSError:
        pass
    finally:
        with _mutex:
            _under_way.discard(name)
