# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a watch that need no kernel: orders, records made before anything moves, and the course of an outage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from late_driver import LateDriver
from peer import soon
from test_links import Sys

from nbdattach.attached import state
from nbdattach.attached.state import Record, Trouble
from nbdattach.clock import boot_time
from nbdattach.connection import probe
from nbdattach.connection.client import Connection
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.probe import Answer, Asked, Probe
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, KernelRefused, NbdattachError, NoConnection
from nbdattach.kernel import netlink, pulse, settings, sysfs
from nbdattach.monitor import planned
from nbdattach.monitor import watch as watch_module
from nbdattach.monitor.links import Gone, Links
from nbdattach.monitor.outage import Outage
from nbdattach.monitor.remembering import Remembering
from nbdattach.monitor.rest import Rest
from nbdattach.monitor.watch import Done, Watch
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target
from nbdattach.untrusted_json import made_of

NBD0 = Device(0)
OLD, NEW = "nbd://db1/disk", "nbd://db2/disk"
OLD_AT_ITS_ADDRESS = "nbd://192.0.2.1/disk"
MIB = 1 << 20
RECORD = Record(
    "tag", OLD, "disk", "netlink", 1, "2026-01-02T03:04:05Z", 42, size=MIB, reconnect=True, address="192.0.2.1"
)


class Attachment:
    """A device with one connection: a watch of it, the driver that has it, and its record."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sysfs, "SYS", f"{tmp_path}/sys")
        monkeypatch.setattr(state, "RUN", f"{tmp_path}/run")
        monkeypatch.setattr(Links, "is_there", lambda _: True)
        monkeypatch.setattr(Remembering, "look_now", lambda _: None)
        monkeypatch.setattr(planned, "_QUIET_FOR_SIZE", 0.05)
        monkeypatch.setattr(planned, "_QUIET", 0.0)
        self.sys = Sys(tmp_path / "sys")
        self.driver = LateDriver()
        self.log: list[str] = []
        self.dialled: list[str] = []
        self.size = MIB  # of the server's export
        state.save(NBD0, RECORD)
        self._monkeypatch = monkeypatch
        self.watch = self.watched()

    def watched(self, record: Record = RECORD) -> Watch:
        ours, self.server = socket.socketpair()
        made = Watch(NBD0, record, [Link(ours)], lambda line, *_: self.log.append(line))
        made._links.family = cast(netlink.Family, self.driver)
        self._monkeypatch.setattr(made._connecting._carrier, "dial", self._dial)
        self._monkeypatch.setattr(made, "check", lambda: None)
        return made

    def _dial(self, target: Target, *_: object, **__: object) -> Connection:
        self.dialled.append(target.uri)
        ours, theirs = socket.socketpair()
        self._kept = ours, theirs
        stream = SimpleNamespace(sock=ours, run=lambda _: None, close=ours.close)
        export = Export("disk", self.size, 1, "newstyle-fixed")
        return cast(Connection, SimpleNamespace(stream=stream, export=export, relay=None, tls=None))

    def patch(self, owner: object, name: str, value: object) -> None:
        self._monkeypatch.setattr(owner, name, value)

    @property
    def is_cut(self) -> bool:
        """Whether its first connection is."""
        try:
            return self.server.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def full(self, *, from_save: int = 1) -> None:
        """From that save on /run has no space."""
        saves, save = [0], state.write

        def fails(name: str, content: dict[str, object]) -> None:
            saves[0] += 1
            if saves[0] >= from_save:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            save(name, content)

        self._monkeypatch.setattr(state, "write", fails)

        def empty_it() -> None:
            self._monkeypatch.setattr(state, "write", save)

        self.empty_it = empty_it

    @property
    def written(self) -> Record:
        """The record on the disk, not the kernel's state."""
        return made_of(Record, json.loads(Path(state.path(NBD0)).read_text()))


@pytest.fixture
def attachment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attachment:
    return Attachment(tmp_path, monkeypatch)


def sizes(driver: LateDriver) -> list[int]:
    return [message["size"] for message in driver.messages if "size" in message]


# -- orders ------------------------------------------------------------------------------------------------------------

