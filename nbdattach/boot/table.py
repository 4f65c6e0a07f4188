# SPDX-License-Identifier: GPL-2.0-or-later
"""The table for boot: reads /etc/nbdtab, attaches its lines, and detaches them again.

Decisions that matter:
* If one line is bad, the others are attached all the same, and the error is reported.
* `up` marks its attachments with the name of the table, so that `down` finds them even if the line has been edited or
  removed meanwhile. `down` detaches any other attachment only if it is the one that the line names.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nbdattach import api, at_once
from nbdattach.attached import state
from nbdattach.boot import nbdtab
from nbdattach.boot.nbdtab import Entry, Table
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.error_facts import error_of, facts_of
from nbdattach.errors import DeviceInUse, Malformed, NbdattachError
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel, identifier
from nbdattach.operations import detachment
from nbdattach.operations.handle import DETACH_SECONDS
from nbdattach.own_server.source import Source, source_at, source_of, tag_of
from nbdattach.protocol.target import Target
from nbdattach.reporter import QUIET, Reporter
from nbdattach.text import from_wire, plain, quoted

PATH = "/etc/nbdtab"
MAX_BYTES = 1 << 20  # a line of 200 bytes for each of 5000 devices
# Seconds in which no line is done, if all that have begun wait for servers that are not up yet.
_STALLED = 2.0


def read(path: str = PATH) -> Table:
    """Raises `Malformed` if the file cannot be read."""
    name = os.path.abspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        cause = "there is no such table"
        raise Malformed(plain(path), cause, "nbdtab(5) describes its format; --table FILE names another one") from error
    except OSError as error:
        hint = "nbdtab(5) describes its format"
        raise Malformed(plain(path), f"cannot be read: {error.strerror}", hint) from error
    if len(content) > MAX_BYTES:
        raise Malformed(plain(path), f"more than {MAX_BYTES} bytes", "is it a table?")
    table = nbdtab.parse(from_wire(content), path)
    return replace(table, entries=tuple(replace(one, options=_marked(one.options, name)) for one in table.entries))


def _marked(options: ConnectOptions, name: str) -> ConnectOptions:
    return replace(options, table=name)


def entry_of(table: Table, device: Device, path: str = PATH) -> Entry:
    """The line of that device. Raises `Malformed` if there is none, or if it has a mistake."""
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
    """The lines of these devices, None for all; and an error for each that has no valid line."""
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


def patient(entries: Sequence[Entry], seconds: float) -> list[Entry]:
    """These lines, with `seconds` as retry-for where a line has none."""
    return [one if one.says_retry else replace(one, options=replace(one.options, retry_for=seconds)) for one in entries]


def up(entries: Sequence[Entry], reporter: Reporter = QUIET) -> Iterator[tuple[Entry, api.Attachment | NbdattachError]]:
    """Attaches them all at the same time; yields the outcome of each as it comes.

    All are attached even if the caller takes no more outcomes, as when the reader of its output has gone.
    """
    outcomes = at_once.outcomes(lambda entry: _up(entry, reporter), entries, _STALLED)
    try:
        for one in outcomes:  # noqa: UP028 - that would close them, too
            yield one
    finally:
        deque(outcomes, maxlen=0)


class _About(Reporter):
    """Says of which device the steps are, because many are attached at the same time."""

    def __init__(self, device: Device, reporter: Reporter) -> None:
        self._name = device.name
        self._reporter = reporter

    def say(self, line: str) -> None:
        self._reporter.say(f"{self._name}: {line}")

    def trace(self, step: str) -> None:
        self._reporter.trace(f"{self._name}: {step}")


def _up(entry: Entry, reporter: Reporter) -> api.Attachment | NbdattachError:
    try:
        return api.attach(
            _named(entry), entry.device, entry.options, _About(entry.device, reporter), entry.image_options
        )
    except NbdattachError as error:
        return error if error.thing == entry.device.path else _of_device(entry.device, error)


def _named(entry: Entry) -> Target | Source:
    """What its HOST is: an image, or a server. Raises `Malformed`."""
    source = source_of(entry.image) if entry.image else None
    if entry.image and not source and entry.options.raw_size is not None:
        raise Malformed(plain(entry.image), "a socket, but its line has size=", "leave it out, or add no-handshake")
    return source or entry.target


def _names(line: Entry) -> tuple[str, str]:
    """Tag and target of the attachment that the line makes. The image may have gone."""
    source = source_at(line.image) if line.image else None
    uri = source.name if source else line.target.uri
    return line.options.tag or (tag_of(source) if source else uri), uri


def _names_of(record: state.Record) -> tuple[str, str]:
    return record.tag, record.server.name if record.server else record.target


def _of_device(device: Device, error: NbdattachError) -> NbdattachError:
    """The same error with the device's name, so that it tells which of many devices failed."""
    facts = {**facts_of(error), "thing": f"{device.path}: {error.thing}", "hint": nbdtab.as_option(error.hint)}
    return error_of(facts)


