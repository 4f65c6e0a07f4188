# SPDX-License-Identifier: GPL-2.0-or-later
"""--retry-for tells at its first failure, once, what failed and how long it will be tried."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import wire
from host import pretend
from peer import closed_port, listening, says_and_hears

from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions
from nbdattach.errors import NoConnection
from nbdattach.kernel import driver
from nbdattach.operations import patience
from nbdattach.operations.connections import connected
from nbdattach.operations.patience import Patience
from nbdattach.protocol.target import Target

SERVED = wire.greeting() + wire.sized(wire.GO) + wire.ack(wire.GO)
ERROR = NoConnection("nbd://db1", "cannot connect: Connection refused", "is it running?")


def test_the_first_failure_is_told_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE", 0.001)
    said: list[str] = []
    waiting = Patience(90, said.append)
    assert waiting.goes_on_after(ERROR)
    assert waiting.goes_on_after(NoConnection("nbd://db1", "something else", "so"))
    assert said == ["nbd://db1: cannot connect: Connection refused; trying again for 90 s"]


def test_without_patience_nothing_is_told() -> None:
    said: list[str] = []
    assert not Patience(0, said.append).goes_on_after(ERROR)
    assert said == []


def test_a_server_that_comes_up_after_the_first_failure_is_reached(tmp_path: Path) -> None:
    said: list[str] = []
    target = Target(socket=str(tmp_path / "socket"))
    with contextlib.ExitStack() as stack:

        def start(line: str) -> None:
            said.append(line)
            stack.enter_context(listening(says_and_hears(SERVED, []), tmp_path / "socket"))

        with connected(target, ConnectOptions(retry_for=60), lambda _: None, start) as (reached, *_):
            assert reached == target
    assert said == [f"{target.uri}: cannot connect: No such file or directory; trying again for 60 s"]


@pytest.mark.parametrize("command", ["connect", "up"])
def test_users_read_it_on_standard_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a unit, that is the journal."""
    host = pretend(tmp_path, monkeypatch)
    (host.sys / "module/nbd").mkdir(parents=True)
    monkeypatch.setattr(driver, "ensure_loaded", lambda: None)
    port = closed_port()
    file = tmp_path / "nbdtab"
    file.write_text(f"nbd7 127.0.0.1:{port} disk backend=ioctl\n")
    arguments = ["up", "--retry-for", "1.2s", "--table", str(file), "nbd7"]
    if command == "connect":
        arguments = ["connect", "--retry-for", "1.2s", "--backend", "ioctl", "-N", "disk", f"127.0.0.1:{port}", "nbd7"]
    assert main.run(arguments) == 3
    uri, about = f"nbd://127.0.0.1:{port}/disk", "nbd7: " if command == "up" else ""
    out, err = capsys.readouterr()
    first, last, _ = err.splitlines()
    assert (out, first) == ("", f"nbdattach: {about}{uri}: cannot connect: Connection refused; trying again for 1 s")
    assert last.endswith(f"{uri}: cannot connect: Connection refused")
