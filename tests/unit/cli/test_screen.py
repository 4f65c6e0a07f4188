# SPDX-License-Identifier: GPL-2.0-or-later
"""`status --watch` on its own terminal, on a /sys and a /run of our own: it shows, it ends, it leaves no trace."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend
from terminal import Terminal, terminal

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.device import Device

TARGET = "nbd://db1/disk"
WATCH = """
import sys
from nbdattach.cli import main as cli, screen
from nbdattach.attached import state
from nbdattach.kernel import sysfs
sysfs.SYS, state.RUN, screen.PERIOD = *sys.argv[1:3], 0.2
{}
sys.exit(cli.run(["status", "--watch", *sys.argv[3:]]))
"""
# xterm's terminfo: alternate screen and cursor, on and off.
SHOWN = "\x1b[?1049h"
LEFT = "\x1b[?1049l"
CURSOR = "\x1b[?12l\x1b[?25h"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    attach(made, NBD0)
    return made


def attach(host: Host, device: Device, target: str = TARGET) -> None:
    host.attach(device)
    moved(host, device)
    state.save(device, Record("mine", target, "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711))


def moved(host: Host, device: Device, read: int = 0, written: int = 0, inflight: int = 0) -> None:
    """So many sectors until now."""
    (host.sys / "block" / device.name / "stat").write_text(f"1 0 {read} 0 1 0 {written} 0 {inflight} 0 0 0 0 0 0 0 0\n")


def command(host: Host, *arguments: str, first: str = "") -> list[str]:
    return [sys.executable, "-c", WATCH.format(first), str(host.sys), str(host.run), *arguments]


@pytest.fixture
def watch(host: Host) -> Iterator[Terminal]:
    with terminal(command(host)) as made:
        made.see("/dev/nbd0", "connected", TARGET)
        yield made


def is_as_before(made: Terminal) -> bool:
    """Modes, screen and cursor; nothing was written to the user's own screen."""
    before, shown, rest = made.said.partition(SHOWN)
    _, left, after = rest.rpartition(LEFT)
    plain = re.sub(r"\x1b(\[[?0-9;]*[a-zA-Z]|[>=]|\(B)|[\r\n]", "", before + after)
    cursor = made.said.rfind(CURSOR) > made.said.rfind("\x1b[?25l") >= 0
    return (made.modes(), shown, left, plain, cursor) == (made.before, SHOWN, LEFT, "", True)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["q", "Q", "\x1b[Axq", "\x03"])
def test_q_and_ctrl_c_end_it(watch: Terminal, keys: str) -> None:
    assert watch.modes() != watch.before
    watch.type(keys)
    assert watch.end() == 0
    assert is_as_before(watch)


def test_other_keys_do_not_end_it(host: Host, watch: Terminal) -> None:
    watch.type("x\x1b[A\x04\n")
    attach(host, NBD1)
    watch.see("/dev/nbd1")
    assert watch.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_any_process_but_for_the_terminal(watch: Terminal, number: int) -> None:
    watch.process.send_signal(number)
    assert watch.end() == -number
    assert is_as_before(watch)


def test_ctrl_backslash_leaves_the_terminal_in_order(host: Host) -> None:
    with terminal(["sh", "-c", f"ulimit -c 0; exec {shlex.join(command(host))}"]) as made:
        made.see("connected")
        made.type("\x1c")
        assert made.end() == -signal.SIGQUIT
        assert is_as_before(made)


def test_a_signal_at_the_very_beginning_finds_the_terminal_in_order(host: Host) -> None:
    early = "import os, signal\nfrom nbdattach.cli import screen\nold = screen.samples\n"
    early += "screen.samples = lambda wanted: (os.kill(os.getpid(), signal.SIGTERM), old(wanted))[1]"
    with terminal(command(host, first=early)) as made:
        assert made.end() == -signal.SIGTERM
        assert is_as_before(made)


def test_it_ends_when_the_terminal_goes_away(watch: Terminal) -> None:
    watch.hang_up()
    assert watch.end() in (0, -signal.SIGHUP)


def test_it_ends_when_the_terminal_goes_away_and_nobody_says_so(host: Host) -> None:
    with terminal(command(host, first="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")) as made:
        made.see("connected")
        made.hang_up()
        assert made.end() == 0


