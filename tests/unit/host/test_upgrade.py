# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of a command that stays, while an upgrade replaces its files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbdattach

IMPORTS_ALL_AGAIN = """
import importlib, shutil, sys
from pathlib import Path
from nbdattach.host import upgrade
upgrade.load_all()
there = Path(sys.argv[1])
names = [".".join(path.relative_to(there).with_suffix("").parts) for path in there.rglob("*.py")]
shutil.rmtree(there)
importlib.invalidate_caches()
print(len([importlib.import_module(name.removesuffix(".__init__")) for name in names]))
"""


def test_nothing_has_to_be_loaded_any_more(tmp_path: Path) -> None:
    source = Path(nbdattach.__file__).parent
    shutil.copytree(source, tmp_path / "nbdattach")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_ALL_AGAIN, tmp_path], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(done.stdout) == len([*source.rglob("*.py")]) > 200


LOADS_THEM = """
from nbdattach import errors
from nbdattach.host import upgrade
upgrade.load_all()
"""


def test_an_upgrade_that_came_before_ends_no_command(tmp_path: Path) -> None:
    """Its modules may need others that ours lack."""
    shutil.copytree(Path(nbdattach.__file__).parent, tmp_path / "nbdattach")
    (tmp_path / "nbdattach/newer").mkdir()
    for name in ("newer/__init__.py", "newest.py"):
        (tmp_path / "nbdattach" / name).write_text("from nbdattach import errors\nerrors.new()\n")
    subprocess.run([sys.executable, "-c", LOADS_THEM], cwd=tmp_path, check=True)
