# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers the content of one attached disk, and holds each new connection against it.

Decisions that matter:
* A server that comes back with another disk (another image, an older snapshot, another machine under that name) would
  have a mounted file system go on writing into it. So a few KiB are read over each new connection before the driver
  gets it, and compared with what the attached device showed.
* We look again soon after a program wrote to the device itself, and less often while file systems write. Nothing is
  read while nothing is written.
* A look reads the device, so it may hang if the server goes away. Another process reads, which we can leave behind.
* If we cannot look, we go on with what we know. But we move to another server by ourselves (--also, another address of
  a name) only if it has what the last look has shown, whatever a program did; with --also, looks follow writes within
  two seconds. After a move, the next one waits for a look, unless nothing was written. A server that the device has
  left may have missed all that was written since, so it must show something of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from typing import TYPE_CHECKING

from nbdattach.attached import memory as memories
from nbdattach.attached.memory import Memory, Moment
from nbdattach.attached.users import is_used
from nbdattach.connection import client
from nbdattach.content import same_disk
from nbdattach.content.look import look
from nbdattach.content.reading import run
from nbdattach.deadline import Deadline
from nbdattach.errors import Refused
from nbdattach.host.blocking import Unanswered
from nbdattach.host.reading import Reading
from nbdattach.kernel.sysfs import Kernel
from nbdattach.text import typed

if TYPE_CHECKING:
    from nbdattach.connection.client import Connection
    from nbdattach.content.marks import Content
    from nbdattach.device import Device
    from nbdattach.monitor.access import Access
    from nbdattach.monitor.events import Log
    from nbdattach.monitor.places import Place
    from nbdattach.monitor.recorded import Recorded

# Seconds after a look before the next one. Each look costs a process, so they double while the same file systems and
# tables are found: to the second at most if a program writes to the device itself, to the third if something else does.
_SOON = 1.0
_LATER = 10.0
_SELDOM = 60.0
# After so many pauses without a reason to look, the next reason is a new one.
_QUIET = 4
# At most so many seconds if there are other servers of the same data.
_WITH_OTHERS = 2.0
# So long after trouble with a connection nothing is read.
_CALM = 10.0
# But if the trouble comes again and again, after so many seconds.
_MOST_CALM = 120.0
# A look that takes longer is given up; a command waits so long for one before it moves the device, or for its end.
_LOOK_SECONDS = 30.0
_QUICK_SECONDS = 5.0
_END_SECONDS = 2.0


