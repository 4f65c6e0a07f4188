# SPDX-License-Identifier: GPL-2.0-or-later
"""The words that a shell can offer: through click's protocol, as the completion scripts speak it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from host import Host, pretend
from peer import listening

from nbdattach.cli import completion
from nbdattach.cli.main import cli
from nbdattach.cli.shell import speak_ours
from nbdattach.connection import client
from nbdattach.device import Device
from nbdattach.errors import NoConnection
from nbdattach.protocol.export import Listed
from nbdattach.protocol.target import Target

Ask = Callable[..., list[str]]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    made.attach(Device(0), tag="vm1")
    made.attach(Device(3), tag='$(id) "x"\n:y')
    (made.sys / "block/nbd1").mkdir()
    (made.sys / "block/nbd1/size").write_text("0\n")
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    made = tmp_path / "nbdtab"
    made.write_text("nbd7 db1 disk\nnbd8 db2 other\n")
    return made


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, host: Host) -> Ask:
    """Lines of the answer for a command line with the cursor at its end."""

    def ask(line: str, shell: str = "bash") -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        speak_ours()
        made = get_completion_class(shell)
        assert made
        return made(cli, {}, "nbdattach", "_NBDATTACH_COMPLETE").complete().splitlines()

    return ask


@pytest.mark.parametrize("command", ["disconnect", "status", "reconnect", "resize"])
def test_attached_devices_where_one_is_meant(ask: Ask, command: str) -> None:
    assert ask(f"nbdattach {command} ") == ["plain,/dev/nbd0", "plain,/dev/nbd3"]
    assert ask(f"nbdattach {command} n") == ["plain,nbd0", "plain,nbd3"]
    assert ask(f"nbdattach {command} /dev/nbd3") == ["plain,/dev/nbd3"]


def test_free_devices_for_connect(ask: Ask) -> None:
    assert ask("nbdattach connect db1 ") == ["plain,/dev/nbd1"]


def test_help_of_a_device_is_its_tag_without_what_shells_read(ask: Ask) -> None:
    said = ask("nbdattach resize ", "zsh")
    assert said[:3] == ["plain", "/dev/nbd0", "vm1"]
    assert said[3:] == ["plain", "/dev/nbd3", "  id   x   y"]


def test_tags_that_are_plain_words(ask: Ask) -> None:
    assert ask("nbdattach disconnect --tag ") == ["plain,vm1"]
    assert ask("nbdattach disconnect --if-tag=v") == ["plain,vm1"]


@pytest.mark.parametrize("command", ["up", "down"])
def test_lines_of_the_table(ask: Ask, table: Path, command: str) -> None:
    assert ask(f"nbdattach {command} --table {table} nbd") == ["plain,nbd7", "plain,nbd8"]


def test_targets_of_the_table(monkeypatch: pytest.MonkeyPatch, ask: Ask, table: Path) -> None:
    from nbdattach.boot import table as tables

    read = tables.read
    monkeypatch.setattr(tables, "read", lambda: read(str(table)))
    assert ask("nbdattach connect nbd://db2") == ["plain,nbd://db2/other"]
    assert ask("nbdattach disconnect nbd://") == ["plain,nbd://db1/disk", "plain,nbd://db2/other"]


@pytest.mark.parametrize("line", ["nbdattach connect /run/", "nbdattach info --tls-ca /et", "nbdattach up --table t"])
def test_files(ask: Ask, line: str) -> None:
    (said,) = ask(line)
    assert said.startswith("file,")


def test_words_of_options(ask: Ask) -> None:
    assert ask("nbdattach connect --on-loss w") == ["plain,wait", "plain,wait:300"]
    assert ask("nbdattach connect -C ") == ["plain,auto"]
    assert ask("nbdattach connect --backend=n") == ["plain,netlink"]
    assert ask("nbdattach li") == ["plain,list"]


def test_exports_of_the_server_that_is_named(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    asked: list[tuple[Target, float]] = []

    def exports(target: Target, timeout: float) -> list[Listed]:
        asked.append((target, timeout))
        names = ("disk", "data", "other", "", "d;id", "d'", "d\nx", "d" * 300)
        return [Listed(name, "", None) for name in names]

    monkeypatch.setattr(client, "list_exports", exports)
    assert ask("nbdattach info --tls-ca /ca.pem db1:7 -N d") == ["plain,disk", "plain,data"]
    assert ask("nbdattach connect db1 --export=o") == ["plain,other"]
    (first, seconds), (second, _) = asked
    assert (first.uri, first.tls_ca, seconds) == ("nbds://db1:7", "/ca.pem", completion.SECONDS)
    assert second.uri == "nbd://db1"


def test_a_server_that_says_nothing_is_soon_given_up(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setattr(completion, "SECONDS", 0.2)
    with listening(lambda sock: sock.recv(1)) as silent:
        assert ask(f"nbdattach info {silent.host}:{silent.port} -N ") == []


@pytest.mark.parametrize(
    "line",
    ["nbdattach info -N ", "nbdattach info db:x -N ", "nbdattach info nbd://[ -N ", "nbdattach up --table /no n"],
)
def test_nothing_is_said_where_nothing_can_be_known(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ask: Ask, line: str
) -> None:
    def refuse(target: Target, _: float) -> list[Listed]:
        raise NoConnection(target.uri, "refused", "")

    monkeypatch.setattr(client, "list_exports", refuse)
    assert ask(line) == []
    assert capfd.readouterr() == ("", "")


def test_no_more_words_than_anybody_reads(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    names = [Listed(f"d{number}", "", None) for number in range(5000)]
    monkeypatch.setattr(client, "list_exports", lambda *_: names)
    assert len(ask("nbdattach info db1 -N ")) == completion.MAX_OFFERS


def test_needs_no_root(ask: Ask, host: Host) -> None:
    host.write("nbd0.json", "{}")
    os.chmod(host.run, 0)
    if os.geteuid() == 0:  # root may read everything
        host.run.rename(host.run.with_name("away"))
        host.run.write_text("")
    assert ask("nbdattach resize /dev/nbd0") == ["plain,/dev/nbd0"]