def test_an_error_is_told_on_the_users_own_screen(host: Host) -> None:
    broken = "from nbdattach.cli import screen\ndef samples(wanted): raise ValueError('deep inside')\n"
    with terminal(command(host, first=broken + "screen.samples = samples")) as made:
        assert made.end() == 1
        _, _, after = made.said.rpartition(LEFT)
        assert "nbdattach: internal error: ValueError: deep inside\r\n" in after
        assert made.modes() == made.before


def test_an_error_later_is_told_on_the_users_own_screen(host: Host, watch: Terminal) -> None:
    moved(host, NBD0)
    (host.sys / "block/nbd0/stat").write_text("no number at all of them is one\n")
    assert watch.end() == 1
    _, _, after = watch.said.rpartition(LEFT)
    assert "nbdattach: internal error: ValueError: " in after
    assert watch.modes() == watch.before


def test_ctrl_z_gives_the_terminal_to_the_shell_and_fg_takes_it_back(host: Host) -> None:
    line = shlex.join(command(host))
    script = f"set -m; stty -a >{host.run}/first; {line}; stty -a >{host.run}/stopped; echo STOPPED; fg; echo CODE $?"
    with terminal(["sh", "-c", script]) as made:
        made.see("connected")
        made.type("\x1a")
        made.see(LEFT, "STOPPED", SHOWN, "/dev/nbd0", "connected")
        assert (host.run / "stopped").read_text() == (host.run / "first").read_text()
        assert made.modes() != made.before
        moved(host, NBD0, inflight=77)
        made.see("77")
        made.type("q")
        made.see("CODE 0")
        assert made.end() == 0
        assert made.modes() == made.before
        assert made.said.rstrip().endswith("CODE 0")


def test_sigstop_and_sigcont_draw_all_anew(watch: Terminal) -> None:
    watch.process.send_signal(signal.SIGSTOP)
    os.waitpid(watch.process.pid, os.WUNTRACED)
    watch.process.send_signal(signal.SIGCONT)
    watch.see("/dev/nbd0", "connected", TARGET)
    watch.type("q")
    assert watch.end() == 0
    assert is_as_before(watch)


# Of "1 MiB". If a rate was shown before, such as "0 B", curses does not write the last letter again.
UNIT = "i"


# -- the picture -------------------------------------------------------------------------------------------------------


def test_rates_and_requests_in_flight(host: Host, watch: Terminal) -> None:
    moved(host, NBD0, written=1 << 20, inflight=77)
    watch.see("77", UNIT, "█")


def test_ascii_where_the_locale_has_nothing_else(host: Host) -> None:
    attach(host, NBD1, "nbd://db1/ж")
    with terminal(command(host), LC_ALL="C") as made:
        made.see("connected", r"nbd://db1/\u0436")
        moved(host, NBD0, written=1 << 20)
        made.see(UNIT)
        assert made.said.isascii()


def test_the_kernels_console_has_no_bars(host: Host) -> None:
    with terminal(command(host), TERM="linux") as made:
        made.see("connected")
        moved(host, NBD0, written=1 << 20)
        made.see(UNIT)
        assert made.said.isascii()


def test_wide_characters_reach_the_terminal(host: Host) -> None:
    attach(host, NBD1, "nbd://db1/媒体")
    with terminal(command(host)) as made:
        made.see("nbd://db1/媒体")


def test_devices_appear_and_vanish(host: Host) -> None:
    with terminal(command(host)) as made:
        made.see("1 device attached")
        (host.sys / "block/nbd0/pid").unlink()
        made.see("no device")
        attach(host, NBD1)
        made.see("/dev/nbd1", TARGET)


def test_without_a_driver_it_goes_on_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = pretend(tmp_path, monkeypatch)
    with terminal(command(host)) as made:
        made.see("no device attached")
        attach(host, NBD0)
        made.see("/dev/nbd0")


def test_only_what_is_asked_for(host: Host) -> None:
    attach(host, NBD1)
    with terminal(command(host, "nbd1", "nbd7")) as made:
        made.see("1 device attached", "/dev/nbd1", "/dev/nbd7", "not attached")
        assert "nbd0" not in made.said


