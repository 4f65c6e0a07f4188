# SPDX-License-Identifier: GPL-2.0-or-later
"""doc/servers.md, made of the results of probes and of the remarks in setups.py. No input, no output."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from setups import BEYOND, LEFT_OUT, SETUPS, Setup

Result: TypeAlias = Mapping[str, Any]
_COLUMNS = (
    "list",
    "info",
    "check",
    "connect",
    "write",
    "flush",
    "trim",
    "zero",
    "resize",
    "second client",
    "stop",
    "kill",
    "TLS",
)
_FAMILIES = ("nbdkit", "qemu-nbd", "storage-daemon", "qemu-system", "nbd-server")
_HEAD = """\
# Servers that were tried

`tests/catalogue/run` has written this page. For each row of the tables it starts a server, from a package of the named
version, in a guest with kernel {kernel}, drives it through nbdattach, and notes the result. Do not edit the page: its
remarks are in `tests/catalogue/setups.py`. The oldest row is of {first}, the newest of {last}.

| Column | Task, and what the words mean |
|---|---|
| list, info, check | the commands of that name, before the export is attached. A number: so many exports |
| connect | `connect` with the server's URI, to /dev/nbd0 |
| write | 1 MiB is written at 2 MiB and at the end of the disk, and read back past the page cache |
| flush | fsync after a write |
| trim | blkdiscard. "frees": whether the server's file has fewer blocks afterwards |
| zero | blkdiscard -z, read back. "by writes": the server does not offer it, so the kernel writes zeroes |
| resize | the server's file grows by 8 MiB, then `resize` |
| second client | `check` while the device is attached |
| stop | SIGTERM to the server while the device is attached, then a read, then the server is started again |
| kill | the same with SIGKILL |
| TLS | `info`, `connect`, write and read with a server that requires TLS |

* "goes on": the read gets its data when the server is back.
* "waits": it gets no data in {seconds} seconds. `status` shows the reason, which the list below the table has.
* "stays for its client": the server has not ended 3 seconds after SIGTERM, so it is killed. "and listens": it still has
  its listening socket.
* "-": not offered by the server, or not tried. "r/o": the export is read-only.
* Numbers in brackets lead to the list below the table.
"""


def text(results: Sequence[Result], kernel: str, seconds: float) -> str:
    """The page of all results."""
    dates = sorted(one["date"] for one in results)
    parts = [_HEAD.format(kernel=kernel, first=dates[0], last=dates[-1], seconds=f"{seconds:g}")]
    for family in _FAMILIES:
        parts += _family(family, [one for one in results if one["setup"].startswith(f"{family}-")])
    parts.append("## Servers that are not in the tables\n\n| Server | Reason |\n|---|---|\n" + "".join(
        f"| {name} | {reason} |\n" for name, reason in LEFT_OUT.items()
    ))  # fmt: skip
    return "\n".join(parts)


def _family(family: str, results: Sequence[Result]) -> list[str]:
    notes: list[str] = []
    lines = [f"| Setup | Version | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 2) + "|"]
    setups = [setup for setup in SETUPS if setup.name.startswith(f"{family}-")]
    for setup in setups:
        rows = [(_row(one, notes), one) for one in results if one["setup"] == setup.name]
        for row, same in groupby(rows, key=lambda pair: pair[0]):
            versions = ", ".join(_short(one.get("version") or one["release"]) for _, one in same)
            lines.append(f"| {setup.name} | {versions} | {' | '.join(row)} |")
    listed = [_item(f"{number}.", note) for number, note in enumerate(notes, 1)]
    remarks = ["| Setup | Command | The server | nbdattach |", "|---|---|---|---|"]
    remarks += [_remarks(setup, [one for one in results if one["setup"] == setup.name]) for setup in setups]
    beyond = [_item("*", line) for line in BEYOND.get(family, ())]
    parts = [f"## {family}", "\n".join(lines), "\n".join(listed), "\n".join(beyond), "\n".join(remarks)]
    return ["\n\n".join(part for part in parts if part) + "\n"]


def _item(mark: str, text: str) -> str:
    """Of a list, in lines as editors allow."""
    indent = " " * (len(mark) + 1)
    return textwrap.fill(
        f"{mark} {text}", 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _row(result: Result, notes: list[str]) -> list[str]:
    if "failed" in result:
        return [_cell(f"no: the server: {result['failed']}", notes), *["" for _ in _COLUMNS[1:]]]
    return [_cell(result["row"].get(column, ""), notes) for column in _COLUMNS]


def _cell(found: str, notes: list[str]) -> str:
    """Short, with the number of a note if there is more to say."""
    if found in ("", "not offered"):
        return "-"
    if found == "read-only":
        return "r/o"
    for start in ("no: ", "waits: "):
        before, matched, cause = found.partition(start)
        if matched:
            note = plain(cause)
            if note not in notes:
                notes.append(note)
            return f"{before}{start[:-2]} ({notes.index(note) + 1})"
    return found


def plain(cause: str) -> str:
    """Without what is different each time, and nothing that Markdown takes for a mark."""
    cause = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", cause)
    cause = re.sub(r"table [0-9a-f]{8}\b", "table ID", cause)
    cause = re.sub(r"exit (\d): (nbd\S*?://\S*?): ", r"exit \1: ", cause)
    cause = re.sub(r"^nbd\S*?://\S*?: ", "", cause)
    return " ".join(cause.replace("|", "/").replace("<", "(").replace(">", ")").split())


def _short(version: str) -> str:
    """Without Debian's own part."""
    return re.split(r"[+-]", version)[0]


def _remarks(setup: Setup, results: Sequence[Result]) -> str:
    seen: dict[str, list[str]] = {}
    for result in results:
        for line in [*result["seen"], *_told(result)]:
            seen.setdefault(line, []).append(_short(result.get("version") or result["release"]))
    lines = [
        line if len(versions) == len(results) else f"{line} ({', '.join(versions)})" for line, versions in seen.items()
    ]
    command = setup.command.replace("|", "\\|")
    does = "; ".join([*lines, *([setup.does] if setup.does else [])])
    return f"| {setup.name} | `{command}` | {does or '-'} | {setup.ours or '-'} |"


def _told(result: Result) -> list[str]:
    """What the handshake shows."""
    lines = []
    if result.get("size") is not None:
        flags = set(result["flags"])
        lacks = [flag for flag in ("flush", "fua", "trim", "write_zeroes") if f"send_{flag}" not in flags]
        if lacks and "read_only" not in flags:
            lines.append(f"does not offer {', '.join(lacks)}")
        if "can_multi_conn" not in flags:
            lines.append("no multi-conn")
        if result["protocol"] != "newstyle-fixed":
            lines.append(str(result["protocol"]))
        if result["block_size"]:
            sizes = result["block_size"]
            lines.append(f"block sizes {sizes['minimum']}, {sizes['preferred']}, {sizes['maximum']}")
        if result["size"] not in (16 << 20, 24 << 20):
            lines.append(f"{result['size']} bytes")
    return lines
