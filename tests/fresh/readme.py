"""The commands of README.md, as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


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
    return f"`{command}`" in README.read_text()
