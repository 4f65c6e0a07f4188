# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/lint/english.py counts words in prose only, and in each folder by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

LINT = Path(__file__).resolve().parents[2] / "lint/english.py"
PLAIN = "The server answers the client.\n"
RIDDLE = "Whoever asks gets what somebody has.\n"


def lint(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, LINT, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", RIDDLE),
        ("page.8", RIDDLE),
        ("code.py", f"# {RIDDLE}"),
        ("code.py", f'"""{RIDDLE}"""'),
        ("code.py", f'def one() -> None:\n    """{RIDDLE}    """\n'),
    ],
)
def test_word_that_hides_the_actor_is_an_error_in_prose(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_text(text)
    done = lint("-v", tmp_path)
    assert done.returncode == 1
    assert RIDDLE.strip() in done.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", f"{PLAIN}\n    {RIDDLE}"),
        ("page.8", f".Bd -literal -offset indent\n{RIDDLE}.Ed\n{PLAIN}"),
        ("code.py", f"# {PLAIN}text = {RIDDLE!r}\n"),
        ("notes.txt", RIDDLE),
    ],
)
def test_code_and_displays_are_no_prose(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert lint(tmp_path).returncode == 0


def test_much_plain_prose_in_one_folder_hides_no_riddle_in_another(tmp_path: Path) -> None:
    for name, text in (("plain", PLAIN * 1000), ("riddles", RIDDLE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.md").write_text(text)
    assert lint(tmp_path / "plain").returncode == 0
    assert lint(tmp_path / "plain", tmp_path / "riddles").returncode == 1
