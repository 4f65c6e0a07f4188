# SPDX-License-Identifier: GPL-2.0-or-later
"""Completions in real shells, which offer the exports of a real server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from servers import nbdkit
from shells import SHELLS, shell

import nbdattach

SERVER = """
case "$1" in
list_exports) printf '%s\\n' NAMES disk-one 'disk-$(id)' other ;;
get_size) echo 1M ;;
pread) head -c "$3" /dev/zero ;;
*) exit 2 ;;
esac
"""


def command(folder: Path) -> str:
    """A PATH on which nbdattach is this code, installed or not."""
    (folder / "bin").mkdir()
    program = folder / "bin/nbdattach"
    here = Path(nbdattach.__file__).parents[1]
    program.write_text(f'#!/bin/sh\nPYTHONPATH={here} exec {sys.executable} -P -m nbdattach "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize("name", SHELLS)
def test_commands_options_values_and_exports(name: str, tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text(f"#!/bin/sh{SERVER}")
    script.chmod(0o755)
    with nbdkit("sh", str(script)) as server, shell(name, tmp_path, command(tmp_path)) as user:
        where = f"localhost:{server.place[1]}"
        user.completes("nbdattach disc", "nbdattach disconnect")
        user.completes("nbdattach connect --read-o", "nbdattach connect --read-only")
        user.completes("nbdattach connect --backend=io", "nbdattach connect --backend=ioctl")
        user.completes("nbdattach connect --on-loss wait:", "nbdattach connect --on-loss wait:300")
        # Of the two names that begin so, one is not a plain word.
        user.completes(f"nbdattach connect {where} -N disk", f"nbdattach connect {where} -N disk-one")
        user.completes("nbdattach info localhost:1 -N di", "nbdattach info localhost:1 -N di")
