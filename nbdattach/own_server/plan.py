# SPDX-License-Identifier: GPL-2.0-or-later
"""How to serve a source. `image` makes it for an image, `start` for a command, and gives it to the keeper."""

from __future__ import annotations

from nbdattach.immutable import immutable
from nbdattach.server_of_ours import Image


@immutable
class Plan:
    """`command` serves the source over the socket that the keeper passes. `image` is None for a command in brackets.

    `files` are those of the image and below it, path and identity: a server that is started again needs the same ones.
    `prepare` is a command to run before its first start, `repair` before each later one; `delete` are files to delete
    at the end. `unwritable` says why an image is read-only without the user's word; empty if it is not. `locks` are
    files to lock that the server does not lock, and how (`image_lock`).
    """

    command: tuple[str, ...]
    read_only: bool
    image: Image | None = None
    notes: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    prepare: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    locks: tuple[tuple[str, str], ...] = ()
    unwritable: str = ""
