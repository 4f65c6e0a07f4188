# SPDX-License-Identifier: GPL-2.0-or-later
"""`--help` of a command with many options has them in groups, and each once."""

from __future__ import annotations

import re

import pytest

from nbdattach.cli import groups, main


def headings(text: str) -> list[str]:
    return re.findall(r"^(\S.*):$", text, re.MULTILINE)


def test_connect_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["connect", "--help"]) == 0
    text = capsys.readouterr().out
    assert headings(text) == ["Options", *groups._GROUPS]
    shown = re.findall(r"^  (?:-\w, )?--([a-z-]+)", text, re.MULTILINE)
    declared = {param.opts[-1].lstrip("-") for param in main.cli.commands["connect"].params if param.opts[-1][0] == "-"}
    assert sorted(shown) == sorted({*declared, "help"})
    assert {name for names in groups._GROUPS.values() for name in names} <= declared


@pytest.mark.parametrize("command", sorted(set(main.cli.commands) - {"connect"}))
def test_a_command_with_few_options_has_none(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main.run([command, "--help"]) == 0
    assert headings(capsys.readouterr().out) == ["Options"]
