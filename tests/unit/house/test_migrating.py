# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of other programs' options: complete, true of ours, and the same in its page, in hints and in the data."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import migrating
import pytest
from test_hints import parse

from nbdattach.cli import main, migration
from nbdattach.cli.corrected import corrected
from nbdattach.cli.migration import HABITS, NBD_CLIENT, PROGRAMS, Other, Program

pytestmark = pytest.mark.once

# The tables of getopt_long in nbd-client.c (3.24 has all but -i, -T, -y and -netlink, and no newer one has -S or
# -netlink), qemu-nbd.c (7.2, and -P of 4.2, -m of 9.1, --handshake-limit of 10.0), losetup.c (2.38, and --loop-ref of
# 2.40).
KNOWN = {
    "nbd-client": """-A -cacertfile -b -block-size -B -size -c -check -C -connections -d -disconnect -F -certfile -g
        -no-optgo -h -help -H -tlshostname -i -identifier -K -keyfile -l -list -L -nonetlink -m -systemd-mark -n -nofork
        -N -name -netlink -p -persist -P -preinit -R -readonly -s -swap -S -sdp -t -timeout -T -dead-timeout -u -unix
        -V -version -x -enable-tls -y -priority""",
    "qemu-nbd": """-h --help -V --version -b --bind -p --port -k --socket -o --offset -r --read-only -A
        --allocation-depth -B --bitmap -c --connect -d --disconnect -L --list -s --snapshot -l --load-snapshot -n
        --nocache --cache --aio --discard --detect-zeroes -e --shared -m --multi-conn -f --format -t --persistent -v
        --verbose --object -x --export-name -D --description --handshake-limit --tls-creds --tls-hostname --tls-authz
        --image-opts -T --trace --fork --pid-file --selinux-label -P --partition""",
    "losetup": """-a --all -d --detach -D --detach-all -f --find -c --set-capacity -j --associated -L --nooverlap -o
        --offset --sizelimit -b --sector-size -P --partscan -r --read-only --direct-io --loop-ref --show -v --verbose -J
        --json -l --list -n --noheadings -O --output --output-all --raw -h --help -V --version""",
}
ROWS = [(program, other) for program in (*PROGRAMS, HABITS) for other in program.options]
IDS = [f"{program.name} {other.names}" for program, other in ROWS]
OURS = {name for command in main.cli.commands.values() for param in command.params for name in param.opts}


def names(program: Program) -> list[str]:
    return [name for other in program.options for name in other.names.split()]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_option_of_the_program_is_in_its_table_once(program: Program) -> None:
    assert sorted(names(program)) == sorted(KNOWN[program.name].split())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_no_option_of_the_installed_program_is_missing(program: Program) -> None:
    if not shutil.which(program.name, path="/usr/sbin:/sbin:/usr/bin:/bin"):
        pytest.skip(f"{program.name} is not installed")
    done = subprocess.run([program.name, "--help"], capture_output=True, text=True, timeout=60)
    text = done.stdout + done.stderr
    if program is NBD_CLIENT:
        told = re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text)
    else:
        heads = re.findall(r"^ +((?:-\w, )?--[\w-]+|-\w, --[\w-]+)", text, re.MULTILINE)
        told = [name for head in heads for name in head.split(", ")]
    told = [name if program is not NBD_CLIENT else f"-{name.lstrip('-')}" for name in told]
    assert len(told) > 20
    assert {*told} - {*names(program)} == set()


@pytest.mark.parametrize(("program", "other"), ROWS, ids=IDS)
def test_option_has_a_counterpart_that_exists_or_a_reason(program: Program, other: Other) -> None:
    assert other.why or other.ours
    if other.kind == "option":
        assert other.ours.split()[0] in OURS
        assert bool(re.search("[A-Z]$", other.ours)) == bool(other.value)
    elif other.kind == "command":
        parse([{"TARGET": "db1", "PATH": "/run/s"}.get(word, word) for word in other.ours.split()])
    assert other.why or not other.needed


