# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the command that runs a function of this very package as a process, in any environment and folder.

A checkout may be used beside an installed nbdattach, so the process is given the folder of the code to run. It puts the
folder at the front of sys.path, imports the package, and removes the folder again. Python then finds our modules
through the package, and looks for no other module in that folder, where one may have the name of one of Python's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nbdattach
from nbdattach.host import programs

if TYPE_CHECKING:
    import subprocess

PACKAGE = os.path.dirname(os.path.abspath(nbdattach.__file__))
_PLACE = os.path.dirname(PACKAGE)
# Folders of the system's programs; the PATH of our caller may have others first.
SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
# Variables of our environment that a process gets which outlives us: those that programs and their libraries are found
# by, and OpenSSL's paths to the authorities that the system trusts. It must not get variables that a service manager
# set for our process, such as NOTIFY_SOCKET and LISTEN_FDS.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SECONDS = 10


def environment() -> dict[str, str]:
    """The environment for a process that outlives us."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def start_aside(
    command: list[str], descriptors: Sequence[int] = (), own_session: bool = False
) -> subprocess.Popen[bytes]:
    """Starts a process that may outlive us: it holds no folder, and no program that reads our output waits for it.

    With `own_session` a signal that our terminal sends does not reach it.
    """
    import subprocess

    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        command,
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        cwd="/",
        pass_fds=descriptors,
        start_new_session=own_session,
    )


def bare_python(module: str, function: str, *arguments: str) -> list[str]:
    """The command for a function of that module of ours: isolated (-I) and without site-packages (-S), about 9 MB."""
    boot = "import sys; sys.path.insert(0, sys.argv.pop(1)); import nbdattach; del sys.path[0]; "
    boot += f"from nbdattach.{module} import {function}; {function}(sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", boot, _PLACE, *arguments]


def python(module: str, function: str) -> list[str]:
    """The command for a function without arguments of a module that needs libraries: it gets those that we see."""
    boot = "import sys; sys.path.insert(0, sys.argv[1]); import nbdattach; sys.path[:] = sys.argv[2:]; "
    boot += f"from nbdattach.{module} import {function}; {function}()"
    return [sys.executable, "-I", "-c", boot, _PLACE, *dict.fromkeys([*_libraries(), _PLACE])]


def _libraries() -> list[str]:
    """The folders of sys.path, those of Python's own modules first, without the one that Python adds for the script."""
    places = list(sys.path)
    added = None if sys.flags.safe_path else _added_folder()
    for at, place in enumerate(places):
        # By its name: a program may have put another folder before it. Once: PYTHONPATH may name it, too.
        if place == added or (place and os.path.realpath(place) == added):
            del places[at]
            break
    found = [os.path.abspath(place) for place in places if place]
    return sorted(found, key=lambda place: not _has_modules_of_python(place))


def _added_folder() -> str:
    """That of the script, or the current one, which is "" with -c and has its full name with -m."""
    main = sys.modules["__main__"]
    script: str | None = getattr(main, "__file__", None)
    if script is None:
        return ""
    if main.__spec__ is None:
        return os.path.dirname(os.path.realpath(script))
    try:
        return os.getcwd()
    except FileNotFoundError:  # the current folder was removed
        return ""


def _has_modules_of_python(place: str) -> bool:
    return place == os.path.dirname(os.__file__) or os.path.basename(place) == "lib-dynload"


def own_package() -> str:
    """As `package_of`, of this very process."""
    return os.path.realpath(PACKAGE)


def package_of(program: str) -> str | None:
    """The folder of the nbdattach that this Python script runs, None if we cannot find it out."""
    tell = "import nbdattach, os; print(os.path.realpath(os.path.dirname(nbdattach.__file__)))"
    try:
        with open(program, errors="replace") as script:
            first = script.readline(4096)
        if not first.startswith("#!"):
            return None
        command = [*first[2:].split(), "-I", "-c", tell]
        return programs.run(*command, seconds=_SECONDS, cwd="/").stdout.strip() or None
    except OSError:
        return None
