# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of options in man/nbdattach-migrating.7, as mdoc. To write them into the page anew:

.venv/bin/python tests/unit/house/migrating.py
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from nbdattach.cli import migration
from nbdattach.cli.migration import Other, Program

PAGE = Path(__file__).resolve().parents[3] / "man" / "nbdattach-migrating.7"
_WIDTH = 80


def page(text: str) -> str:
    """The page with the table of each program in its place."""
    for program in migration.PROGRAMS:
        start = f".Sh FROM {program.name.upper()}\n"
        before, section = text.split(start)
        head, found, rest = section.partition(".Ss Options\n")
        assert found, f"{program.name} has no place for its table"
        after = rest[rest.index(".Sh ") :]
        text = "".join((before, start, head, found, "\n".join(table(program)), "\n", after))
    return text


def table(program: Program) -> Iterator[str]:
    yield ".Bl -tag -width Ds"
    for other in program.options:
        yield f".It Li {' , '.join(named(other))}"
        yield from _replacement(other)
        yield from _prose(other.note)
    yield ".El"


def named(other: Other) -> list[str]:
    """Each name with what it takes: -b N, --cache=MODE."""
    joint = {True: "=", False: " "}
    return [f"{name}{other.value and joint[name.startswith('--')]}{other.value}" for name in other.names.split()]


def _replacement(other: Other) -> Iterator[str]:
    more = " ." if other.note or other.why else ""
    if other.needed:
        yield from _prose(f"Nothing that is the same: {other.why}.")
    elif other.kind == "option":
        yield f".Li {other.ours}{more}"
        if other.why:
            yield from _prose(f"For an image, nothing: {other.why}.")
    elif other.kind == "command":
        yield f".Li {'' if other.ours.startswith('-') else 'nbdattach '}{other.ours}{more}"
    elif other.kind == "target":
        yield from _prose(f"It is part of TARGET. For an image, nothing: {other.why}.")
    elif other.kind == "in brackets":
        yield "Write the command of the server in brackets:"
        yield ".Bd -literal"
        yield f"nbdattach connect [ qemu-nbd -t -e 0 {named(other)[0]} disk.img ]"
        yield ".Ed"
    else:
        yield from _prose(f"Nothing: {other.why}.")


def _prose(text: str) -> Iterator[str]:
    """Sentences on lines of their own; words in backquotes and references in their macros."""
    for sentence in re.findall(r"\S.*?[.](?= [A-Z]|$)", text):
        parts = re.split(r"(`[^`]+`[,.;]*|\S+\(\d\)[,.;]*)", sentence)
        for part in filter(None, (part.strip() for part in parts)):
            marked = re.fullmatch(r"`(.+)`([,.;]*)", part)
            reference = re.fullmatch(r"(\S+)\((\d)\)([,.;]*)", part)
            if marked:
                yield f".Li {marked[1]} {marked[2]}".rstrip()
            elif reference:
                yield f".Xr {reference[1]} {reference[2]} {reference[3]}".rstrip()
            else:
                yield from textwrap.wrap(part, _WIDTH, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