def test_other_commands_lead_to_commands_of_ours() -> None:
    assert set(migration.COMMANDS.values()) | set(migration.WITH_ARGUMENT.values()) <= {*main.cli.commands, "--version"}
    assert not set(migration.COMMANDS) & set(main.cli.commands)


def test_page_has_the_table() -> None:
    text = migrating.PAGE.read_text()
    assert migrating.page(text) == text, "write it anew: .venv/bin/python tests/unit/house/migrating.py"


def test_example_of_a_hint_is_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = (migrating.PAGE.parent / "nbdattach.8").read_text()
    (typed, said), *more = re.findall(
        r"^\.Ql nbdattach (.+) :\n\.Bd -literal\n(nbdattach: [^.]+\.\n\(.+\)\n)", text, re.M
    )
    assert not more
    assert main.run(typed.split()) == 2
    assert capsys.readouterr().err == said


def shown() -> Iterator[tuple[str, str]]:
    """Each command line of another program in the page, and the first one of ours below it."""
    text = migrating.PAGE.read_text()
    for name in KNOWN:
        for typed, below in re.findall(rf"^\.It Li ({name} .*)\n((?:(?!\.It|\.El).*\n)*)", text, re.MULTILINE):
            (ours, *_) = re.findall(
                r"^(?:\.Li )?(nbdattach [a-z].*)$", re.sub("(?m)^nbdattach starts.*", "", below), re.MULTILINE
            )
            yield typed, ours


SHOWN = list(shown())


def test_page_shows_commands() -> None:
    assert len(SHOWN) > 15


@pytest.mark.parametrize(("typed", "ours"), SHOWN)
def test_command_in_the_page_is_the_hint_for_it(typed: str, ours: str) -> None:
    """With the program's name, and if its words are typed after ours."""
    assert corrected(shlex.split(typed), main.cli).split("; ")[0] == ours
    if typed == "losetup -c /dev/nbd0":
        ours = "nbdattach status /dev/nbd0"  # as in nbd-client
    assert corrected(shlex.split(typed)[1:], main.cli).split("; ")[0] == ours


# Options with examples of their values, and what their programs need in addition.
VALUES = {
    "ADDRESS": "db2", "BYTES": "512", "DEVICE": "/dev/nbd0", "FORMAT": "raw", "MODE": "on", "N": "4", "NUM": "4",
    "PATH": "/run/s", "PORT": "10810", "SECONDS": "30",
}  # fmt: skip
OWN_VALUES = {"-b": "512", "--cache": "none", "--discard": "unmap"}
MORE = {
    "nbd-client -B": ["-P"],
    "nbd-client -P": ["-B", "1G"],
    "nbd-client -K": ["-F", "x"],
    "losetup -n": ["-a"],
    "losetup --output-all": ["-a"],
}
OPERANDS: tuple[list[str], ...] = (
    ["db1", "/dev/nbd0"],
    ["disk.img"],
    ["db1"],
    ["/dev/nbd0"],
    ["/dev/nbd0", "disk.img"],
    [],
)


@pytest.mark.parametrize(("program", "other"), ROWS[: -len(HABITS.options)], ids=IDS[: -len(HABITS.options)])
def test_option_leads_to_a_hint_that_can_be_typed(
    program: Program, other: Other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In some command line of its program."""
    if other.ours == "--help":
        assert main.run([other.names.split()[0]]) == 0
        return
    for image in ("disk.img", "db1"):  # the second one is a file to qemu-nbd and losetup, and a host to nbd-client
        (tmp_path / image).touch()
    monkeypatch.chdir(tmp_path)
    name = other.names.split()[0]
    option = [name, OWN_VALUES.get(name) or VALUES.get(other.value, "x")] if other.value else [name]
    needed = MORE.get(f"{program.name} {name}", [])
    lines = [[program.name, *option, *needed, *operands] for operands in OPERANDS]
    hints = [hint for line in lines if (hint := corrected(line, main.cli))]
    assert hints
    for hint in hints:
        if other.needed:
            assert hint == other.why
        else:
            parse(shlex.split(hint.split("; ")[0])[1:])