ORDERS: dict[str, Callable[[Watch, Done], None]] = {
    "reconnect": lambda watch, done: watch.reconnect(None, done),
    "reconnect to": lambda watch, done: watch.reconnect(Target("db2"), done),
    "resize": lambda watch, done: watch.resize(done),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_order_to_a_watch_that_ends_is_answered(
    when: str, order: Callable[[Watch, Done], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command at the other end of the monitor's socket waits for it without a limit."""
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path))
    monkeypatch.setattr(netlink, "Family", contextlib.nullcontext)
    watch = Watch(NBD0, RECORD, [], lambda *_: None)
    outcomes: list[str | NbdattachError] = []
    answered = threading.Event()

    def done(outcome: str | NbdattachError) -> None:
        outcomes.append(outcome)
        answered.set()

    watch.hold()  # so that nothing is done about it meanwhile
    if when == "before":
        order(watch, done)
        watch.stop()
    else:
        watch.stop()
        order(watch, done)
    assert answered.wait(60)
    assert [isinstance(outcome, NbdattachError) for outcome in outcomes] == [True]


def test_an_order_that_fails_in_an_unforeseen_way_is_answered(attachment: Attachment) -> None:
    def fail() -> str:
        raise ZeroDivisionError("by zero")

    outcomes: list[str | NbdattachError] = []
    with pytest.raises(ZeroDivisionError):
        attachment.watch._obey(fail, outcomes.append)
    assert [str(outcome) for outcome in outcomes] == ["/dev/nbd0: ZeroDivisionError: by zero"]


def test_two_commands_that_hold_a_device_hold_it_until_both_are_done(attachment: Attachment) -> None:
    watch = attachment.watch
    checked: list[None] = []
    attachment.patch(watch, "check", lambda: checked.append(None))
    watch.hold()
    watch.hold()
    watch.release()
    assert checked == []
    watch.release()
    assert checked == [None]


def test_a_device_that_was_detached_is_left_alone_though_a_program_keeps_it(
    attachment: Attachment, tmp_path: Path
) -> None:
    """The kernel keeps its pid, and there is a file that says that it has ended."""
    (tmp_path / "sys/block/nbd0/pid").write_text(f"{RECORD.kernel_pid}\n")
    attachment.watch.hold()
    state.note_end(NBD0, state.identity_of(NBD0))
    with pytest.raises(Gone), _given_back(attachment.watch), attachment.watch._access.kernel_calls():
        pytest.fail("the thread of the watch would write its files anew")
    attachment.watch.release()
    assert (attachment.log, attachment.watch.tick()) == (["nbd0: no longer attached"], False)


@contextlib.contextmanager
def _given_back(watch: Watch) -> Iterator[None]:
    """The moment between the return of the device by a command and our look at it."""
    watch._access.give_back()
    try:
        yield
    finally:
        watch._access.hold()


def test_hands_that_are_off_come_back_though_this_machine_has_no_descriptor_left(attachment: Attachment) -> None:
    """A thread of the watch may wait for just that, and a device without a watch would lose its server for good."""

    def no_descriptor(_: Links) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    checked: list[None] = []
    attachment.patch(attachment.watch, "check", lambda: checked.append(None))
    attachment.patch(Links, "is_there", no_descriptor)
    attachment.watch.hold()
    attachment.watch.release()
    assert checked == [None]


# -- another server ----------------------------------------------------------------------------------------------------


def test_nothing_moves_to_another_server_that_cannot_be_written_down(attachment: Attachment) -> None:
    """The next monitor would connect to the old server, and its data is old by then."""
    attachment.full()
    with pytest.raises(OSError, match="No space"):
        attachment.watch._orders.reconnect(Target("db2", export="disk"))
    assert (attachment.driver.messages, attachment.is_cut) == ([], False)
    assert attachment.watch._recorded.target.uri == OLD


def test_nothing_moves_for_a_command_that_has_ended(attachment: Attachment) -> None:
    """No other command could attach that export for writing as long as it lived; by now one may have."""
    with pytest.raises(KernelRefused):
        attachment.watch._orders.reconnect(Target("db2", export="disk"), is_wanted=lambda: False)
    assert (attachment.dialled, attachment.driver.messages, attachment.is_cut) == ([NEW], [], False)
    assert (attachment.written.uri, attachment.watch._recorded.target.uri) == (OLD, OLD)


def test_a_monitor_after_one_that_was_killed_in_between_goes_to_the_new_server(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> bool:
        raise Killed

    monkeypatch.setattr(attachment.watch._links, "hand_over", dies)
    with pytest.raises(Killed):
        attachment.watch._orders.reconnect(Target("db2", export="disk"))
    assert attachment.written.target == OLD
    assert attachment.watched(attachment.written)._recorded.target.uri == NEW


def test_the_old_server_is_forgotten_when_the_new_one_has_the_device(attachment: Attachment) -> None:
    assert attachment.watch._orders.reconnect(Target("db2", export="disk")) == NEW
    assert attachment.is_cut
    written = attachment.written
    assert (written.target, written.moving_to, written.current_target().uri) == (NEW, "", NEW)


def test_the_address_of_the_old_server_is_not_taken_for_that_of_the_new_one(attachment: Attachment) -> None:
    attachment.watch._orders.reconnect(Target("db2", export="disk"))
    assert attachment.written.address != RECORD.address


def test_a_move_that_is_done_is_a_success_though_it_cannot_be_written_down_at_once(attachment: Attachment) -> None:
    attachment.full(from_save=2)
    assert attachment.watch._orders.reconnect(Target("db2", export="disk")) == NEW
    assert attachment.written.current_target().uri == NEW
    attachment.empty_it()
    attachment.watch.tick()
    assert (attachment.written.target, attachment.written.moving_to) == (NEW, "")


def test_a_monitor_that_comes_upon_a_move_ends_it_when_all_is_connected(attachment: Attachment) -> None:
    moving = dataclasses.replace(RECORD, moving_to=NEW)
    watch = attachment.watched(moving)
    watch._mending._recovered()
    assert (attachment.written.target, attachment.written.moving_to) == (NEW, "")


# -- another size ------------------------------------------------------------------------------------------------------


def test_no_size_is_sent_while_requests_are_under_way(attachment: Attachment) -> None:
    """The kernel would wait for them, and hold up every message for every device meanwhile."""
    attachment.size = 2 * MIB
    attachment.sys.say(completed=0, inflight=1)
    with pytest.raises(KernelRefused, match="requests in flight"):
        attachment.watch._orders.resize()
    assert (attachment.driver.messages, attachment.is_cut) == ([], False)
    assert attachment.written == RECORD


def test_no_size_is_sent_where_requests_are_not_counted(attachment: Attachment) -> None:
    attachment.size = 2 * MIB
    attachment.sys.count_nothing()
    with pytest.raises(KernelRefused, match="does not count its requests") as refused:
        attachment.watch._orders.resize()
    assert refused.value.hint == "echo 1 >/sys/block/nbd0/queue/iostats"
    assert (attachment.driver.messages, attachment.is_cut) == ([], False)


def test_requests_that_wait_for_a_server_of_another_size_are_no_reason_to_refuse_it(attachment: Attachment) -> None:
    attachment.size = 2 * MIB
    attachment.watch._links.cut()
    attachment.sys.say(completed=0, inflight=1)
    with pytest.raises(KernelRefused, match="it has new connections"):  # the driver of this test never serves them
        attachment.watch._orders.resize()
    assert attachment.dialled == [OLD_AT_ITS_ADDRESS] * 2


def test_no_size_is_sent_while_requests_came_during_the_hand_over(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment.size = 2 * MIB
    hand_over = Links.hand_over

    def busy(self: Links, link: Link, noticed: Deadline) -> bool:
        attachment.sys.say(completed=0, inflight=1)
        return hand_over(self, link, noticed)

    monkeypatch.setattr(Links, "hand_over", busy)
    with pytest.raises(KernelRefused, match="it has new connections"):
        attachment.watch._orders.resize()
    assert sizes(attachment.driver) == []


def test_a_new_size_is_sent_in_a_moment_without_requests_and_no_timeout_is_touched(attachment: Attachment) -> None:
    attachment.size = 2 * MIB
    assert attachment.watch._orders.resize() == f"{2 * MIB} bytes now, 0 before"
    assert sizes(attachment.driver) == [2 * MIB]
    assert not any("timeout" in message for message in attachment.driver.messages)
    assert (attachment.written.size, attachment.written.new_size) == (2 * MIB, None)


def test_a_server_of_either_size_is_taken_while_a_resize_has_begun_and_is_not_done(attachment: Attachment) -> None:
    """Killed in between, the monitor cannot know which of both the device has."""
    watch = attachment.watched(dataclasses.replace(RECORD, new_size=2 * MIB))
    for attachment.size in (MIB, 2 * MIB):
        assert watch._connecting.dial(Target("db1", export="disk")).export.size == attachment.size
    attachment.size = 3 * MIB
    with pytest.raises(NbdattachError, match=f"{3 * MIB} bytes now"):
        watch._connecting.dial(Target("db1", export="disk"))


# -- outages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-86_400, 0, 86_400])
def test_a_step_of_the_clock_makes_no_request_fail_sooner_or_later(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The outage began 100 s ago, the monitor was killed meanwhile, and the clock was set."""
    state.save_trouble(NBD0, Trouble("reconnecting", "2026-01-02T03:04:05Z", None, "", boot_time() - 100))
    monkeypatch.setattr("time.time", lambda: 1_767_323_145.0 + step)
    watch = attachment.watched()
    watch._links.cut()
    outage = watch._mending._in_outage(dead=True)
    assert outage.until_failing(boot_time()) == pytest.approx(200, abs=30)


def test_no_outage_of_a_monitor_before_this_one_began_in_the_future(attachment: Attachment) -> None:
    """Requests of a silent server fail when --dead-peer and --on-loss have passed, so that moment may be to come."""
    moment = boot_time() + 25
    state.save_trouble(NBD0, Trouble("reconnecting", "2026-01-02T03:04:05Z", None, "", moment))
    watch = attachment.watched()
    watch._links.cut()
    outage = watch._mending._in_outage(dead=True)
    assert outage.age(boot_time()) >= 0 and outage.died == moment


@pytest.mark.parametrize("word", ["lost", "reconnecting"])
def test_a_request_that_fails_while_the_server_is_lost_is_no_sign_of_it_to_the_next_monitor_either(
    attachment: Attachment, word: str
) -> None:
    state.save_trouble(NBD0, Trouble(word, "2026-01-02T03:04:05Z", None, "", boot_time() - 400))
    watch = attachment.watched()
    watch._links.cut()
    watch._mending._in_outage(dead=True)
    attachment.sys.say(completed=1, inflight=0)
    assert watch._links._has_served() == (word == "reconnecting")


def test_an_outage_is_told_with_the_moment_when_requests_began_to_wait(attachment: Attachment) -> None:
    attachment.watch._links.cut()
    outage = attachment.watch._mending._in_outage(dead=True)
    trouble = state.trouble_of(NBD0)
    assert trouble and (trouble.state, trouble.began) == ("reconnecting", outage.died)


def test_the_outage_of_the_server_before_an_ordered_move_is_not_that_of_the_new_one(attachment: Attachment) -> None:
    """Requests would fail when --on-loss has passed since the first one was lost."""
    attachment.watch._mending._in_outage(dead=True)
    attachment.watch._mending._recovered()
    attachment.watch._orders.reconnect(Target("db2", export="disk"))
    assert not attachment.watch._mending._in_outage(dead=True).resumed


def test_a_full_run_keeps_no_server_from_being_dialled(attachment: Attachment) -> None:
    attachment.full()
    outage = attachment.watch._mending._in_outage(dead=True)
    attachment.watch._links.cut()
    assert attachment.watch._mending._try_once(outage)
    assert attachment.dialled == [OLD_AT_ITS_ADDRESS]


def test_what_breaks_the_promises_of_the_server_is_told_once_when_all_is_connected_again(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "differences", lambda *_: ["/dev/nbd0: fsync does not reach the server: echo"])
    for _ in range(2):
        attachment.watch._mending._settled = False
        attachment.watch._mending._recovered()
    assert attachment.log.count("/dev/nbd0: fsync does not reach the server: echo") == 1


# -- other servers, and another attachment at the same device ----------------------------------------------------------

ALSO = dataclasses.replace(RECORD, also=(NEW,))


def gone_for(attachment: Attachment, seconds: float) -> Outage:
    """An outage that has lasted so long, with no connection alive."""
    attachment.watch._links.cut()
    outage = attachment.watch._mending._in_outage(dead=True)
    outage.died = outage.began = boot_time() - seconds
    return outage


def away(attachment: Attachment, *uris: str) -> None:
    dial = attachment._dial

    def fails(target: Target, *arguments: object, **options: object) -> Connection:
        if target.uri in uris:
            attachment.dialled.append(target.uri)
            raise NoConnection(target.uri, "cannot connect", "is it there?")
        return dial(target, *arguments, **options)

    attachment.patch(attachment.watch._connecting._carrier, "dial", fails)


def test_another_server_is_recorded_before_it_gets_the_device(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment.watch = attachment.watched(ALSO)
    monkeypatch.setattr(Remembering, "require_same", lambda *_, **__: None)
    away(attachment, OLD_AT_ITS_ADDRESS)
    recorded: list[str] = []
    hand_over = Links.hand_over

    def noted(links: Links, *arguments: object) -> bool:
        recorded.append(attachment.written.using)
        return hand_over(links, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Links, "hand_over", noted)
    assert attachment.watch._mending._try_once(gone_for(attachment, 11))
    assert attachment.dialled == [OLD_AT_ITS_ADDRESS, NEW]
    assert recorded == [NEW]
    assert attachment.watch._recorded.record.others == [OLD]


def test_the_device_moves_nowhere_if_that_cannot_be_recorded(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment.watch = attachment.watched(ALSO)
    monkeypatch.setattr(Remembering, "require_same", lambda *_, **__: None)
    away(attachment, OLD_AT_ITS_ADDRESS)
    outage = gone_for(attachment, 11)
    attachment.full()
    with pytest.raises(OSError, match="No space left"):
        attachment.watch._mending._try_once(outage)
    assert attachment.watch._recorded.record.uri == OLD
    assert attachment.driver.messages == []


def test_a_server_that_was_never_looked_at_gets_nothing(attachment: Attachment) -> None:
    attachment.watch = attachment.watched(ALSO)
    away(attachment, OLD_AT_ITS_ADDRESS)
    outage = gone_for(attachment, 11)
    attachment.watch._mending._try_once(outage)
    assert outage.error.startswith(f"{NEW}: nothing is known yet")


def test_another_attachment_at_the_device_gets_no_connection_of_the_old_one(attachment: Attachment) -> None:
    """The same process has attached it again: pid and tag are those of before."""
    outage = gone_for(attachment, 0)
    state.save(NBD0, dataclasses.replace(RECORD, since="2026-01-02T03:04:06Z"))
    attachment.patch(state, "load", lambda _: attachment.written)
    with pytest.raises(Gone):
        attachment.watch._mending._try_once(outage)
    assert attachment.driver.messages == []


def test_the_watch_of_an_attachment_that_was_replaced_ends(attachment: Attachment) -> None:
    """Though no other watch takes over, as the new attachment wants none."""
    attachment.patch(state, "load", lambda _: attachment.written)
    assert not attachment.watch._recorded.is_of_another
    state.save(NBD0, dataclasses.replace(RECORD, id="another", reconnect=False))
    assert not attachment.watch.tick()
    assert attachment.log == ["nbd0: no longer attached"]


@pytest.mark.parametrize(("pid", "stays"), [("", False), ("4711\n", True)], ids=["free", "another_attachment"])
def test_the_trouble_of_an_attachment_goes_with_it(
    attachment: Attachment, tmp_path: Path, pid: str, stays: bool
) -> None:
    """The kernel detaches it if its connect is killed, and no command is there to remove the file."""
    trouble = Trouble("reconnecting", "2026-01-02T03:04:05Z", None, "", boot_time())
    state.save_trouble(NBD0, trouble)
    (tmp_path / "sys/block/nbd0/pid").write_text(pid)
    attachment.patch(Links, "is_there", lambda _: False)
    assert not attachment.watch.tick()
    assert attachment.log == ["nbd0: no longer attached"]
    assert state.trouble_of(NBD0) == (trouble if stays else None)


def test_the_record_is_read_again_only_when_it_has_changed(attachment: Attachment) -> None:
    reads: list[Device] = []

    def counted(device: Device) -> Record:
        reads.append(device)
        return attachment.written

    attachment.patch(state, "load", counted)
    for _ in range(5):
        assert not attachment.watch._recorded.is_of_another
    state.save(NBD0, RECORD)
    assert not attachment.watch._recorded.is_of_another
    assert len(reads) == 2


def test_a_record_that_could_not_be_read_is_read_again(attachment: Attachment) -> None:
    """This machine has no descriptor left, for a moment."""
    attachment.patch(state, "load", lambda _: None)
    assert not attachment.watch._recorded.is_of_another
    state.save(NBD0, dataclasses.replace(RECORD, id="another"))
    assert not attachment.watch._recorded.is_of_another
    attachment.patch(state, "load", lambda _: attachment.written)
    assert attachment.watch._recorded.is_of_another


def test_the_record_of_another_attachment_is_not_written_over(attachment: Attachment) -> None:
    attachment.patch(state, "load", lambda _: attachment.written)
    another = dataclasses.replace(RECORD, id="another")
    state.save(NBD0, another)
    with pytest.raises(Gone):
        attachment.watch._recorded.note(address="192.0.2.9")
    assert attachment.written == another


def test_a_server_that_is_left_by_order_is_known_as_such(attachment: Attachment) -> None:
    """If the user may come back to it by --also; and those before it."""
    recorded = attachment.watched(
        dataclasses.replace(RECORD, also=(NEW, "nbd://db4/disk"), left=(OLD,), using=NEW)
    )._recorded
    recorded.begin(moving_to="nbd://db4/disk")
    recorded.end_move()
    assert (recorded.record.target, recorded.record.using, recorded.record.left) == (OLD, "nbd://db4/disk", (OLD, NEW))
    recorded.begin(moving_to="nbd://db5/disk")
    recorded.end_move()
    assert (recorded.record.target, recorded.record.using) == ("nbd://db5/disk", "")
    assert recorded.record.left == (NEW, "nbd://db4/disk")


def test_an_order_to_the_server_in_use_is_no_move(attachment: Attachment) -> None:
    """So what was written there is still missed by the server that was left."""
    moves: list[int] = []
    attachment.patch(Remembering, "move", lambda _: moves.append(1))
    attachment.watch = attachment.watched(dataclasses.replace(ALSO, using=NEW, left=(OLD,), address=None))
    begin, fresh = attachment.watch._orders._begin, [attachment._dial(Target("db2", export="disk"))]
    begin(fresh, moving_to=NEW)
    assert moves == []
    attachment.watch._recorded.end_move()
    assert attachment.written.left == (OLD,)
    moves_to = "192.0.2.3"
    attachment.patch(planned, "address_of", lambda _: moves_to)
    attachment.watch._recorded.record = dataclasses.replace(attachment.written, address="192.0.2.2")
    begin(fresh, moving_to=NEW)
    attachment.watch._recorded.end_move()
    assert moves == [1]
    assert list(attachment.written.left) == [OLD, f"{NEW} 192.0.2.2"]
    moves_to = "192.0.2.2"
    begin(fresh, moving_to=NEW)  # and back
    attachment.watch._recorded.end_move()
    assert list(attachment.written.left) == [OLD, f"{NEW} 192.0.2.3"]


# -- a device at rest --------------------------------------------------------------------------------------------------


class Resting:
    """An attachment of which all is well and known; `looks` are the whole looks at it."""

    def __init__(self, attachment: Attachment) -> None:
        self.watch, self._sys = attachment.watch, attachment.sys
        self.folder = Path(sysfs.SYS, "block/nbd0")
        (self.folder / "pid").write_text("42\n")
        (self.folder / "backend").write_text("tag\n")
        state.save(NBD0, dataclasses.replace(RECORD, kernel_pid=42, block_size=512))
        attachment.patch(Remembering, "tick", lambda _: True)
        self.watch._mending._settled = True
        self.looks = 0
        look = Links.look

        def counted(links: Links) -> None:
            self.looks += 1
            look(links)

        attachment.patch(Links, "look", counted)
        self.watch.tick()
        self.looks = 0

    def ticks(self, count: int) -> int:
        """How many of them look at the whole device."""
        before = self.looks
        for _ in range(count):
            assert self.watch.tick()
        return self.looks - before


@pytest.fixture
def resting(attachment: Attachment) -> Resting:
    return Resting(attachment)


def test_a_device_at_rest_opens_no_file(resting: Resting) -> None:
    opened: list[str] = []

    def noting(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and noting in active:
            opened.append(str(arguments[0]))

    active = [noting]
    sys.addaudithook(noting)
    looks = resting.ticks(3)
    active.clear()
    assert (looks, opened) == (0, [])


CHANGES: dict[str, Callable[[Resting], object]] = {
    "a request is done": lambda one: one._sys.say(completed=1, inflight=0),
    "a request begins": lambda one: one._sys.say(completed=0, inflight=1),
    "detached": lambda one: (one.folder / "pid").write_text(""),
    "another process": lambda one: (one.folder / "pid").write_text("43\n"),
    "a check is ordered": lambda one: setattr(one.watch._links, "_proven", False),
    "its connection ends": lambda one: one.watch._links.cut(),
    "in trouble": lambda one: setattr(one.watch._mending, "_settled", False),
    "not recorded": lambda one: setattr(one.watch._recorded, "_unsaved", True),
    "a thread works": lambda one: setattr(one.watch, "_thread", threading.current_thread()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_happens_ends_the_rest(resting: Resting, change: Callable[[Resting], object]) -> None:
    change(resting)
    assert resting.ticks(1) == 1


def test_a_write_to_its_node_ends_the_rest(resting: Resting, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be in the page cache only, so that the driver has not seen it."""
    monkeypatch.setattr(pulse, "_touched", lambda _: 1)
    assert (resting.ticks(1), resting.ticks(2)) == (1, 0)


def test_a_request_that_does_not_end_is_looked_at_each_time(resting: Resting) -> None:
    resting._sys.say(completed=0, inflight=1)
    assert resting.ticks(3) == 3


def test_after_a_whole_look_the_rest_begins_again(resting: Resting) -> None:
    resting._sys.say(completed=1, inflight=0)
    assert (resting.ticks(1), resting.ticks(3)) == (1, 0)


def test_only_a_device_that_is_not_at_rest_is_suspected_of_a_dead_connection(
    resting: Resting, attachment: Attachment
) -> None:
    heard: list[None] = []
    attachment.patch(resting.watch, "hear", lambda: heard.append(None))
    resting.watch.suspect()
    assert heard == []
    resting._sys.say(completed=0, inflight=1)
    resting.watch.suspect()
    assert heard == [None]


# -- a pause between two tries -----------------------------------------------------------------------------------------


def test_a_pause_ends_as_soon_as_the_server_takes_connections(attachment: Attachment) -> None:
    answers = iter([False, False, True])
    assert attachment.watch.pause(60, lambda: next(answers), every=0.01)
    assert list(answers) == []


def test_a_pause_in_which_the_server_takes_none_lasts_its_time(attachment: Attachment) -> None:
    asked: list[None] = []

    def is_there() -> bool:
        asked.append(None)
        return False

    began = time.monotonic()
    assert attachment.watch.pause(0.2, is_there, every=0.01)
    assert time.monotonic() - began >= 0.19
    assert asked


def test_other_work_ends_a_pause_with_probes(attachment: Attachment) -> None:
    attachment.watch._ordered.append((lambda: "", lambda _: None))
    assert not attachment.watch.pause(60, lambda: True)


USELESS: dict[str, Callable[[Watch, Outage], None]] = {
    "it fails after the connection": lambda watch, _: setattr(watch._connecting, "fails_beyond", True),
    "it has ended one at once": lambda _, outage: setattr(outage, "resumed", True),
    "it has served nothing": lambda _, outage: setattr(outage, "fruitless", 1),
    "it takes none": lambda *_: None,
}


@pytest.mark.parametrize("what", USELESS)
def test_a_server_whose_connections_are_of_no_use_is_not_probed_in_the_pause(what: str, attachment: Attachment) -> None:
    """Such as a proxy without its server: each probe would succeed, and end the pause."""
    watch, probed, asked = attachment.watch, list[None](), list[object]()
    outage = Outage(watch._mending._terms, boot_time() - 400, "2026-01-02T03:04:05Z")
    USELESS[what](watch, outage)
    attachment.patch(watch._connecting, "probe", lambda: probed.append(None))

    def pause(_: float, until: Callable[[], bool] | None = None, every: float = math.inf) -> bool:
        asked.append(until is not None)
        return True

    attachment.patch(watch, "pause", pause)
    assert watch._mending._pause(outage)
    is_useful = what == "it takes none"
    assert asked == [is_useful]
    assert len(probed) == (not is_useful)  # at its end, so that we know which of both fails next


class Away:
    """An outage of a server that is away; its machine says to each probe that nothing listens there, or nothing.

    `pauses`: seconds of each in which the device's own thread probes; `asked`: of each in which another one does that.
    """

    def __init__(self, attachment: Attachment, age: float = 0.0, suffices: float = 60.0, refused: bool = True) -> None:
        watch = self._watch = attachment.watch
        self.pauses: list[float] = []
        self.asked: list[float] = []
        self.outage = Outage(watch._mending._terms, boot_time() - age, "2026-01-02T03:04:05Z")
        self.outage.lose(boot_time() - age)
        watch._links.cut()
        attachment.patch(Probe, "answer", lambda *_: Answer(None, refused))
        attachment.patch(watch._connecting, "_was_refused", True)
        attachment.patch(watch._connecting, "probes_suffice", lambda _: suffices)
        attachment.patch(watch, "pause", self._pause)

    def _pause(
        self,
        seconds: float,
        until: Callable[[], bool] | None = None,
        every: float = math.inf,
        ended: Callable[[], bool] = lambda: False,
    ) -> bool:
        if until:
            assert not until()
            self.pauses.append(seconds)
        else:
            assert not ended()
            self.asked.append(seconds)
        return True

    def pass_by(self) -> Away:
        """A pause in it."""
        assert self._watch._mending._pause(self.outage)
        assert len(self.pauses) == 1
        return self


def test_while_nothing_listens_a_server_is_asked_and_not_tried(attachment: Attachment) -> None:
    assert Away(attachment, age=100).pass_by().asked == [60]
    assert Away(attachment, age=100, refused=False).pass_by().asked == []


REASONS = {
    "no server listens": (NoConnection(OLD, "cannot connect: Connection refused", "hint"), errno.ECONNREFUSED, True),
    "no socket": (NoConnection(OLD, "cannot connect: No such file or directory", "hint"), errno.ENOENT, True),
    "no way there": (NoConnection(OLD, "cannot connect: No route to host", "hint"), errno.EHOSTUNREACH, False),
    "connected to itself": (NoConnection(OLD, "cannot connect: to itself", "hint"), 0, False),
    "it ended while it was greeting": (ConnectionLost(OLD, "waiting for the greeting"), errno.ECONNRESET, False),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_try_that_failed_for_another_reason_is_made_once_more_so_that_status_has_the_right_one(
    reason: str, attachment: Attachment
) -> None:
    """The first one often meets a server that is just ending."""
    error, number, is_asked = REASONS[reason]

    def dial(*_: object, **__: object) -> Connection:
        raise error from (OSError(number, "") if number else None)

    away = Away(attachment, age=100)
    connecting = attachment.watch._connecting
    attachment.patch(connecting._carrier, "dial", dial)
    with pytest.raises(type(error)):
        connecting.dial_quickly(away.outage)
    assert bool(away.pass_by().asked) == is_asked


def test_probes_end_when_requests_have_to_fail(attachment: Attachment) -> None:
    away = Away(attachment)
    away.outage.terms = dataclasses.replace(away.outage.terms, on_loss=20.0)
    assert away.pass_by().asked == [pytest.approx(20, abs=1)]


@pytest.mark.parametrize("kept", ["alive", "not held"])
def test_while_a_connection_may_live_each_pause_ends_with_a_try(kept: str, attachment: Attachment) -> None:
    away = Away(attachment)
    if kept == "alive":
        attachment.patch(Links, "alive", True)
    else:
        attachment.watch._links.complete = False
    assert away.pass_by().asked == []


def test_a_server_that_is_back_ends_the_pause_and_its_connection_is_used(attachment: Attachment) -> None:
    watch, ours = attachment.watch, socket.socketpair()[0]
    outage = Outage(watch._mending._terms, boot_time(), "2026-01-02T03:04:05Z")
    outage.lose(boot_time())
    watch._links.cut()
    attachment.patch(watch._connecting, "_was_refused", True)
    attachment.patch(watch._connecting, "probes_suffice", lambda _: 600.0)
    attachment.patch(Probe, "answer", lambda *_: Answer(None, refused=True))
    asked = list[None]()

    def begin(_: Probe) -> Asked:
        asked.append(None)
        return Asked(ours, 0) if len(asked) == 3 else Asked(socket.socket(), errno.ECONNREFUSED)

    attachment.patch(Probe, "begin", begin)
    with soon():
        assert watch._mending._pause(outage)
    assert watch._connecting._reached is ours and not watch._connecting.would_fail


def test_an_order_ends_a_pause_in_which_others_ask(attachment: Attachment) -> None:
    watch = attachment.watch
    asked = threading.Event()

    def begin(_: Probe) -> Asked:
        asked.set()
        return Asked(socket.socket(), errno.ECONNREFUSED)

    attachment.patch(Probe, "begin", begin)

    def order() -> None:
        assert asked.wait(60)
        with watch._changed:
            watch._ordered.append((lambda: "", lambda _: None))
            watch._changed.notify_all()

    other = threading.Thread(target=order)
    other.start()
    with soon(), watch._connecting.asked_for_us(lambda: 0.01, watch.wake) as question:
        assert not watch.pause(600, ended=lambda: question.answer is not None)
    other.join()


def test_a_try_follows_when_the_last_connection_has_ended_in_a_pause(attachment: Attachment) -> None:
    """The outage learns of that in it, and --on-loss counts."""
    away = Away(attachment, age=100)
    away.outage.keep(has_served=False)
    assert away.pass_by().asked == []


def test_requests_fail_at_once_if_a_command_held_the_device_until_they_had_to(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(attachment, age=100)
    away.outage.terms = dataclasses.replace(away.outage.terms, on_loss=1000.0)

    def held(*_: object) -> None:
        away.outage.terms = dataclasses.replace(away.outage.terms, on_loss=1.0)

    attachment.patch(attachment.watch._mending, "_say_trouble", held)
    assert away.pass_by().pauses == [0.0]


def test_no_time_of_a_next_try_is_told_while_the_server_is_asked_all_the_time(attachment: Attachment) -> None:
    told = list[str | None]()
    save = state.save_trouble

    def noted(device: Device, trouble: Trouble | None) -> None:
        told.append(trouble.next_try if trouble else "")
        save(device, trouble)

    attachment.patch(state, "save_trouble", noted)
    Away(attachment, age=100).pass_by()
    assert len(told) == 2 and told[0] and told[1] is None


def test_a_device_whose_thread_is_at_work_gets_no_whole_look(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage may be long, and its thread looks by itself."""
    monkeypatch.setattr(attachment.watch, "_thread", threading.current_thread())
    attachment.patch(Rest, "begin", lambda _: pytest.fail("a whole look"))
    attachment.patch(Links, "is_proven", lambda _: pytest.fail("a question to the driver"))
    assert attachment.watch.tick()


def test_a_device_is_not_at_rest_after_work_because_it_was_before(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = attachment.watch._rest
    attachment.patch(pulse.Pulse, "__init__", lambda self, _: setattr(self, "_files", []))
    attachment.patch(pulse.Pulse, "beat", lambda _: (1,))
    rest.note(rest.begin())
    assert rest.goes_on()
    monkeypatch.setattr(attachment.watch, "_thread", threading.current_thread())
    assert attachment.watch.tick()
    assert not rest.goes_on()


def test_the_interface_of_an_address_may_come_later(attachment: Attachment) -> None:
    """As that of a tunnel; and its number may be another one then."""
    found = list[str]()
    attachment.patch(probe, "numeric", lambda _, address: found.append(address))
    connecting = attachment.watch._connecting
    connecting.recorded.record = dataclasses.replace(RECORD, address="fe80::1%eth9")
    assert not connecting.probe() and not connecting.probe()
    assert found == ["fe80::1%eth9"] * 2


@pytest.mark.parametrize(("tls", "wanted", "unix", "is_probed"), [
    (False, "auto", False, True),
    (True, "auto", False, True),
    (True, "relay", False, False),
    (True, "auto", True, False),
])  # fmt: skip
def test_a_relay_connects_by_itself_so_its_server_is_not_probed(
    tls: bool, wanted: str, unix: bool, is_probed: bool, attachment: Attachment
) -> None:
    asked: list[float] = []

    def answer(_: Probe, within: float) -> Answer:
        asked.append(within)
        return Answer(None)

    attachment.patch(Probe, "answer", answer)
    connecting = attachment.watch._connecting
    connecting._carrier._wanted = wanted
    uri = ("nbds" if tls else "nbd") + ("+unix:///disk?socket=/run/s" if unix else "://db1/disk")
    connecting.recorded.record = dataclasses.replace(RECORD, target=uri)
    assert not connecting.probe()
    assert bool(asked) == is_probed


def test_the_connection_of_a_probe_is_used_by_the_next_dial(attachment: Attachment) -> None:
    given: list[object] = []
    ours, theirs = socket.socketpair()

    def dial(*_: object, ready: object, **__: object) -> Connection:
        given.append(ready)
        raise NoConnection(OLD, "no", "hint")

    attachment.patch(attachment.watch._connecting._carrier, "dial", dial)
    attachment.patch(Probe, "answer", lambda *_: Answer(ours))
    connecting = attachment.watch._connecting
    outage = Outage(attachment.watch._mending._terms, boot_time(), "2026-01-02T03:04:05Z")
    assert connecting.probe()
    for beyond in (True, False):
        with pytest.raises(NoConnection):
            connecting.dial_quickly(outage)
        assert connecting.fails_beyond == beyond
    assert given == [ours, None]
    theirs.close()


def test_an_unused_connection_of_a_probe_is_closed(attachment: Attachment) -> None:
    sockets = [socket.socketpair() for _ in range(2)]
    made = iter([ours for ours, _ in sockets])
    attachment.patch(Probe, "answer", lambda *_: Answer(next(made)))
    connecting = attachment.watch._connecting
    for _ in sockets:
        assert connecting.probe()
    connecting.close()
    assert [theirs.recv(1) for _, theirs in sockets] == [b"", b""]


def test_a_device_that_rests_long_is_suspected_now_and_then(resting: Resting, attachment: Attachment) -> None:
    heard: list[None] = []
    attachment.patch(resting.watch, "hear", lambda: heard.append(None))
    for _ in range(watch_module._RESTS):
        resting.watch.suspect()
    assert heard == [None]


def test_time_at_rest_is_not_time_in_which_a_request_was_stuck(
    resting: Resting, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = resting.watch._links
    links._moved -= 9
    assert resting.ticks(1) == 0
    assert time.monotonic() - links._moved < 5


def test_a_connection_that_another_thread_closes_meanwhile_is_no_fault(
    resting: Resting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: Links) -> bool:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(Links, "at_rest", property(closed))
    assert not resting.watch._is_at_rest