class Remembering:
    """`tick`, `stop` and `require_same` may be called by different threads."""

    def __init__(self, device: Device, recorded: Recorded, access: Access, log: Log) -> None:
        self._device = device
        self._recorded = recorded
        self._access = access
        self._log = log
        self._memory = memories.load(device)
        self._mutex = threading.Lock()  # around the look under way
        self._reading: Reading | None = None
        self._looking: threading.Thread | None = None
        self._age = 0  # of what we remember: how often we had to forget
        self._looked = -math.inf
        self._pause = _SOON
        self._completed = -1  # requests
        self._calm = -math.inf  # before, nothing is read

    # -- looks at the attached device ------------------------------------------------------------------------------

    def tick(self) -> bool:
        """To be called once a second while the device is connected and free. Starts a look if it is due.

        True if nothing has happened since the last look.
        """
        now, seconds = memories.moment_of(self._device), time.monotonic() - self._looked
        before = self._memory.moment if self._memory and self._knows_place(self._memory) else None
        if before and now.size and not before.is_before_changes(now):
            return True
        if now.size:
            self._look_if_due(now, before, seconds)
        return False

    def _look_if_due(self, now: Moment, before: Moment | None, seconds: float) -> None:
        """`seconds`: since the last look, which was at the moment `before` if it has found something."""
        if not self._moves() or (time.monotonic() < self._calm and seconds < _MOST_CALM):
            return
        if seconds > _QUIET * self._pause:
            self._pause = _SOON
        if seconds < self._pause or self._is_looking():
            return
        by_program = before is not None and before.touched != now.touched
        most = _WITH_OTHERS if self._recorded.record.also else _LATER if by_program else _SELDOM
        self._pause = min(2 * self._pause, most)
        self._looked = time.monotonic()
        self._start(now, _LOOK_SECONDS)

    def _start(self, moment: Moment, seconds: float) -> threading.Thread:
        thread = threading.Thread(target=self._look, args=[moment, seconds], name="look", daemon=True)
        thread.start()
        self._looking = thread
        return thread

    def _is_looking(self) -> bool:
        """Whether a look is under way, or its process still waits for the server."""
        looking, reading = self._looking, self._reading
        return bool((looking and looking.is_alive()) or (reading and not reading.ended))

    def _moves(self) -> bool:
        """Whether a request was done since the last call, or none is under way.

        Otherwise the server may be stuck, and our small reads, if it serves them, would look like a sign of life.
        """
        kernel = Kernel(self._device)
        before, self._completed = self._completed, kernel.completed
        return self._completed != before or not kernel.pending

    def look_now(self) -> None:
        """So that all is known that the device has written until now, if its server answers. Takes some seconds."""
        if not self._is_looking():
            self._start(memories.moment_of(self._device), _QUICK_SECONDS).join(_QUICK_SECONDS)

    def _look(self, moment: Moment, seconds: float) -> None:
        place, age, known = memories.place_of(self._recorded.record), self._age, self._memory
        used = is_used(self._device)
        reading = self._begin()
        if reading is None:
            return
        kernel, deadline = Kernel(self._device), Deadline(seconds)
        same_size = known is not None and known.content.size == moment.size
        steps = look(moment.size, kernel.block_size, known.content if known and same_size else None)
        try:
            content = run(steps, lambda wanted: reading.read(wanted, deadline))
        except (OSError, Unanswered):
            pass  # the server is away, or cannot read a part; or a command has taken the device
        else:
            self._remember(self._memory_of(content, known, moment, place, used), age)
        finally:
            reading.kill(_END_SECONDS)
            reading.close()

    def _memory_of(self, content: Content, known: Memory | None, moment: Moment, place: str, used: bool) -> Memory:
        fresh = Memory(memories.attachment_of(self._device), content, moment, place, used=used)
        if known is None:
            return dataclasses.replace(fresh, moved=content if self._recorded.record.left else None)
        is_first = known.moved is None and (known.moved_at is not None or self._recorded.record.left)
        moved = content if is_first else known.moved
        at, left, last = known.moved_at, known.left, known.left_last
        return dataclasses.replace(fresh, moved=moved, moved_at=at, left=left, left_last=last)

    def _begin(self) -> Reading | None:
        """None if it may not be read now."""
        with self._mutex:
            if not (self._access.held or self._access.ended or (self._reading and not self._reading.ended)):
                with contextlib.suppress(OSError):
                    self._reading = Reading(self._device.path)
                    return self._reading
        return None

    def _remember(self, memory: Memory, age: int) -> None:
        with self._access.if_free() as free:
            if not free or age != self._age or not self._knows_place(memory) or not self._recorded.is_still_there:
                return
            if self._memory is None or not self._memory.content.has_marks_of(memory.content):
                self._pause = _SOON
            self._memory = memory
            with contextlib.suppress(OSError):  # /run is full: the next look is saved, perhaps
                memories.save(self._device, memory)
        if not self._recorded.is_still_there:  # the device was detached, and its files removed, just before
            memories.forget(self._device)

    def give_up(self) -> None:
        """There is trouble with a connection: small reads of ours, if the server serves them, must not hide it."""
        self._calm = time.monotonic() + _CALM
        reading = self._reading
        if reading and not reading.ended:
            reading.kill(0)

    def stop(self) -> None:
        """Ends a look under way, because a command holds the device or the attachment has ended."""
        with self._mutex:
            if self._reading:
                self._reading.kill(_END_SECONDS)

    # -- new connections -------------------------------------------------------------------------------------------

    def require_same(self, connection: Connection, place: Place) -> None:
        """Raises `Refused` if the export there is another disk than the attached one, and other errors of reading it.

        If it is not where the device was connected last, and no user ordered the move: also if nothing is remembered
        that could tell, if a program may have made the disk anew, and if nothing shows that a server that the device
        has left has what was written since.
        """
        if self._memory is None:  # the watch before this one may have looked when this one was made already
            self._memory = memories.load(self._device)
        memory, record, uri = self._memory, self._recorded.record, place.target.uri
        proven = place.elsewhere and not place.ordered
        left = [one for one in record.left if proven and one in (uri, place.name)]
        if memory is None and uri == record.uri and not left:
            return  # another address of the same server, perhaps
        # What nobody has written to since is as good as it was; that was so for the last server only.
        is_as_left = memory is not None and self._nothing_since_move(memory) and left in ([], [*record.left[-1:]])
        if proven and not (memory and (self._knows_place(memory) or is_as_left)):
            cause = "nothing is known yet of what was written to the server in use, so it is not known to have the same"
            raise Refused(
                uri, cause, f"nbdattach reconnect {self._device.path} {typed(place.dialled.uri)} moves the device there"
            )
        if memory is None:
            return
        missed = None
        if left and not is_as_left:
            missed = memory.left_last if left == [*record.left[-1:]] else memory.left
            missed = missed or memory.moved or memory.content
        differs = self._difference(connection, memory, uri, proven, missed)
        if differs:
            there = f" {typed(place.dialled.uri)}" if place.elsewhere else ""
            hint = f"nbdattach reconnect --trust {self._device.path}{there} accepts it, if it is the right one"
            raise Refused(uri, f"this is another disk: {differs}", hint)

    def _difference(
        self, connection: Connection, memory: Memory, uri: str, proven: bool, missed: Content | None
    ) -> str | None:
        """With `missed`, the content when that server was left, also if it may lack what was written since."""
        known = memory.content
        if connection.export.size < known.size:  # which the user has ordered, or it would have been refused
            known = known.within(connection.export.size)
        steps = look(known.size, self._recorded.record.block_size, known, check=True)
        try:
            found = client.look(connection, steps)
        except Refused as error:
            raise Refused(uri, f"is it the attached disk? {error.cause}", error.hint) from None
        since = memory.since(self._device, by_others=Kernel(self._device).read_only)
        if proven:
            since = dataclasses.replace(since, by_program=False, unused=False)
        differs = same_disk.difference(known, found, since)
        if proven:
            differs = differs or same_disk.lacks_proof(known, found, since)
        if missed:
            differs = differs or same_disk.stayed_behind(missed, memory.moved or memory.content, known, found)
        return differs

    def _knows_place(self, memory: Memory) -> bool:
        """Whether a look was made since the device was moved last."""
        return memory.place == memories.place_of(self._recorded.record)

    def _nothing_since_move(self, memory: Memory) -> bool:
        return memory.moved_at is not None and memories.moment_of(self._device).written == memory.moved_at

    def move(self) -> None:
        """The device is about to move to another server. Raises OSError."""
        if self._memory and not self._recorded.is_of_another:
            self._age += 1  # a look that is under way is one at the server before
            memory, written = self._memory, memories.moment_of(self._device).written
            left = (memory.left or memory.moved) if self._recorded.record.left else None
            last, left = memory.content, left or memory.content
            self._memory = dataclasses.replace(memory, moved=None, moved_at=written, left=left, left_last=last)
            memories.save(self._device, self._memory)

    def forget(self) -> None:
        """The user says that the disk is the right one, whatever is on it. Raises `Gone`."""
        with self._access.kernel_calls():
            self._age += 1
            self._memory = None
            self._looked = -math.inf
            memories.forget(self._device)
