# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/conftest.py: a test that was skipped does not count as passed, except for the reasons listed there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

CONFTEST = (Path(__file__).resolve().parents[2] / "conftest.py").read_text()
UNEXPECTED = {
    "library": 'import pytest\npytest.importorskip("no_such_library")\ndef test(): pass\n',
    "mark": 'import pytest\n@pytest.mark.skip(reason="today")\ndef test(): pass\n',
    "condition": 'import pytest\n@pytest.mark.skipif(True, reason="slow")\ndef test(): pass\n',
    "call": 'import pytest\ndef test(): pytest.skip("not here")\n',
    "fixture": 'import pytest\n@pytest.fixture\ndef one(): pytest.skip("not here")\ndef test(one): pass\n',
}
LISTED = {"listed": 'import pytest\ndef test(): pytest.skip("Python has no pre-shared keys before 3.13")\n'}


def outcomes(folder: Path, programs: dict[str, str], old_python: bool) -> dict[str, str]:
    """pytest's summary for each program, beside a conftest.py of a Python without or with pre-shared keys."""
    changed = CONFTEST.replace("sys.version_info < (3, 13)", str(old_python))
    assert changed != CONFTEST
    (folder / "conftest.py").write_text(changed)
    (folder / "pytest.ini").touch()
    for name, program in programs.items():
        (folder / f"test_{name}.py").write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    done = subprocess.run([*command, str(folder)], cwd=folder, capture_output=True, text=True, timeout=60)
    return {name: word for word, name in re.findall(r"^(FAILED|ERROR|SKIPPED) .*test_(\w+)\.py", done.stdout, re.M)}


def test_skip_without_a_listed_reason_fails(tmp_path: Path) -> None:
    """Only the call itself is of the test; the others are errors before it."""
    wanted = {name: "FAILED" if name == "call" else "ERROR" for name in UNEXPECTED}
    assert outcomes(tmp_path, UNEXPECTED, old_python=True) == wanted


def test_listed_reason_holds_only_where_it_is_true(tmp_path: Path) -> None:
    assert outcomes(tmp_path, LISTED, old_python=True) == {"listed": "SKIPPED"}
    assert outcomes(tmp_path, LISTED, old_python=False) == {"listed": "FAILED"}
