# SPDX-License-Identifier: GPL-2.0-or-later
"""The files below an image: its backing files, its further parts, and the file of the loop device that it is.

If one of them is replaced or written by somebody else, the image has other data.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from nbdattach.errors import KernelRefused, Refused
from nbdattach.host import programs
from nbdattach.host.bare_files import identity
from nbdattach.immutable import immutable
from nbdattach.kernel import loop
from nbdattach.own_server import installed
from nbdattach.text import plain, quoted, typed

_INFO_SECONDS = 10
_JSON = "json:"


@immutable
class Below:
    """An image of the chain, the top one first. `files` are its files that exist: path and identity."""

    path: str
    format: str
    files: tuple[tuple[str, str], ...]


def chain(path: str, found: str) -> list[Below]:
    """The image and those below it. Raises `Refused` if one cannot be opened, `KernelRefused` if QEMU does not tell."""
    command = (installed.required("qemu-img", path), "info", "--force-share", "--backing-chain", "--output=json")
    try:
        done = programs.run(*command, "-f", found, path, seconds=_INFO_SECONDS)
        if done.returncode == 0:
            return [_below(one) for one in json.loads(done.stdout)]
    except TimeoutError:
        cause = f"qemu-img info has not answered within {_INFO_SECONDS} s"
        raise KernelRefused(plain(path), cause, "is one of its files on a disk or server that is away?") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelRefused(plain(path), f"qemu-img info has not told what is below it: {error}", "see dmesg") from None
    words = done.stderr.strip().rpartition("\n")[2].removeprefix("qemu-img: ")
    hint = "qemu-img check shows more"
    if "backing file" in words:
        hint = "qemu-img rebase -u corrects the name of a backing file"
    raise Refused(plain(path), f"QEMU cannot open it: {quoted(words)}", hint)


def _below(told: dict[str, Any]) -> Below:
    name = str(told["filename"])
    # QEMU looks at its content then, into which a virtual machine may have written a header.
    if "backing-filename" in told and "backing-filename-format" not in told and told.get("format") != "vmdk":
        base = str(told["backing-filename"])
        cause = f"does not say which format its backing file {plain(base)} has"
        hint = f"if it is raw: qemu-img rebase -u -F raw -b {typed(base)} {typed(name)}"
        if not (base + name).isprintable():  # as it is shown, it would name another file
            hint = "qemu-img rebase -u sets it"
        raise Refused(plain(name), cause, hint)
    own = told.get("format-specific", {}).get("data", {})
    further = [own["data-file"]] if "data-file" in own else [one["filename"] for one in own.get("extents", ())]
    paths = dict.fromkeys([*_paths(name), *(os.path.join(os.path.dirname(name), one) for one in further)])
    files = ((path, _identity(path)) for path in paths)
    return Below(name, str(told.get("format", "")), tuple((path, found) for path, found in files if found))


def _paths(name: str) -> list[str]:
    """Of an image as QEMU names it: a path, a URL, or JSON with options of its drivers."""
    return [*_filenames(json.loads(name.removeprefix(_JSON)))] if name.startswith(_JSON) else [name]


def _filenames(options: Any) -> Iterator[str]:
    if isinstance(options, dict):
        for key, value in options.items():
            if key == "filename" or key.endswith(".filename"):
                yield str(value)
            yield from _filenames(value)


def _identity(path: str) -> str:
    try:
        return identity(os.stat(path))
    except OSError:
        return ""  # no file


def of_loop(path: str) -> str:
    """The identity of the file that the image has, if it is a loop device; else empty."""
    try:
        is_device = stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return ""
    name = os.path.basename(os.path.realpath(path))
    return loop.file_of(name) if is_device and name.startswith("loop") else ""


def partitions_of(path: str) -> Iterator[str]:
    """The identities of its partitions, if it is a block device."""
    folder = f"/sys/class/block/{os.path.basename(os.path.realpath(path))}"
    for name in os.listdir(folder) if path.startswith("/dev/") and os.path.isdir(folder) else ():
        if os.path.exists(f"{folder}/{name}/partition"):
            yield _identity(f"/dev/{name}")
