# SPDX-License-Identifier: GPL-2.0-or-later
"""What could stand at a place of a command line that is being typed: devices, targets, tags, exports. For shells.

It asks for no rights, waits for nobody for long, and has nothing to say where something goes wrong. What it offers goes
into a command line as it is: a name that a shell would read otherwise is left out, be it a server's or a user's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nbdattach.device import Device
from nbdattach.kernel import sysfs
from nbdattach.protocol.target import Target

# The user waits at the keyboard.
SECONDS = 1.5
# More are not read through, and a server may have very many.
MAX_OFFERS = 1000
_SAFE = re.compile(r"[A-Za-z0-9_./:@%+,\[\]-]{1,255}", re.ASCII)
# Not a quotation, a list, or an end of the text, in any of the shells.
_HARMLESS = re.compile(r"[^A-Za-z0-9_./@%+ -]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """A word, and what it means, where that is not plain."""

    word: str
    help: str | None = None


def attached_devices(typed: str) -> list[Offer]:
    """Devices that something is attached to, with its tag."""
    return _offers(lambda: [(device, _tag(device)) for device in _attached()], typed)


def free_devices(typed: str) -> list[Offer]:
    """Devices to which something could be attached."""
    return _offers(lambda: [(device, None) for device in sysfs.devices() if not sysfs.Kernel(device).attached], typed)


def table_devices(typed: str, path: str) -> list[Offer]:
    """Devices that have a line in the table for boot, with their targets."""
    from nbdattach.boot import table

    return _offers(lambda: [(one.device, one.target.uri) for one in table.read(path).entries], typed)


def targets(typed: str) -> list[Offer]:
    """Those that are attached now, and those of the table for boot."""
    from nbdattach.attached import state
    from nbdattach.boot import table

    def found() -> Iterator[str]:
        for device in _attached():
            record = state.load(device)
            if record:
                yield record.target
        yield from (entry.target.uri for entry in table.read().entries)

    return _words(found, typed)


def tags(typed: str) -> list[Offer]:
    """Those of what is attached."""
    return _words(lambda: (tag for tag in map(_tag, _attached()) if tag), typed)


def exports(typed: str, place: Callable[[], Target]) -> list[Offer]:
    """Names that the server offers which is meant by what stands on the command line already."""
    from nbdattach.connection import client

    return _words(lambda: (one.name for one in client.list_exports(place(), SECONDS)), typed)


def _attached() -> list[Device]:
    return [device for device in sysfs.devices() if sysfs.Kernel(device).attached]


def _tag(device: Device) -> str | None:
    """What everybody may know of it."""
    from nbdattach.attached import state

    record = state.load(device)
    return record.tag if record else sysfs.Kernel(device).backend


def _offers(find: Callable[[], list[tuple[Device, str | None]]], typed: str) -> list[Offer]:
    """As the user has begun it: /dev/nbd0, or nbd0."""
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
    """Shells cut such texts at characters of their own."""
    return _HARMLESS.sub(" ", about)[:100] if about else None
