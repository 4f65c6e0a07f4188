# SPDX-License-Identifier: GPL-2.0-or-later
"""The man page and the command line say the same: commands, options, defaults, JSON fields, exit codes, examples."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import nbdattach
from nbdattach import doctor, errors
from nbdattach.attached.status import Status
from nbdattach.boot import nbdtab
from nbdattach.cli import render
from nbdattach.cli.main import cli
from nbdattach.connection.client import Checked, Inspected
from nbdattach.protocol.export import Export

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "man" / "nbdattach.8"
PAGES = sorted((ROOT / "man").iterdir())
TABLE_PAGE = ROOT / "man" / "nbdtab.5"
UNIT_PAGE = ROOT / "man" / "nbdattach@.service.8"
PYTHON_PAGE = ROOT / "man" / "nbdattach-python.7"
README = ROOT / "README.md"
COMMON = "Options of every command"


def parts(text: str, macro: str) -> dict[str, str]:
    """The text under each heading of that macro (Sh or Ss)."""
    _, *pieces = re.split(rf"^\.{macro} (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


SECTIONS = parts(PAGE.read_text(), "Sh")
# Each command has a page of its own, but for help.
COMMAND_PAGES = {name: ROOT / "man" / f"nbdattach-{name}.8" for name in cli.commands if name != "help"}
_OF_COMMANDS = {name: parts(page.read_text(), "Sh") for name, page in COMMAND_PAGES.items()}
COMMANDS = {**parts(SECTIONS["COMMANDS"], "Ss"), **{name: text["DESCRIPTION"] for name, text in _OF_COMMANDS.items()}}
JSON = {name: text.get("JSON", "") for name, text in _OF_COMMANDS.items()}


def items(text: str) -> dict[str, str]:
    """The items of a section's lists: the argument of `.It`, and the text under it."""
    _, *pieces = re.split(r"^\.It ?(.*)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def flags(text: str) -> list[str]:
    """All options named by the macro Fl, as they are typed: `Fl r` is -r, `Fl -json` is --json."""
    lines = (line for line in text.splitlines() if line.startswith("."))
    return [f"-{word}" for line in lines for word in re.findall(r"(?<=\bFl )\S+", line)]


def described(text: str) -> set[str]:
    """The options that have an item in the text."""
    return {flag for head in items(text) for flag in flags(f".It {head}")}


def options(command: click.Command) -> dict[str, click.Option]:
    """All options of the command by each of their names, but for those that every command has."""
    found = {name: one for one in command.params if isinstance(one, click.Option) for name in one.opts}
    return {name: one for name, one in found.items() if name not in described(COMMANDS[COMMON])}


def defaults() -> Iterator[tuple[str, str, str]]:
    """Command, option, and the default that --help shows."""
    for name, command in cli.commands.items():
        for option in options(command).values():
            if option.show_default and option.default is not None:
                default = option.default
                yield name, option.opts[-1], f"{default:g}" if isinstance(default, float) else str(default)


def codes() -> set[int]:
    classes = (one for one in vars(errors).values() if isinstance(one, type))
    return {one.exit_code for one in classes if issubclass(one, errors.NbdattachError)}


def keys(document: str) -> set[str]:
    return set(json.loads(document))


FIELDS = {
    "status": {field.name for field in dataclasses.fields(Status)},
    "list": keys(render.list_json("h", [])),
    "info": keys(render.info_json("h", Inspected(Export("", 1, 1, "newstyle"), None))),
    "check": set(render.check_object("h", Checked(None, None, None))),
    "doctor": keys(render.findings_json([])),
}


def literal(page: Path) -> str:
    """The typed or printed parts of a man page, one command a line: its displays, and arguments of the macro Li."""
    text = page.read_text()
    shown = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", text, flags=re.MULTILINE)
    marked = re.findall(r"^\.Li (.*?)(?: [.,])?$", text, flags=re.MULTILINE)
    return re.sub(r"\\\n *", "", "\n".join([*shown, *marked]).replace(r"\e", "\\"))


def commands_in(text: str) -> list[list[str]]:
    """The arguments of each nbdattach that stands at the beginning of a line or of a $(...)."""
    lines = re.findall(r"^(?:[$#] )?(?:sudo )?(?:\w+=\$\()?nbdattach (.*)", text, flags=re.MULTILINE)
    return [shlex.split(line.removesuffix(")"), comments=True) for line in lines]


# Output of nbdattach begins with its name, too, but with a colon after it.
EXAMPLES = [
    *(arguments for page in PAGES for arguments in commands_in(literal(page))),
    *commands_in("\n".join(re.findall(r"^ {4}(.*)", README.read_text(), re.MULTILINE))),
]


def test_every_command_has_its_section_and_no_other_has() -> None:
    assert set(COMMANDS) == {COMMON, *cli.commands}


def test_synopsis_names_every_command() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"^\.Nm\n\.Cm (\w+)$", page.split(".Sh DESCRIPTION")[0], re.MULTILINE)) == set(cli.commands)


