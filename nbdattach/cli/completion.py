# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that complete an unfinished command line: devices, targets, tags, exports. For shells.

It needs no rights, waits for a server only for a short time, and on an error offers nothing. The shell inserts a word
unchanged, so names with characters that are special to a shell are left out, from servers and users alike.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from nbdattach.device import Device
from nbdattach.immutable import immutable
from nbdattach.kernel import sysfs
from nbdattach.protocol.target import Target

# The user waits at the keyboard.
SECONDS = 1.5
# A user does not read more, and a server may have very many.
MAX_OFFERS = 1000
_SAFE = re.compile(r"[A-Za-z0-9_./:@%+,\[\]-]{1,255}", re.ASCII)
# All characters but these could be a quotation, a list, or an end of the text in one of the shells.
_HARMLESS = re.compile(r"[^A-Za-z0-9_./@%+ -]", re.ASCII)


@immutable
class Offer:
    """A word, and its explanation if it needs one."""

    word: str
    help: str | None = None


def attached_devices(typed: str) -> list[Offer]:
    """Attached devices, with their tags."""
    return _offers(lambda: [(device, _tag(device)) for device in _attached()], typed)


def free_devices(typed: str) -> list[Offer]:
    """Devices that are not attached."""
    return _offers(lambda: [(device, None) for device in sysfs.devices() if not sysfs.Kernel(device).attached], typed)


def table_devices(typed: str, path: str) -> list[Offer]:
    """Devices that have a line in the table for boot, with their targets."""
    from nbdattach.boot import table

    return _offers(lambda: [(one.device, one.image or one.target.uri) for one in table.read(path).entries], typed)


def targets(typed: str) -> list[Offer]:
    """Targets that are attached now, and those of the table for boot."""
    from nbdattach.attached import state
    from nbdattach.boot import table

    def found() -> Iterator[str]:
        for device in _attached():
            record = state.load(device)
            if record:
                yield record.server.name if record.server else record.target
        yield from (entry.image or entry.target.uri for entry in table.read().entries)

    return _words(found, typed)


def tags(typed: str) -> list[Offer]:
    """Tags of the attached devices."""
    return _words(lambda: (tag for tag in map(_tag, _attached()) if tag), typed)


def exports(typed: str, place: Callable[[], Target]) -> list[Offer]:
    """Names of the exports of the server that the command line names already."""
    from nbdattach.connection import client

    return _words(lambda: (one.name for one in client.list_exports(place(), SECONDS)), typed)


def _attached() -> list[Device]:
    return [device for device in sysfs.devices() if sysfs.Kernel(device).attached]


def _tag(device: Device) -> str | None:
    """The tag, as far as a user without privileges may read it."""
    from nbdattach.attached import state

    record = state.load(device)
    return record.tag if record else sysfs.Kernel(device).backend


def _offers(find: Callable[[], list[tuple[Device, str | None]]], typed: str) -> list[Offer]:
    """In the form that the user has begun: /dev/nbd0, or nbd0."""
    with contextlib.suppress(Exception):
        found = [(one.name if typed.startswith("n") else one.path, about) for one, about in find()]
        return [Offer(word, _plain_help(about)) for word, about in found if word.startswith(typed)][:MAX_OFFERS]
    return []


def _words(find: Callable[[], Iterator[str]], typed: str) -> list[Offer]:
    found: dict[str, None] = {}
    with contextlib.suppress(Exception):
        for word in find():
            if word.startswith(typed) and _SAFE.fullmatch(word) and len(found) < MAX_OFFERS:
                found[word] = None
    return [Offer(word) for word in found]


def _plain_help(about: str | None) -> str | None:
    """Without the characters at which shells cut such texts."""
    return _HARMLESS.sub(" ", about)[:100] if about else None
