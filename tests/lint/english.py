#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts words that make the reader guess who does what, per 1,000 words of prose.

    tests/lint/english.py [-v] [PATH ...]

Prose is the comments and docstrings of a Python file, and the text of a manual page or a Markdown page. A PATH that
is a folder means all such files below it; without PATH, all of CHECKED. -v prints each line with such a word. The exit
status is 1 if a count of one PATH is above its limit.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Without arguments, in the order in which they are checked.
CHECKED = ("nbdattach", "tests", "man", "README.md")
# In 1,000 words, at most.
LIMITS = {
    "who, whoever, whom, whose": (r"who|whoever|whom|whomever|whose", 0.5),
    "what, whatever": (r"what|whatever", 3.0),
    "nobody, somebody, anybody": (r"nobody|somebody|anybody", 0.3),
}


def prose_of_a_page(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a manual page or a Markdown page, with their numbers; without displays and code."""
    in_display = False
    for number, line in enumerate(text.splitlines(), 1):
        in_display = in_display or line.startswith(".Bd -literal")
        if not in_display and not line.startswith((r".\"", "    ")):
            yield number, line
        in_display = in_display and line != ".Ed"


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Lines of comments and docstrings, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(SPDX|noqa|type:|fmt:|!)", token.string):
            yield token.start[0], token.string.split("# noqa")[0].split("# type:")[0].lstrip("# ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text_of_it = ast.get_docstring(node, clean=False) or ""
            for number, line in enumerate(text_of_it.splitlines()):
                yield node.body[0].lineno + number, line.strip()


def prose(path: Path) -> Iterator[tuple[int, str]]:
    return prose_of_python(path.read_text()) if path.suffix == ".py" else prose_of_a_page(path.read_text())


def files_below(path: Path) -> list[Path]:
    """The file itself, or the files with prose below a folder, except folders that git ignores."""
    if path.is_file():
        return [path]
    below = (file for pattern in ("*.py", "*.md", "*.[1-9]") for file in path.rglob(pattern))
    return sorted(file for file in below if not {".venv", "__pycache__"} & set(file.parts))


def counts_of(path: Path, verbose: bool = False) -> tuple[int, dict[str, int]]:
    """The number of words in the prose below `path`, and of each kind of word that has a limit."""
    words, hits = 0, dict.fromkeys(LIMITS, 0)
    for file in files_below(path):
        for number, line in prose(file):
            words += len(re.findall(r"[A-Za-z][\w'-]*", line))
            for name, (pattern, _) in LIMITS.items():
                in_line = len(re.findall(rf"\b(?:{pattern})\b", line, re.IGNORECASE))
                hits[name] += in_line
                if in_line and verbose:
                    print(f"{file}:{number}: {line}")
    return words, hits


def main(arguments: list[str]) -> int:
    paths = [Path(name) for name in arguments if name != "-v"] or [ROOT / name for name in CHECKED]
    is_over = False
    for path in paths:
        words, hits = counts_of(path, verbose="-v" in arguments)
        for name, (_, limit) in LIMITS.items():
            share = 1000 * hits[name] / max(1, words)
            is_over = is_over or share > limit
            print(f"{path.name}: {name}: {share:.1f} in 1,000 words, at most {limit:g} ({hits[name]} in {words})")
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
