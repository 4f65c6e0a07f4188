# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of one attachment, in memory and on disk.

Decision that matters: we record an ordered change before it begins, and forget the old state only when it is done. So
if a monitor is killed in between, the next one finishes the change. If we cannot record the change, we do not begin it.
"""

from __future__ import annotations

import dataclasses
import os

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.device import Device
from nbdattach.monitor.access import Access
from nbdattach.monitor.events import TROUBLE, Log
from nbdattach.monitor.links import Gone
from nbdattach.protocol.target import Target
from nbdattach.text import plain


class Recorded:
    """Only the thread that watches the device changes it; `save_if_possible` may be called by another one."""

    def __init__(self, device: Device, record: Record, access: Access, log: Log) -> None:
        self.record = record
        self._device = device
        self._access = access
        self._log = log
        self._unsaved = False  # because /run was full
        self._ours: tuple[int, int] | None = None  # the version of the file that was read last, if it is ours

    @property
    def is_still_there(self) -> bool:
        """Whether the record on disk is that of this attachment: the same process may have made another one."""
        version = self._version()
        return version is not None and not self._is_of_another(version)

    @property
    def is_of_another(self) -> bool:
        """Whether another attachment has its record on disk. Costs a stat(2) while the file does not change."""
        return self._is_of_another(self._version())

    def _is_of_another(self, version: tuple[int, int] | None) -> bool:
        if version != self._ours:
            there = state.load(self._device)
            if there and (there.id, there.since) != (self.record.id, self.record.since):
                return True
            self._ours = version if there else None
        return False

    def _version(self) -> tuple[int, int] | None:
        """Of the file; each save makes another one."""
        try:
            now = os.stat(state.path(self._device))
        except OSError:
            return None
        return now.st_ino, now.st_mtime_ns

    @property
    def name(self) -> str:
        """The server in use, as users know it."""
        server = self.record.server
        uri = self.target.uri
        return plain(server.name) if server and uri == self.record.target else uri

    @property
    def target(self) -> Target:
        """The target to dial."""
        return self.record.current_target()

    def begin(self, **changes: object) -> None:
        """Records a change that is about to begin. Raises OSError; then the record is as before."""
        before = self.record
        try:
            self._save(**changes)
        except OSError:
            self.record = before
            raise

    def note(self, **changes: object) -> None:
        """Records a change that has happened. If /run is full, it is saved as soon as possible."""
        try:
            self._save(**changes)
        except OSError as error:
            if not self._unsaved:
                self._log(f"{self._device.name}: {error}; recording it later", TROUBLE)
            self._unsaved = True

    @property
    def is_saved(self) -> bool:
        return not self._unsaved

    def save_if_unsaved(self) -> None:
        if self._unsaved:
            self.note()

    def end_move(self) -> None:
        """If a hand-over to another server has been done, that server is the target now."""
        if self.record.moving_to:
            uri, record = self.record.moving_to, self.record
            own = uri in (record.target, *record.also)
            left = tuple(
                one
                for one in (*record.left, record.using or record.target)
                if one != uri and (own or one.split(" ")[0] in record.also)
            )
            target, using = (record.target, "" if uri == record.target else uri) if own else (uri, "")
            self.note(target=target, using=using, left=left, trust=record.moving_trust, moving_to="", moving_trust=None)

    def _save(self, **changes: object) -> None:
        with self._access.kernel_calls():
            if self.is_of_another:
                raise Gone
            self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]
            state.save(self._device, self.record)
            self._unsaved = False
