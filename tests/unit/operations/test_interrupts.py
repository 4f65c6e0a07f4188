# SPDX-License-Identifier: GPL-2.0-or-later
"""An interrupt in the moment in which an attachment is complete: the command has either done it or undone it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.operations import detachment, interrupts

NBD0 = Device(0)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[int]]:
    """The handlers outside of it: SIGINT raises KeyboardInterrupt, SIGTERM is noted here."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    yield noted
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    gone: list[Device] = []
    monkeypatch.setattr(detachment, "detach", lambda device, *_: gone.append(device))
    return gone


def commit(*numbers: int) -> str:
    """An attachment that is complete, with these signals right after its commit."""
    with interrupts.delayed(NBD0):
        for number in numbers:
            os.kill(os.getpid(), number)
        return "committed"


def test_without_a_signal_it_stays_attached(detached: list[Device]) -> None:
    assert (commit(), detached) == ("committed", [])


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGTERM, signal.SIGINT]])
def test_an_interrupt_after_the_commit_detaches_before_it_ends_the_command(
    detached: list[Device], numbers: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        commit(*numbers)
    assert detached == [NBD0]


def test_a_sigterm_after_the_commit_detaches_and_then_ends_the_command(
    detached: list[Device], handlers: list[int]
) -> None:
    commit(signal.SIGTERM)
    assert (detached, handlers) == ([NBD0], [signal.SIGTERM])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_in_use_by_then_has_succeeded(
    monkeypatch: pytest.MonkeyPatch, handlers: list[int], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise DeviceInUse("/dev/nbd0", "mounted", "umount")

    monkeypatch.setattr(detachment, "detach", refuse)
    assert (commit(number), handlers) == ("committed", [])


def test_a_signal_that_is_ignored_stays_so(detached: list[Device]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert (commit(signal.SIGINT), detached) == ("committed", [])
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_an_error_after_the_commit_is_told_and_the_handlers_are_back(detached: list[Device]) -> None:
    with pytest.raises(OSError, match="full"), interrupts.delayed(NBD0):
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert detached == []


def test_in_another_thread_nothing_is_changed(detached: list[Device]) -> None:
    """As in `up`, which attaches several at once: there no handler can be set."""
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(commit()))
    with suppress(KeyboardInterrupt):
        thread.start()
        thread.join()
    assert (outcome, detached) == (["committed"], [])
