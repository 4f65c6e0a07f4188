"""The table for boot: reads /etc/nbdtab, attaches what it names, and detaches that again.

Decisions that matter:
* One bad line is no reason to leave the machine without its other disks: those are attached, and the error is told.
* What `up` attached is marked with the name of its table, so that `down` finds it again even where the line has been
  edited or removed meanwhile. Anything else is detached only where it is what the line says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from nbdattach import api, detachment, nbdtab, state, sysfs
from nbdattach.client import silent
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, Malformed, NbdattachError
from nbdattach.nbdtab import Entry, Table
from nbdattach.sysfs import Kernel
from nbdattach.wiretext import from_wire, plain
from nbdattach.wishes import Wishes

PATH = "/etc/nbdtab"
MAX_BYTES = 1 << 20  # a line of 200 bytes for each of 5000 devices
# At the same time; each may have several connections, and a process of its own by ioctl.
MAX_AT_ONCE = 32


def read(path: str = PATH) -> Table:
    """Raises `Malformed` where the file cannot be read."""
    name = os.path.abspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "nbdtab(5) tells what to write there"
        raise Malformed(plain(path), f"cannot be read: {error.strerror}", hint) from error
    if len(content) > MAX_BYTES:
        raise Malformed(plain(path), f"more than {MAX_BYTES} bytes", "is it a table?")
    table = nbdtab.parse(from_wire(content), path)
    return replace(table, entries=tuple(replace(one, wishes=_marked(one.wishes, name)) for one in table.entries))


def _marked(wishes: Wishes, name: str) -> Wishes:
    return replace(wishes, table=name)


def entry_of(table: Table, device: Device, path: str = PATH) -> Entry:
    """The line of that device. Raises `Malformed` where it has none, or one with a mistake."""
    for mistake in table.mistakes:
        if mistake.device == device:
            raise mistake.error
    for entry in table.entries:
        if entry.device == device:
            return entry
    raise Malformed(device.path, f"no line for it in {plain(path)}", f"write one: {device.name} HOST EXPORT")


def chosen(
    table: Table, devices: Sequence[Device] | None, path: str = PATH
) -> tuple[list[Entry], list[NbdattachError]]:
    """The lines of these devices, None for all; and why some cannot be had."""
    if devices is None:
        return [*table.entries], [mistake.error for mistake in table.mistakes]
    entries: list[Entry] = []
    failures: list[NbdattachError] = []
    for device in devices:
        try:
            entries.append(entry_of(table, device, path))
        except Malformed as error:
            failures.append(error)
    return entries, failures


def up(entries: Sequence[Entry], trace: api.Say = silent) -> Iterator[api.Attachment | NbdattachError]:
    """Attaches them all at the same time; the outcomes, as they come."""
    with ThreadPoolExecutor(max(1, min(len(entries), MAX_AT_ONCE))) as pool:
        for done in as_completed([pool.submit(_up, entry, trace) for entry in entries]):
            yield done.result()


def _up(entry: Entry, trace: api.Say) -> api.Attachment | NbdattachError:
    try:
        return api.attach(entry.target, entry.device, entry.wishes, trace)
    except NbdattachError as error:
        return error


def all_to_detach(table: Table, path: str = PATH) -> list[Device]:
    """The devices of the table from its last line to the first, after those that `up` attached of lines now gone."""
    named = [entry.device for entry in reversed(table.entries)]
    gone = [device for device in sysfs.devices() if device not in named and _is_of(state.load(device), path)]
    return gone + named


def _is_of(record: state.Record | None, path: str) -> bool:
    return record is not None and record.table == os.path.abspath(path)


def down(
    device: Device,
    path: str = PATH,
    *,
    say: Callable[[str], None] = silent,
    progress: Callable[[float], None] = lambda _: None,
    trace: api.Say = silent,
) -> str:
    """Detaches what `up` attached there, or what the table says; why there was nothing to do, else an empty text.

    Raises `DeviceInUse` where the device holds something else, or is in use.
    """
    if not Kernel(device).attached:
        return detachment.detach(device, trace=trace)  # takes away what may be left
    meant = state.identity_of(device)
    record = state.load(device)
    if not _is_of(record, path):
        entry = entry_of(read(path), device, path)
        if not (record and (record.tag, record.target) == (entry.tag, entry.target.uri)):
            holds = record.target if record else "what another program attached"
            raise DeviceInUse(
                device.path,
                f"holds {holds}; {plain(path)}:{entry.line} says {entry.target.uri}",
                f"nbdattach disconnect {device.path} detaches it all the same",
            )
    return detachment.detach(device, only=meant, say=say, progress=progress, trace=trace)
