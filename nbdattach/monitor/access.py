# SPDX-License-Identifier: GPL-2.0-or-later
"""Which thread may touch one device now: a thread of the monitor, or a command that holds the device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from nbdattach.monitor.links import Gone


class Access:
    """`changed` is notified when a command takes or gives back the device, and at the end; its lock is held briefly."""

    def __init__(self, is_there: Callable[[], bool]) -> None:
        self._is_there = is_there
        self.changed = threading.Condition()
        self.ended = False
        self._holders = 0  # commands
        self.holds = 0  # how many commands have held the device until now
        # Protects messages to the kernel, and our links; may be held as long as a burial takes.
        self._at_kernel = threading.RLock()
        self._inside = 0  # the thread that holds it

    @property
    def held(self) -> bool:
        """Whether a command holds the device."""
        return self._holders > 0

    def hold(self) -> None:
        """From its return until `give_back`, no thread of ours touches the device. May take some seconds."""
        with self.changed:
            self._holders += 1
            self.holds += 1
            self.changed.notify_all()
        with self._at_kernel:
            return

    def give_back(self) -> bool:
        """Whether no other command holds the device."""
        with self.changed:
            self._holders -= 1
            self.changed.notify_all()
            return not self._holders

    def await_it(self) -> None:
        """To be called with the lock of `changed`; returns when no command holds the device, or at the end."""
        self.changed.wait_for(lambda: not self._holders or self.ended)

    @contextlib.contextmanager
    def kernel_calls(self) -> Iterator[None]:
        """Waits while a command holds the device; raises `Gone` if the attachment is another one by now.

        May be nested.
        """
        if self._inside == threading.get_ident():
            yield
            return
        while True:
            with self.changed:
                self.await_it()
            with self._at_kernel:
                if self._holders:
                    continue
                if self.ended or not self._is_there():
                    raise Gone
                self._inside = threading.get_ident()
                try:
                    yield
                finally:
                    self._inside = 0
                return

    @contextlib.contextmanager
    def if_free(self) -> Iterator[bool]:
        """Whether no other thread and no command is at the device; if so, none will be until the end of the block."""
        if not self._at_kernel.acquire(blocking=False):
            yield False
            return
        try:
            if free := not self._holders and not self.ended:
                self._inside = threading.get_ident()  # a command that comes now waits for us, so we must not for it
            yield free
        finally:
            if free:
                self._inside = 0
            self._at_kernel.release()

    @contextlib.contextmanager
    def end(self) -> Iterator[bool]:
        """Waits until a message to the kernel that is under way has been answered. False if it had ended before."""
        with self._at_kernel, self.changed:
            first, self.ended = not self.ended, True
            self.changed.notify_all()
            yield first
