# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about a server that nbdattach has started for one device, which `status` shows and the state file keeps."""

from __future__ import annotations

from nbdattach.immutable import immutable


@immutable
class Image:
    """A disk image. `format` is QEMU's name; `backing` are the images below it, the nearest first.

    `identity` tells the file from others, whatever names it has; `below` are those of `backing`. With `snapshot`, all
    writes go to a file that is deleted at the end. `writable`: nothing that is known forbids to write it. `offset` and
    `size` in bytes: the part that is served, None for all of it.
    """

    path: str
    format: str
    identity: str
    backing: tuple[str, ...] = ()
    snapshot: bool = False
    writable: bool = True
    offset: int | None = None
    size: int | None = None
    below: tuple[str, ...] = ()

    @property
    def identities(self) -> tuple[str, ...]:
        """Of all its files, those below it included."""
        return (self.identity, *self.below)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.backing)


@immutable
class OwnServer:
    """`name` is what the user named: the path of an image, or the command in brackets.

    `folder` has its socket and the files of the keeper (`own_server.keeper`). `unit` is the keeper's systemd unit.
    `cwd` is the folder in which the command was started.
    """

    name: str
    folder: str
    command: tuple[str, ...]
    unit: str | None = None
    image: Image | None = None
    cwd: str = "/"
