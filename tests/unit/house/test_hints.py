# SPDX-License-Identifier: GPL-2.0-or-later
"""A hint that is a command line can be typed: the parser of the command line takes each one that the source makes.

It reads the texts in the source. In the place of what they are made of, it has an example of each; a new text may need
a new example. Words that follow a command as prose ("nbdattach status shows them") are told from its arguments by
their form.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nbdattach.cli import main
from nbdattach.device import parse_device
from nbdattach.errors import Malformed
from nbdattach.own_server.source import source_of
from nbdattach.protocol.target import parse_target

TREE = Path(__file__).resolve().parents[3] / "nbdattach"
# What texts are made of, by its source, and an example.
EXAMPLES = {
    "device.path": "/dev/nbd0",
    "self.device.path": "/dev/nbd0",
    "self._device.path": "/dev/nbd0",
    "found.path": "/dev/nbd0",
    "status.device": "/dev/nbd0",
    "typed(text)": "db",
    "cls.names_shown(offered)": "it offers: disk",
    "also": "",
    "typed(device)": "db1",
    "typed(target)": "/dev/nbd0",
    "typed(target.server)": "nbd://db1",
    "target.host": "nbd0",
    "typed(place.dialled.uri)": "'nbd+unix:///disk?socket=/run/s'",
    "typed(where)": "'nbds://db1?tls-hostname=a&tls-psk-file=/k'",
    "there": " 'nbd://[::1]/disk'",
    "path(error)": "nbdattach connect",
    "' '.join(devices)": "nbd0 nbd1",
    "hanging": "17",
    "pid": "17",
    "server": "db1:10809",
}
# Words behind the name of the program that are no command: there it is the subject of a sentence.
SUBJECT = {"cannot", "chooses", "has", "in", "makes", "marks", "notices", "reads", "takes", "trusts", "verifies"}
# Of other programs, in hints.
FOREIGN = {"--cap-add", "--privileged", "--network", "--pid", "--validate", "--shared"}
_COMMAND = re.compile(r"\bnbdattach (?=[a-z-])")
_OPTION = re.compile(r"(?<![\w{-])--[a-z][a-z-]*")


def texts() -> Iterator[tuple[str, str, bool]]:
    """Place, text, and whether it is a hint or part of one. Of an f-string, {its parts} are in braces."""
    for path in sorted(TREE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        hints = {id(part) for node in ast.walk(tree) for hint in _hints(node) for part in ast.walk(hint)}
        for node in ast.walk(tree):
            text = _text(node)
            text = text and text.replace("{path(error)}", EXAMPLES["path(error)"])
            if text is not None and id(node) not in documents | pieces:
                yield f"{path.relative_to(TREE)}:{node.lineno}", text, id(node) in hints  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    parts: list[str] = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            parts.append("{" + ast.unparse(part.value) + "}")
        elif isinstance(part, ast.Constant):
            parts.append(str(part.value))
    return "".join(parts)


def _hints(node: ast.AST) -> list[ast.expr]:
    """Third arguments of errors, remedies of findings, and values of variables that are hints."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        named = [one.value for one in node.keywords if one.arg in ("hint", "remedy")]
        return named + (node.args[2:3] if re.fullmatch("[A-Z][A-Za-z]+|error", name) else [])
    if isinstance(node, ast.Assign) and re.fullmatch("hint|remedy|see", ast.unparse(node.targets[0])):
        return [node.value]
    return []


def filled(text: str) -> str:
    """The text with an example of each part."""

    def example(found: re.Match[str]) -> str:
        assert found[1] in EXAMPLES, f"a part of a hint without an example in this test: {found[0]}"
        return EXAMPLES[found[1]]

    return re.sub(r"\{([^{}]+)\}", example, text)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours in the text, without the name of the program."""
    for found in _COMMAND.finditer(text):
        words: list[str] = []
        for word in shlex.split(re.split(r"[,;)?](?: |$)|`", text[found.end() :])[0]):
            if words and not _is_argument(word, words[-1]):
                break
            words.append(word)
        if words[0] not in SUBJECT:
            yield words


def _is_argument(word: str, before: str) -> bool:
    is_value = before.startswith("--") and before not in FLAGS
    return is_value or word.startswith("-") or word.isupper() or bool(re.search(r"[/:]|\d$", word))


FLAGS = {
    name
    for command in main.cli.commands.values()
    for param in command.params
    if isinstance(param, click.Option) and param.is_flag
    for name in param.opts
} | {"--help"}


def parse(words: list[str]) -> None:
    """Reads the command line as the program does, and runs nothing. Raises what the program would say."""
    with click.Context(main.cli, info_name="nbdattach") as root:
        if words[0].startswith("-"):
            assert words == ["--help"] or words == ["--version"], words
            return
        command = main.cli.commands[words[0]]
        if words[1:] == ["--help"]:
            return
        with command.make_context(words[0], words[1:], parent=root) as made:
            given = made.params
    for name in ("device", "devices"):
        for text in _listed(given.get(name)):
            parse_device("nbd0" if text == "DEVICE" or text.startswith("/dev/disk/by-nbd/") else text)
    for name in ("target", "targets"):
        for text in _listed(given.get(name)):
            assert source_of(text) or parse_target(text)


def _listed(value: object) -> list[str]:
    return [*value] if isinstance(value, tuple) else [str(value)] if value else []


COMMAND_LINES = [
    pytest.param(words, id=f"{place} {' '.join(words)}")
    for place, text, _ in texts()
    if _COMMAND.search(text)
    for words in commands(filled(text))
]
OPTIONS = sorted({(place, name) for place, text, is_hint in texts() if is_hint for name in _OPTION.findall(text)})


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_command_in_a_text_can_be_typed(words: list[str]) -> None:
    parse(words)


def test_most_hints_are_found() -> None:
    assert len(COMMAND_LINES) > 30
    assert len(OPTIONS) > 40


@pytest.mark.parametrize(
    "text",
    [
        "nbdattach frob",
        "see nbdattach info",
        "nbdattach reconnect --connect-timeout 5 /dev/nbd0",
        "nbdattach connect db1/x",
    ],
)
def test_what_cannot_be_typed_is_noticed(text: str) -> None:
    with pytest.raises((click.UsageError, KeyError, Malformed)):
        for words in commands(text):
            parse(words)


@pytest.mark.parametrize(("place", "name"), OPTIONS)
def test_an_option_in_a_hint_exists(place: str, name: str) -> None:
    ours = {name for command in main.cli.commands.values() for param in command.params for name in param.opts}
    assert name in ours | FOREIGN | {"--help", "--version"}, place
