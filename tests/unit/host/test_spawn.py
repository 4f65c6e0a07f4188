# SPDX-License-Identifier: GPL-2.0-or-later
"""Worker, relay and monitor have the same code as the command that starts them, even if other nbdattachs exist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nbdattach
from nbdattach.host import spawn

# The program: it prints where it and a library come from, and imports a module of Python for the first time.
PROBE = """
import os, sys
import nbdattach

def main(arguments=()):
    import colorsys
    places = [os.path.dirname(os.path.dirname(nbdattach.__file__))]
    places.append(os.path.dirname(colorsys.__file__) == os.path.dirname(os.__file__))
    if not sys.flags.no_site:
        import pyroute2
        places.append(os.path.dirname(os.path.dirname(pyroute2.__file__)))
    print(*places, *arguments)
"""
DECOY = "raise ImportError('not the one of Python')"


class Machine:
    """An interpreter with a nbdattach and a pyroute2 in its site-packages, and a checkout and a library elsewhere."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (self.site,) = (folder / "venv/lib").glob("python3.*/site-packages")
        self.python = folder / "venv/bin/python"
        self.checkout, self.libraries = folder / "check out", folder / "libraries"
        for place in (self.site, self.checkout):
            package = place / "nbdattach"
            package.mkdir(parents=True)
            for module in ("__init__.py", "host/__init__.py", "host/programs.py", "host/spawn.py"):
                (package / module).parent.mkdir(exist_ok=True)
                shutil.copy(f"{Path(nbdattach.__file__).parent}/{module}", package / module)
            (package / "probe.py").write_text(PROBE)
        (self.site / "colorsys.py").write_text(DECOY)
        for place in (self.site, self.libraries):
            (place / "pyroute2").mkdir(parents=True)
            (place / "pyroute2/__init__.py").write_text("")

    def script_runs(self, call: str, script: Path, before: str = "") -> str:
        """The same for a script that does `before` first."""
        code = f"import subprocess; from nbdattach.host import spawn; subprocess.run(spawn.{call}, check=True)"
        script.write_text(f"{before}\n{code}\n")
        done = subprocess.run([self.python, script], cwd="/", env={}, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    def runs(self, call: str, *path: Path, options: str = "", folder: Path = Path("/")) -> str:
        """The output of the command that `spawn` makes, if `path` is the PYTHONPATH of the process that makes it."""
        code = f"import subprocess; from nbdattach.host import spawn; subprocess.run(spawn.{call}, check=True)"
        command = [str(self.python), *options.split(), "-c", code]
        environment = {"PYTHONPATH": ":".join(map(str, path))}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


PYTHON, BARE = "python('probe', 'main')", "bare_python('probe', 'main', 'an', 'argument')"


def test_a_checkout_starts_its_own_code_with_the_libraries_that_it_sees(machine: Machine) -> None:
    seen = f"{machine.checkout} True {machine.libraries}"
    assert machine.runs(PYTHON, machine.checkout, machine.libraries) == seen
    assert machine.runs(PYTHON, machine.libraries, machine.checkout) == seen


def test_a_checkout_starts_its_own_code_with_libraries_that_are_installed(machine: Machine) -> None:
    assert machine.runs(PYTHON, machine.checkout) == f"{machine.checkout} True {machine.site}"


@pytest.mark.parametrize("options", ["", "-P", "-I"])
def test_what_is_installed_starts_itself_and_nothing_next_to_it(machine: Machine, options: str) -> None:
    assert machine.runs(PYTHON, options=options) == f"{machine.site} True {machine.site}"
    assert machine.runs(BARE, options=options) == f"{machine.site} True an argument"


def test_libraries_that_a_program_has_put_first_are_seen(machine: Machine, tmp_path: Path) -> None:
    """Like those that come with it, in a separate folder."""
    first = f"import sys; sys.path.insert(0, {str(machine.libraries)!r})"
    assert machine.script_runs(PYTHON, tmp_path / "program", first) == f"{machine.site} True {machine.libraries}"


@pytest.mark.parametrize(
    "before", ["", "import sys; sys.path.insert(0, '/nonexistent')", "import sys; del sys.path[0]"]
)
def test_folder_of_the_script_is_not_searched(machine: Machine, tmp_path: Path, before: str) -> None:
    (tmp_path / "pyroute2.py").write_text(DECOY)
    (tmp_path / "colorsys.py").write_text(DECOY)
    assert machine.script_runs(PYTHON, tmp_path / "program", before) == f"{machine.site} True {machine.site}"


def test_modules_of_python_come_before_those_of_any_other_folder(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text(DECOY)
    assert machine.runs(PYTHON, tmp_path) == f"{machine.site} True {machine.site}"


def test_current_folder_is_searched_if_pythonpath_names_it(machine: Machine) -> None:
    assert machine.runs(PYTHON, machine.libraries, folder=machine.libraries).endswith(f" True {machine.libraries}")


@pytest.mark.parametrize("folder", ["current", "moved"])
def test_current_folder_is_not_searched_for_libraries(machine: Machine, tmp_path: Path, folder: str) -> None:
    """`python -m` puts it first, under its full name."""
    (tmp_path / "pyroute2.py").write_text(DECOY)
    (tmp_path / "program.py").write_text(
        "import subprocess, sys; from nbdattach.host import spawn\n"
        + ("sys.path.insert(0, '/nonexistent')\n" if folder == "moved" else "")
        + f"subprocess.run(spawn.{PYTHON}, check=True)\n"
    )
    done = subprocess.run([machine.python, "-m", "program"], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.stdout.strip() == f"{machine.site} True {machine.site}", done.stderr


def test_a_bare_interpreter_runs_the_code_of_the_checkout(machine: Machine) -> None:
    decoy = machine.checkout / "colorsys.py"
    decoy.write_text(DECOY)
    assert machine.runs(BARE, machine.checkout) == f"{machine.checkout} True an argument"
    decoy.unlink()


def script(folder: Path, shebang: str) -> str:
    """As pip and Debian's tools write it."""
    (folder / "nbdattach").write_text(f"{shebang}\nfrom nbdattach.cli.main import main\n")
    return str(folder / "nbdattach")


def test_package_of_a_script_is_that_of_its_interpreter(machine: Machine, tmp_path: Path) -> None:
    assert spawn.package_of(script(tmp_path, f"#!{machine.python}")) == str(machine.site / "nbdattach")
    assert spawn.package_of(script(tmp_path, f"#! {machine.python} -s")) == str(machine.site / "nbdattach")


@pytest.mark.parametrize("shebang", ["", "#!", "#!/bin/sh", "#!/nonexistent", "\x7fELF\udcff", "#!/bin/false"])
def test_package_of_another_program_is_not_known(tmp_path: Path, shebang: str) -> None:
    (tmp_path / "nbdattach").write_bytes(f"{shebang}\n".encode("utf-8", "surrogateescape"))
    assert spawn.package_of(str(tmp_path / "nbdattach")) is None
    assert spawn.package_of(str(tmp_path / "missing")) is None


def test_process_that_outlives_us_gets_no_variable_that_is_meant_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "SSL_CERT_FILE", "NOTIFY_SOCKET", "LISTEN_FDS", "PYTHONPATH"):
        monkeypatch.setenv(name, name)
    for name in ("LD_LIBRARY_PATH", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert spawn.environment() == {"PATH": "PATH", "SSL_CERT_FILE": "SSL_CERT_FILE"}


@pytest.mark.parametrize("own_session", [False, True])
def test_process_that_is_left_behind_holds_neither_our_folder_nor_our_output(own_session: bool) -> None:
    reader, out = os.pipe()
    tell = "links = [os.readlink(f'/proc/self/{name}') for name in ('cwd', 'fd/0', 'fd/1', 'fd/2')]"
    code = f"import os; {tell}; print(*links, os.getsid(0), file=open({out}, 'w'))"
    process = spawn.start_aside([sys.executable, "-c", code], [out], own_session)
    os.close(out)
    with open(reader) as file:
        *links, session = file.read().split()
    assert (process.wait(), links) == (0, ["/", "/dev/null", "/dev/null", "/dev/null"])
    assert int(session) == (process.pid if own_session else os.getsid(0))
