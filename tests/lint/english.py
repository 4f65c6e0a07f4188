#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts words in comments and docstrings that make the reader guess who does what: so many in 1,000 words.

    tests/lint/english.py [-v] [FILE ...]

-v prints each line that has one. Without FILE: all of nbdattach/. The exit status is 1 where one is above its limit.
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
# In 1,000 words, at most.
LIMITS = {
    "who, whoever, whom, whose": (r"who|whoever|whom|whomever|whose", 0.5),
    "what, whatever": (r"what|whatever", 3.0),
    "nobody, somebody, anybody": (r"nobody|somebody|anybody", 0.3),
}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of comments and docstrings, with their numbers."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(SPDX|noqa|type:|fmt:|!)", token.string):
            yield token.start[0], token.string.split("# noqa")[0].split("# type:")[0].lstrip("# ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text_of_it = ast.get_docstring(node, clean=False) or ""
            for number, line in enumerate(text_of_it.splitlines()):
                yield node.body[0].lineno + number, line.strip()


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    files = [Path(name) for name in arguments if name != "-v"] or sorted((ROOT / "nbdattach").rglob("*.py"))
    words, found = 0, dict.fromkeys(LIMITS, 0)
    for path in files:
        for number, line in prose(path):
            words += len(re.findall(r"[A-Za-z][\w'-]*", line))
            for name, (pattern, _) in LIMITS.items():
                hits = len(re.findall(rf"\b(?:{pattern})\b", line, re.IGNORECASE))
                found[name] += hits
                if hits and verbose:
                    print(f"{path}:{number}: {line}")
    over = False
    for name, (_, limit) in LIMITS.items():
        share = 1000 * found[name] / max(1, words)
        over = over or share > limit
        print(f"{name}: {share:.1f} in 1,000 words, at most {limit:g} ({found[name]} in {words})")
    return int(over)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
