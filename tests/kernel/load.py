# SPDX-License-Identifier: GPL-2.0-or-later
"""Work on a device that knows the expected data: writers that compare after each read, and note when they ran."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

BLOCK = 4096
_HURRY = 1.0


@dataclass(frozen=True)
class Request:
    """One write or read; times on the monotonic clock."""

    began: float
    ended: float


class Load:
    """Writers with a part of the device each: write a block, read it back past all caches, compare, pause, go on.

    Within its context it runs; afterwards `errors` must be empty and `expected` is the data that the server must
    have. Pauses leave the processor to others while a test waits. After `see_it_run` there are none for a while, so
    that the next event meets requests in flight.
    """

    def __init__(self, device: str, writers: int = 4, blocks: int = 64, pause: float = 0.01) -> None:
        self.device = device
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.expected: dict[int, bytes] = {}
        self._blocks = blocks
        self._pause = pause
        self._over = threading.Event()
        self._hurry = time.monotonic() + _HURRY
        self._under_way: dict[int, float] = {}  # of each thread, since when
        self._threads = [threading.Thread(target=self._write, args=[number], daemon=True) for number in range(writers)]

    def _write(self, number: int) -> None:
        buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it
        node = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        turn = 0
        try:
            while not self._over.is_set():
                turn += 1
                place = (number * self._blocks + turn % self._blocks) * BLOCK
                content = os.urandom(16) * (BLOCK // 16)
                buffer[:] = content
                self._timed(lambda place=place: os.pwritev(node, [buffer], place))
                self.expected[place] = content
                self._timed(lambda place=place: os.preadv(node, [buffer], place))
                if buffer[:] != content:
                    self.errors.append(f"{self.device}: other data at {place}")
                if time.monotonic() > self._hurry:
                    time.sleep(self._pause)
        except (OSError, AssertionError) as error:
            self.errors.append(f"{self.device}: {error}")
        finally:
            os.close(node)

    def _timed(self, call: object) -> None:
        began = self._under_way[threading.get_ident()] = time.monotonic()
        assert callable(call)
        done = call()
        assert done == BLOCK, f"{done} bytes of {BLOCK}"
        self.requests.append(Request(began, time.monotonic()))
        del self._under_way[threading.get_ident()]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(0.1 if kind else 60)
            if kind is None:
                assert not thread.is_alive(), f"{self.device}: a request hangs"

    def see_it_run(self, count: int = 20) -> None:
        """Returns when so many more requests are done."""
        wanted, end = len(self.requests) + count, time.monotonic() + 60
        while len(self.requests) < wanted:
            assert not self.errors, self.errors
            assert time.monotonic() < end, f"{self.device}: nothing moves"
            time.sleep(0.01)
        self._hurry = time.monotonic() + _HURRY

    def caught(self, moment: float) -> list[Request]:
        """The requests that were in flight at that moment, once all of them are done."""
        end = time.monotonic() + 60
        while any(began < moment for began in list(self._under_way.values())):
            assert not self.errors, self.errors
            assert time.monotonic() < end, f"{self.device}: a request from before that hangs"
            time.sleep(0.01)
        return [one for one in list(self.requests) if one.began < moment < one.ended]

    def is_on(self, image: Path) -> bool:
        """Whether all written data is in the server's image."""
        with image.open("rb") as file:
            return all(os.pread(file.fileno(), BLOCK, place) == content for place, content in self.expected.items())


def write_direct(path: str, offset: int = 0, content: bytes = bytes(BLOCK)) -> None:
    """Past all caches; returns when the server has answered."""
    with contextlib.closing(mmap.mmap(-1, len(content))) as buffer:  # aligned, as O_DIRECT wants it
        buffer[:] = content
        node = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwritev(node, [buffer], offset)
        finally:
            os.close(node)


def seconds_for_a_new_read(device: str) -> float:
    """The seconds that a new request takes, past all caches."""
    began = time.monotonic()
    with contextlib.closing(mmap.mmap(-1, BLOCK)) as buffer:
        node = os.open(device, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(node, [buffer], 1 << 20)
        finally:
            os.close(node)
    return time.monotonic() - began