def test_text_of_others_never_reaches_the_terminal_raw(host: Host) -> None:
    attach(host, NBD1, "nbd://db1/\x1b]0;owned\x07\x9b2J\u202e")
    with terminal(command(host)) as made:
        made.see(r"nbd://db1/\x1b]0;owned\x07\x9b2J\u202e")
        assert "\x1b]" not in made.said
        assert not set("\x07\x9b\u202e") & set(made.said)


def test_it_follows_the_size_of_the_terminal(host: Host, watch: Terminal) -> None:
    attach(host, NBD1)
    watch.see("/dev/nbd1")
    watch.resize(3, 60)
    watch.see("2 devices attached, 1 not shown", "/dev/nbd0", "INFLIGHT")
    watch.resize(2, 12)
    watch.see("1 not shown", "/dev/nbd0")
    watch.resize(1, 1)
    watch.see("~")
    watch.resize(30, 120)
    watch.see("q: quit", "/dev/nbd0", "/dev/nbd1", TARGET)
    watch.type("q")
    assert watch.end() == 0
    assert is_as_before(watch)


@pytest.mark.parametrize(("lines", "columns"), [(24, 80), (5, 40), (1, 20), (1, 1), (0, 0)])
def test_it_begins_in_any_size_whatever_the_environment_says(host: Host, lines: int, columns: int) -> None:
    """Lines are drawn at their places, and the last cell of the terminal does not make it scroll."""
    attach(host, NBD1, "nbd://db1/" + "x" * 300)
    with terminal(command(host), lines, columns, LINES="50", COLUMNS="200") as made:
        made.see({1: "~", 20: "2 not shown"}.get(columns, "device"))
        made.type("q")
        assert made.end() == 0
        assert is_as_before(made)
        rows = {int(row) for row in re.findall(r"\x1b\[([0-9]+)(?:;[0-9]+)?[Hd]", made.said)}
        assert not lines or max(rows, default=1) <= lines


# -- not on a terminal -------------------------------------------------------------------------------------------------

LEAVE_OUT = "(leave it out, or set TERM to the terminal's type)"


@pytest.mark.parametrize("name", ["", "dumb", "unknown"])
def test_a_terminal_without_a_cursor_is_refused(host: Host, name: str) -> None:
    with terminal(command(host), TERM=name) as made:
        assert made.end() == 2
        assert made.said == f"nbdattach: --watch: the terminal cannot move its cursor\r\n{LEAVE_OUT}\r\n"


def test_a_terminal_that_nobody_knows_is_refused(host: Host) -> None:
    with terminal(command(host), TERM="frobnicate") as made:
        assert made.end() == 2
        assert made.said == f"nbdattach: --watch: terminfo does not describe this terminal\r\n{LEAVE_OUT}\r\n"


def test_a_python_without_curses_says_so(host: Host) -> None:
    with terminal(command(host, first="sys.modules['_curses'] = None")) as made:
        assert made.end() == 1
        assert made.said == (
            "nbdattach: --watch: this Python was built without curses\r\n"
            "(leave it out, or run: watch nbdattach status)\r\n"
        )


@pytest.mark.parametrize(("redirect", "what"), [("</dev/null", "input"), ("| cat", "output")])
def test_other_than_terminals_are_refused(host: Host, redirect: str, what: str) -> None:
    with terminal(["bash", "-o", "pipefail", "-c", f"{shlex.join(command(host))} {redirect}"]) as made:
        assert made.end() == 2
        assert made.said == (
            f"nbdattach: --watch: standard {what} is not a terminal\r\n(leave it out; --json is for programs)\r\n"
        )


def test_closed_standard_files_are_refused() -> None:
    done = subprocess.run(
        f"{sys.executable} -m nbdattach status --watch <&- >&-", shell=True, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2, "nbdattach: --watch: standard input is not a terminal\n(leave it out; --json is for programs)\n",
    )  # fmt: skip


def test_curses_is_loaded_only_where_it_is_used() -> None:
    script = "import sys; from nbdattach.cli import main as cli, screen; print('curses' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