def all_to_detach(path: str = PATH) -> tuple[list[Device], list[NbdattachError]]:
    """The devices of the table, from its last line to the first, after those that `up` attached from lines now gone.

    And its mistakes: even if the table cannot be read, the devices that came from it are among the result.
    """
    try:
        table = read(path)
        failures: list[NbdattachError] = [mistake.error for mistake in table.mistakes]
    except Malformed as error:
        table, failures = Table((), ()), [error]
    named = [entry.device for entry in reversed(table.entries)]
    gone = [device for device in sysfs.devices() if device not in named and _is_of(state.load(device), path)]
    return gone + named, failures


def _is_of(record: state.Record | None, path: str) -> bool:
    return record is not None and record.table == os.path.abspath(path)


def down(
    device: Device,
    path: str = PATH,
    reporter: Reporter = QUIET,
) -> str:
    """Detaches the device if `up` attached it or its line names its export. Returns why there was nothing to do, or "".

    Raises `DeviceInUse` if the device holds something else, or is in use.
    """
    if not Kernel(device).attached:
        return detachment.detach(device, DETACH_SECONDS, reporter=reporter)  # removes leftovers, if any
    state.refuse_hidden()
    meant, record = state.identity_of(device), state.load(device)
    line = _line_of(device, path)
    if isinstance(line, Malformed) or not _is_what(line, device, record):
        if not record or not _is_of(record, path):
            raise line if isinstance(line, Malformed) else _holds_other(device, record, line, path)
        there = _names_of(record)[1]
        reporter.say(
            f"{device.path}: {there} is attached there; its line in {plain(path)} was changed or removed since"
        )
    return detachment.detach(device, DETACH_SECONDS, only=meant, reporter=reporter)


def _is_what(line: Entry, device: Device, record: state.Record | None) -> bool:
    """Whether the line's export is attached. Without a record, the identifier in the kernel decides."""
    if record:
        return _names_of(record) in (_names(line), _names(replace(line, image="")))
    return Kernel(device).backend == identifier(_names(line)[0]).strip()


def _line_of(device: Device, path: str) -> Entry | Malformed:
    try:
        return entry_of(read(path), device, path)
    except Malformed as error:
        return error


def _holds_other(device: Device, record: state.Record | None, line: Entry, path: str) -> DeviceInUse:
    there, wanted = _names_of(record) if record else ("", ""), _names(line)
    holds, says = (
        f"{uri} with the tag {quoted(tag)}" if there[1] == wanted[1] else uri for tag, uri in (there, wanted)
    )
    if not holds:
        ended = state.end_of(device)
        holds = "the rest of an attachment that has ended" if ended else "an attachment of another program"
    return DeviceInUse(
        device.path,
        f"holds {holds}, but {plain(path)}:{line.line} says {says}",
        f"nbdattach disconnect {device.path} detaches it anyway",
    )
