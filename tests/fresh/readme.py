# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of README.md, as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
README = TREE / "README.md"
CONTRIBUTING = TREE / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Way:
    """One way to install: a heading below "Install" with blocks of commands, the last of which removes it all."""

    install: str
    remove: str


def way(heading: str) -> Way:
    (text,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)^##", README.read_text(), re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    *install, remove = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
    assert install, heading
    return Way("".join(install), remove)


def tells(command: str) -> bool:
    """Whether README names it, or a page to which it refers developers."""
    pages = [page for page in (README, CONTRIBUTING) if page.exists()]
    return any(f"`{command}`" in page.read_text() for page in pages)


def hooks() -> str:
    """The commands of CONTRIBUTING.md that install the hooks of git."""
    return "\n".join(re.findall(r"^    (\S+/p(?:ip|re-commit) install.*)$", CONTRIBUTING.read_text(), re.MULTILINE))
