# SPDX-License-Identifier: GPL-2.0-or-later
"""The terminal of `status --watch`: takes samples, shows the view, and restores the terminal.

curses draws; signals and keys are handled here. curses would exit in the middle of a signal, and it cannot tell a
terminal that went away from one where the user does not type. So all signals arrive as bytes of a pipe, which is read
between two pages.
"""

from __future__ import annotations

import contextlib
import locale
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from nbdattach import clock
from nbdattach.attached.status import status_of
from nbdattach.cli.view import Sample, View
from nbdattach.device import Device
from nbdattach.errors import Malformed, NbdattachError, NotAttached
from nbdattach.host import upgrade
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel

if TYPE_CHECKING:
    import curses

PERIOD = 1.0  # seconds from sample to sample
_KILLERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SIGNALS = (signal.SIGINT, *_KILLERS, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
_QUIT = b"qQ"


def watch(wanted: list[Device]) -> None:
    """Shows these devices, or all that are attached, until the user quits.

    SIGTERM, SIGHUP and SIGQUIT end the process as by default, after the terminal is restored.
    """
    _refuse_other_than_terminals()
    library = _curses()
    upgrade.load_all()
    with _signals() as signals, _screen(library) as window:
        killer = _Watch(library, window, signals, wanted).run()
    if killer:
        signal.signal(killer, signal.SIG_DFL)
        os.kill(os.getpid(), killer)


def samples(wanted: list[Device]) -> list[Sample]:
    """Samples of all `wanted` devices, attached or not; without any, of all attached devices."""
    found = []
    for device in wanted or sysfs.devices():
        stat = Kernel(device).stat
        try:
            found.append(Sample(device.path, status_of(device), stat))
        except NotAttached:
            if wanted:
                found.append(Sample(device.path, None, None))
    return found


class _Watch:
    """The loop of the view."""

    def __init__(self, library: ModuleType, window: curses.window, signals: int, wanted: list[Device]) -> None:
        self._curses = library
        self._window = window
        self._signals = signals
        self._wanted = wanted
        self._view = View()
        # The kernel's console has no such bars in its fonts, even if the locale is UTF-8.
        self._ascii_only = locale.nl_langinfo(locale.CODESET) != "UTF-8" or os.environ["TERM"] == "linux"

    def run(self) -> int:
        """Returns the signal that is to end the process; 0 if the user ended the view."""
        due = time.monotonic()
        while True:
            moment = time.monotonic()
            if moment >= due:
                self._view.add(moment, samples(self._wanted))
                due = due + PERIOD if due + PERIOD > moment else moment + PERIOD  # missed samples are not made up for
            self._draw()
            ready, _, _ = select.select([sys.stdin.fileno(), self._signals], [], [], max(0.0, due - time.monotonic()))
            for number in os.read(self._signals, 64) if self._signals in ready else b"":
                if number == signal.SIGINT:
                    return 0
                if number in _KILLERS:
                    return number
                if number == signal.SIGTSTP:
                    self._stop()
                elif number == signal.SIGCONT:
                    self._all_anew()
            if sys.stdin.fileno() in ready and self._ends():
                return 0

    def _ends(self) -> bool:
        """Whether the user typed q, or the terminal is gone."""
        try:
            typed = os.read(sys.stdin.fileno(), 1024)
        except OSError:
            return True
        return not typed or any(key in _QUIT for key in typed)

    def _draw(self) -> None:
        self._fit()
        height, width = self._window.getmaxyx()
        self._window.erase()
        for y, line in enumerate(self._view.page(width, height, clock.now(), self._ascii_only)):
            # If the C library thinks a character wider than we do, the last line's rest is here: clear it.
            self._window.move(y, 0)
            self._window.clrtoeol()
            with contextlib.suppress(self._curses.error):  # the cursor cannot go behind the last character
                self._window.addstr(y, 0, line)
        self._window.refresh()

    def _fit(self) -> None:
        """Asks the terminal for its size: it may have changed while we were stopped, without a signal to us."""
        size = _size()
        if size and size != self._window.getmaxyx():
            self._curses.resizeterm(*size)
            self._window.clearok(True)

    def _stop(self) -> None:
        """Gives the terminal back to the shell and stops this process until SIGCONT."""
        self._curses.endwin()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._all_anew()

    def _all_anew(self) -> None:
        """Takes the terminal back from other programs. In the background, SIGTTOU stops us again before we write."""
        with contextlib.suppress(self._curses.error):  # SIGCONT also comes when the terminal goes away
            self._curses.reset_prog_mode()
        self._window.clearok(True)


def _size() -> tuple[int, int] | None:
    """Lines and columns; None if the terminal does not tell them, such as a serial line, or is gone."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines and size.columns else None


def _refuse_other_than_terminals() -> None:
    for name in ("stdin", "stdout"):
        if not getattr(sys, name).isatty():
            what = "input" if name == "stdin" else "output"
            raise Malformed("--watch", f"standard {what} is not a terminal", "leave it out; --json is for programs")
    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise Malformed(
            "--watch", "the terminal cannot move its cursor", "leave it out, or set TERM to the terminal's type"
        )


def _curses() -> ModuleType:
    try:
        import curses
    except ImportError:
        raise NbdattachError(
            "--watch", "this Python was built without curses", "leave it out, or run: watch nbdattach status"
        ) from None
    try:
        curses.setupterm()
    except curses.error:
        raise Malformed(
            "--watch", "terminfo does not describe this terminal", "leave it out, or set TERM to the terminal's type"
        ) from None
    return curses


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor with the numbers of the signals that came. curses takes over no signal that has a handler."""
    pipe, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        yield pipe
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(old_wake)
        os.close(pipe)
        os.close(wake)


@contextlib.contextmanager
def _screen(library: ModuleType) -> Iterator[curses.window]:
    """The whole terminal, without echo and cursor, until the context ends, also by an exception."""
    if _size():  # curses would prefer these variables, which are wrong once the size changes
        os.environ.pop("LINES", None)
        os.environ.pop("COLUMNS", None)
    window = library.initscr()
    try:
        library.noecho()
        library.cbreak()
        with contextlib.suppress(library.error):  # not every terminal can hide it
            library.curs_set(0)
        yield window
    finally:
        with contextlib.suppress(library.error):
            library.endwin()
