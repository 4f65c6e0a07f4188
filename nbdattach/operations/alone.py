# SPDX-License-Identifier: GPL-2.0-or-later
"""One command at a time: for a tag, an image, or an export that is attached for writing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from nbdattach.attached import state
from nbdattach.errors import KernelRefused


@contextmanager
def alone_with(tag: str, thing: str = "") -> Iterator[None]:
    """One command for this tag at a time, which users know as `thing`. Raises `DeviceInUse`, `KernelRefused`."""
    try:
        with state.tag_lock(tag, thing):
            yield
    except PermissionError as error:
        raise KernelRefused(state.RUN, "no permission", "attaching and detaching need root: try sudo") from error


@contextmanager
def alone_with_all(names: Iterable[str], thing: str) -> Iterator[None]:
    """One command at a time for each, taken in this order. No tag begins as these names do."""
    with ExitStack() as locks:
        for name in dict.fromkeys(names):
            locks.enter_context(alone_with(f"\0{name}", thing))
        yield