@pytest.mark.parametrize("name", cli.commands)
def test_options_of_a_command_are_those_in_its_section(name: str) -> None:
    assert described(COMMANDS[name]) == set(options(cli.commands[name]))


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_has_the_common_options(name: str) -> None:
    command = cli.commands[name]
    context = click.Context(command, parent=click.Context(cli, **cli.context_settings))
    has = {option for one in command.get_params(context) for option in one.opts}
    assert described(COMMANDS[COMMON]) - has == {"--version"}


def test_common_options_are_those_of_the_group() -> None:
    context = click.Context(cli, **cli.context_settings)
    assert described(COMMANDS[COMMON]) == {option for one in cli.get_params(context) for option in one.opts}


def test_every_option_named_anywhere_exists() -> None:
    known = described(COMMANDS[COMMON]) | {name for one in cli.commands.values() for name in options(one)}
    assert {flag for page in (PAGE, *COMMAND_PAGES.values()) for flag in flags(page.read_text())} == known


@pytest.mark.parametrize("name", COMMAND_PAGES)
def test_page_of_a_command_has_its_name_and_its_synopsis(name: str) -> None:
    text = COMMAND_PAGES[name].read_text()
    assert f".Dt NBDATTACH-{name.upper()} 8\n" in text
    assert f".Sh NAME\n.Nm nbdattach-{name}\n" in text
    synopsis = re.search(rf"^\.Nm\n\.Cm {name}\n((?:\.(?:Op|Ar).*\n)*)", SECTIONS["SYNOPSIS"], re.MULTILINE)
    assert synopsis and _OF_COMMANDS[name]["SYNOPSIS"] == f".Nm nbdattach\n.Cm {name}\n{synopsis[1]}"
    assert f".It Xr nbdattach-{name} 8\n" in SECTIONS["COMMANDS"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_section_that_a_page_refers_to_is_in_it(page: Path) -> None:
    text = page.read_text()
    wanted = {name.rstrip(" .,:;)") for name in re.findall(r"^\.Sx (.+)$", text, re.MULTILINE)}
    assert wanted <= {*parts(text, "Sh"), *parts(text, "Ss")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_of_ours_that_a_page_refers_to_exists_and_has_the_section(page: Path) -> None:
    text = page.read_text()
    for name, number in re.findall(r"\bXr (nbdattach\S*) (\d)", text):
        assert (ROOT / "man" / f"{name}.{number}").exists()
    for section, name, number in re.findall(r"^\.Sy (.+)\nin\n\.Xr (nbdattach\S*) (\d)", text, re.MULTILINE):
        other = (ROOT / "man" / f"{name}.{number}").read_text()
        assert section in {*parts(other, "Sh"), *parts(other, "Ss")}
    for section, name, number in re.findall(r"\b([A-Z]{3,}(?: [A-Z]+)*) in\n\.Xr (nbdattach\S*) (\d)", text):
        assert section in parts((ROOT / "man" / f"{name}.{number}").read_text(), "Sh")
    commands = re.findall(r"^\.Cm (\w+)\n(?:described )?in\n\.Xr nbdattach 8", text, re.MULTILINE)
    assert not {*commands} & {*COMMAND_PAGES}, "the command has a page of its own"


@pytest.mark.parametrize(("command", "option", "default"), list(defaults()))
def test_default_is_told(command: str, option: str, default: str) -> None:
    (text,) = (text for head, text in items(COMMANDS[command]).items() if option in flags(f".It {head}"))
    assert re.search(rf"(?:\b|\.Cm |\.Pa ){re.escape(default)}\b", text)


@pytest.mark.parametrize("command", FIELDS)
def test_json_fields_are_those_printed(command: str) -> None:
    assert {head.removeprefix("Va ") for head in items(JSON[command])} == FIELDS[command]


def test_fields_of_a_finding_are_told() -> None:
    told = set(re.findall(r"^\.Va (\w+)", JSON["doctor"], re.MULTILINE))
    assert told == {field.name for field in dataclasses.fields(doctor.Finding)}


def test_exit_codes_are_those_of_the_errors() -> None:
    assert {int(head) for head in items(SECTIONS["EXIT STATUS"])} == {0, *codes()}


@pytest.mark.parametrize("arguments", EXAMPLES, ids=shlex.join)
def test_example_is_understood(arguments: list[str]) -> None:
    name, command, rest = cli.resolve_command(click.Context(cli), arguments)
    assert command is not None
    command.make_context(name, rest)


def tables_in(text: str) -> list[str]:
    """The lines of each table that is shown: under its head, or as cat prints it."""
    heads = r"(?:# DEVICE .*|(?:#|.*\$) cat /etc/nbdtab)"
    found: list[str] = re.findall(rf"^ *{heads}\n((?: *nbd\d .*\n)+)", text, flags=re.MULTILINE)
    return found


@pytest.mark.parametrize(
    ("page", "tables"), [(TABLE_PAGE, 1), (UNIT_PAGE, 2), (README, 1)], ids=["nbdtab", "unit", "README"]
)
def test_example_of_a_table_has_no_mistake(page: Path, tables: int) -> None:
    shown = tables_in(page.read_text())
    assert len(shown) == tables
    for table in shown:
        parsed = nbdtab.parse(table, "nbdtab")
        assert parsed.mistakes == ()
        assert parsed.entries


def test_options_of_a_table_are_those_in_its_page() -> None:
    text = parts(TABLE_PAGE.read_text(), "Sh")["OPTIONS"]
    theirs, ours = text.split("nbdattach connect")
    heads = " ".join(items(theirs))
    assert {*re.findall(r"Cm (\S+)", heads)} == {*nbdtab.NAMES_OF_NBD_CLIENT, "_"}
    named = [re.split(r" , ", line.removeprefix(".Cm ")) for line in ours.splitlines() if line.startswith(".Cm ")]
    assert {name for names in named for name in names} == nbdtab.NAMES_OF_CONNECT


def test_example_of_a_mistake_is_what_is_said() -> None:
    page = parts(TABLE_PAGE.read_text(), "Sh")
    (table,) = tables_in(page["EXAMPLES OF USE"])
    (mistake,) = nbdtab.parse(f"#\n{table.replace('bs=4096', 'bs=8k')}", "/etc/nbdtab").mistakes
    assert f"nbdattach: {mistake.error}\n({mistake.error.hint})\n" in page["MISTAKES"]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 50


def test_page_of_the_python_package_names_all_that_it_offers() -> None:
    """Functions with their parentheses, classes by an item or in the text: each in the macro Li."""
    named = re.findall(r"^\.(?:It )?Li (?:nbdattach\.)?(\w+)", PYTHON_PAGE.read_text(), re.MULTILINE)
    assert set(nbdattach._HOMES) <= set(named)


def test_exit_codes_in_the_page_of_the_python_package_are_those_of_the_classes() -> None:
    told = items(parts(PYTHON_PAGE.read_text(), "Sh")["EXCEPTIONS"])
    assert {head.removeprefix("Li "): int(text[0]) for head, text in told.items()} == {
        head.removeprefix("Li "): getattr(nbdattach, head.removeprefix("Li ")).exit_code for head in told
    }


def test_every_page_is_referred_to_by_the_main_one() -> None:
    referred = re.findall(r"^\.Xr (\S+) (\d)", SECTIONS["SEE ALSO"], re.MULTILINE)
    assert {page.name for page in PAGES} - {PAGE.name} <= {f"{name}.{section}" for name, section in referred}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    """But for references: which manuals are installed is a fact of the machine, not of the page."""
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "referenced manual not found" not in line] == []
