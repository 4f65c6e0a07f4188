# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line answers as transcript.txt says, with every version of click."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import transcript

from nbdattach import errors
from nbdattach.cli import main

HERE = Path(__file__).parent
WRITTEN = (HERE / "transcript.txt").read_text()
# A command, the lines that it prints, its exit code.
ANSWERS = re.findall(r"^\$ (nbdattach.*)\n((?:[12]>.*\n)*)exit (\d+)$", WRITTEN, flags=re.MULTILINE)
USAGE = [command for command, _, code in ANSWERS if code == "2"]


def test_every_answer_is_as_written() -> None:
    assert transcript.transcript().splitlines() == WRITTEN.splitlines()


def test_every_command_and_every_exit_code_is_in_it() -> None:
    asked = {command for command, *_ in ANSWERS}
    assert {f"nbdattach {command} --help" for command in main.cli.commands} < asked
    classes = (one for one in vars(errors).values() if isinstance(one, type))
    codes = {one.exit_code for one in classes if issubclass(one, errors.NbdattachError)}
    assert {int(code) for *_, code in ANSWERS} == {0, *codes}


@pytest.mark.parametrize("command", sorted(set(USAGE) - {"nbdattach", "nbdattach --debug"}))
def test_usage_error_is_one_line_and_one_hint(command: str) -> None:
    (said,) = {said for asked, said, _ in ANSWERS if asked == command}
    line, hint = (one for one in said.splitlines() if not ("--json" in command and one.startswith("1>")))
    assert re.fullmatch(r"2> nbdattach( [a-z]+)?: .+", line)
    assert re.fullmatch(r"2> \(.+\)", hint)


@pytest.mark.parametrize("hint", sorted(set(re.findall(r"see nbdattach (.*--help)\)$", WRITTEN, re.MULTILINE))))
def test_hint_works_as_it_is_typed(hint: str) -> None:
    assert main.run(hint.split()) == 0


def test_python_m_says_the_same_in_a_process_of_its_own() -> None:
    """Standard files are real ones there."""
    done = subprocess.run([sys.executable, "-m", "nbdattach", "connect"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nbdattach connect: Missing argument 'TARGET'.\n(see nbdattach connect --help)\n"


def test_words_of_click_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may answer in another way."""
    monkeypatch.setattr(click.UsageError, "format_message", lambda _: pytest.fail("click's words"))
    for message in (click.NoSuchOption, click.MissingParameter, click.BadParameter):
        monkeypatch.setattr(message, "format_message", lambda _: pytest.fail("click's words"))
    for command in USAGE:
        transcript.said(command.removeprefix("nbdattach").strip())
