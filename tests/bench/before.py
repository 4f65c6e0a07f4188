# SPDX-License-Identifier: GPL-2.0-or-later
"""The build before: nbdattach as it was when work on its speed began, run from a folder below build/.

Made once, and outside of the guest, which cannot write there. It has the interpreter and the libraries of the build
that it is compared with.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
COMMIT = "83957b6"
NAME = "before"
# Its console script is of that function; today's has another one.
_SCRIPT = """\
#!{python}
import sys
sys.path[0] = {tree!r}
from nbdattach.cli.main import main
main()
"""


def tree() -> Path:
    """The folder to import it from."""
    return REPO / "build/bench" / COMMIT


def program(python: str) -> str | None:
    """Its console script for that interpreter; None if this checkout has no such commit, as one of few commits."""
    folder = tree()
    script = folder / "bin/nbdattach"
    text = _SCRIPT.format(python=python, tree=str(folder))
    if script.exists() and script.read_text() == text:
        return str(script)
    packed = subprocess.run(["git", "archive", COMMIT, "nbdattach"], cwd=REPO, capture_output=True)
    if packed.returncode:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    subprocess.run([python, "-m", "compileall", "-q", str(folder / "nbdattach")], check=True)
    script.parent.mkdir(exist_ok=True)
    # Last: a build that was interrupted is made anew.
    script.write_text(text)
    script.chmod(0o755)
    return str(script)
