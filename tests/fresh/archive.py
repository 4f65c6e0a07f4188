# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this machine gets Debian's packages, said for another release: no name of a host is in this tree."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

APT = Path("/etc/apt")
# apt's settings for the way to the archive, and for the age of the lists there.
SETTINGS = re.compile(r"^(Acquire::(?:https?::|ftp::)?(?:Proxy|Check-|CAInfo).*);$", re.MULTILINE)


def sources(release: str) -> dict[str, str]:
    """Names and contents of files of /etc/apt/sources.list.d."""
    one_line = [APT / "sources.list", *sorted(APT.glob("sources.list.d/*.list"))]
    deb822 = sorted(APT.glob("sources.list.d/*.sources"))
    files = {
        "fresh.list": "".join(f"{line}\n" for path in one_line for line in lines(text_of(path), release)),
        "fresh.sources": "\n\n".join(stanza for path in deb822 for stanza in stanzas(text_of(path), release)),
    }
    return {name: content for name, content in files.items() if content}


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def lines(text: str, release: str) -> Iterator[str]:
    """Of the one-line format: deb [OPTIONS] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        if found := re.fullmatch(r"(deb (?:\[.*\] )?\S+) (\S+) (.*)", line.strip()):
            for suite in suites(found[2].split(), release):
                yield f"{found[1]} {suite} {found[3]}"


def stanzas(text: str, release: str) -> Iterator[str]:
    """Of the format of deb822."""
    for stanza in re.split(r"\n\s*\n", text):
        fields = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        for at, line in enumerate(fields):
            if line.startswith("Suites:") and (found := suites(line.split()[1:], release)):
                yield "\n".join([*fields[:at], f"Suites: {' '.join(found)}", *fields[at + 1 :]])


def suites(here: list[str], release: str) -> list[str]:
    """The same suites of that release. Those of other archives than Debian's have other names, and are left out."""
    mine = platform.freedesktop_os_release()["VERSION_CODENAME"]
    found = [name.replace(mine, release, 1) for name in here if re.fullmatch(rf"{mine}(-security|-updates)?", name)]
    return [name for name in found if release != "sid" or name == release]


def settings() -> str:
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(f"{line};\n" for line in SETTINGS.findall(said))
