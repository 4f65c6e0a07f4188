# SPDX-License-Identifier: GPL-2.0-or-later
"""All orders of events: restarts, slow servers, cut links, late drivers, orders from the command line, kills of the
monitor. `world` lists the events that must never happen; here are those that may, and they always end well.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable

import pytest
import world as world_module
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_driver import MIB, ON_LOSS, has_ended
from world import AWAY, HOME, ModelLink, Server, World

from nbdattach.attached import state
from nbdattach.connection.client import Connection
from nbdattach.deadline import Deadline
from nbdattach.errors import NoConnection
from nbdattach.monitor.links import Gone
from nbdattach.protocol.target import Target

pytestmark = pytest.mark.once
# Most events happen to the server of the device.
at_ours = st.sampled_from([True, True, True, False])


def any_server(fits: Callable[[Server], bool]) -> Callable[[Events], bool]:
    return lambda events: any(map(fits, events.world.servers.values()))


class Events(RuleBasedStateMachine):
    """One device and all that happens to it."""

    @initialize(
        connections=st.sampled_from([1, 1, 2]),
        on_loss=st.sampled_from([ON_LOSS, ON_LOSS, 5.0, 0.0]),
        busy=st.sampled_from([False, False, False, True]),
        ends=st.sampled_from([False, False, False, True]),
    )
    def attach(self, connections: int, on_loss: float, busy: bool, ends: bool) -> None:
        self.world = World(connections, on_loss)
        self.world.busy = busy or ends
        if ends:  # chance seldom finds it later
            self.one_ends_and_then_its_children_do(True, 0.0)

    def server(self, ours: bool, fits: Callable[[Server], bool]) -> Server:
        """The device's one, or the other one; one that fits, if there is any."""
        here = self.world.servers[self.world.watch._recorded.target.uri]
        both = sorted(self.world.servers.values(), key=lambda one: (one is here) != ours)
        return next(filter(fits, both))

    # -- servers ---------------------------------------------------------------------------------------------------

    @precondition(any_server(lambda one: one.lives))
    @rule(ours=at_ours)
    def one_dies(self, ours: bool) -> None:
        self.server(ours, lambda one: one.lives).die()
        self.world.go_on()

    @precondition(any_server(lambda one: one.refuses))
    @rule(ours=at_ours)
    def one_comes_back(self, ours: bool) -> None:
        self.server(ours, lambda one: one.refuses).come_back()

    @precondition(any_server(lambda one: not one.refuses))
    @rule(ours=at_ours)
    def one_listens_no_more(self, ours: bool) -> None:
        """Its connections go on: a child of its own serves each."""
        self.server(ours, lambda one: not one.refuses).listens = False

    @precondition(any_server(lambda one: not one.refuses))
    @rule(ours=at_ours, after=st.sampled_from([0.0, 0.0, 0.5, 10.0]))
    def one_ends_and_then_its_children_do(self, ours: bool, after: float) -> None:
        """One by one, while the monitor pauses."""
        server = self.server(ours, lambda one: not one.refuses)
        server.listens = False
        server.end_one()
        self.world.meanwhile(server.end_one, after)
        self.world.go_on()
        self.world.step(pauses=10)

    @precondition(any_server(lambda one: bool(one.accepted)))
    @rule(ours=at_ours)
    def a_connection_ends(self, ours: bool) -> None:
        self.server(ours, lambda one: bool(one.accepted)).end_one()
        self.world.go_on()

    @precondition(any_server(lambda one: one.reads))
    @rule(ours=at_ours)
    def a_link_is_cut(self, ours: bool) -> None:
        self.server(ours, lambda one: one.reads).be_silent(self.world.now)

    @precondition(any_server(lambda one: one.silent))
    @rule(ours=at_ours)
    def a_link_heals(self, ours: bool) -> None:
        self.server(ours, lambda one: one.silent).silent_since = math.inf
        self.world.go_on()

    @precondition(any_server(lambda one: one.reads))
    @rule(ours=at_ours)
    def one_is_at_a_long_write(self, ours: bool) -> None:
        self.server(ours, lambda one: one.reads).slow = True

    @precondition(any_server(lambda one: one.slow))
    @rule(ours=at_ours)
    def a_long_write_ends(self, ours: bool) -> None:
        self.server(ours, lambda one: one.slow).slow = False
        self.world.go_on()

    @precondition(any_server(lambda one: one.reads))
    @rule(ours=at_ours)
    def one_answers(self, ours: bool) -> None:
        self.server(ours, lambda one: one.reads).answer()
        self.world.go_on()

    @rule(quick=st.booleans())
    def servers_answer_at_once(self, quick: bool) -> None:
        self.world.quick = quick

    @rule(ours=at_ours)
    def one_has_another_size(self, ours: bool) -> None:
        server = self.server(ours, lambda one: True)
        server.size = 3 * MIB - server.size  # of two

    # -- this machine ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.world.driver.request)
    @rule(flush=st.booleans())
    def a_request_comes(self, flush: bool) -> None:
        self.world.submit(flush)

    @rule(busy=st.booleans())
    def a_program_goes_on_when_a_request_has_failed(self, busy: bool) -> None:
        self.world.busy = busy

    @rule(late=st.sampled_from([0.0, 0.05, 20.0]))
    def the_driver_is_late(self, late: float) -> None:
        self.world.driver.late = late

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0]), pauses=st.sampled_from([1, 2, 2, 20, 100]))
    def the_monitor_looks_later(self, seconds: float, pauses: int) -> None:
        self.world.clock.sleep(seconds)
        self.world.step(pauses)

    @rule(times=st.integers(1, 12))
    def the_monitor_goes_on_for_a_while(self, times: int) -> None:
        for _ in range(times):
            self.world.clock.sleep(1)
            self.world.step()

    @rule(
        ours=at_ours,
        event=st.sampled_from(["heals", "dies", "comes back", "ends one"]),
        after=st.sampled_from([0.0, 0.0, 0.5, 10.0]),
    )
    def something_happens_while_the_monitor_pauses(self, ours: bool, event: str, after: float) -> None:
        def heal() -> None:
            server.silent_since = math.inf

        server = self.server(ours, lambda _: True)
        events = {"heals": heal, "dies": server.die, "comes back": server.come_back, "ends one": server.end_one}
        self.world.meanwhile(events[event], after)

    @rule(to=st.sampled_from([None, AWAY]))
    def reconnect(self, to: str | None) -> None:
        self.world.order(to)

    @rule()
    def resize(self) -> None:
        self.world.order(None, size=True)

    @rule(after=st.integers(0, 12))
    def the_monitor_will_be_killed(self, after: int) -> None:
        self.world.kills_in = after

    @rule()
    def the_monitor_is_killed(self) -> None:
        self.world.monitor_dies()

    # -- and all is well in the end --------------------------------------------------------------------------------

    @invariant()
    def no_request_is_lost(self) -> None:
        driver = self.world.driver
        known = len(driver.done) + len(driver.failed) + (driver.request is not None)
        assert known == self.world.submitted

    def teardown(self) -> None:
        world = self.world
        with world:
            world.all_is_well()
            for _ in range(20):
                world.clock.sleep(5)
                world.step()
                for server in world.servers.values():
                    server.answer()
                world.go_on()
            assert world.driver.connected
            assert world.driver.request is None
            assert state.trouble_of(world.watch.device) is None
            world.submit()
            world.servers[world.watch._recorded.target.uri].answer()
            world.go_on()
            assert world.driver.done[-1] == world.submitted


# -- cases that chance seldom finds ------------------------------------------------------------------------------------


def lost_for_long(world: World) -> None:
    """Until --on-loss has passed, and requests have failed."""
    world.driver.submit(1)
    world.servers[HOME].die()
    for _ in range(100):
        world.clock.sleep(5)
        world.step()
    assert world.driver.failed == [1]


def test_requests_fail_at_once_when_a_server_that_came_back_too_late_dies_unserved() -> None:
    with World(1) as world:
        lost_for_long(world)
        world.servers[HOME].lives = True
        world.clock.sleep(1)
        world.step()
        assert world.driver.connected
        world.servers[HOME].die()
        world.driver.submit(2)
        world.clock.sleep(1)
        world.step()
        assert world.driver.failed == [1, 2]


def test_a_link_that_recovers_by_itself_after_a_restart_of_its_server_is_left_alone() -> None:
    """It was silent before the new connection had served anything, so the outage goes on; but nothing is dead."""
    with World(1) as world:
        home = world.servers[HOME]
        home.die()
        world.step()
        home.lives = True
        world.clock.sleep(1)
        world.step()
        home.be_silent(world.now)
        world.clock.sleep(3)

        def heal() -> None:
            home.silent_since = math.inf

        world.meanwhile(heal)
        before = len(home.accepted)
        world.step(pauses=200)
        assert world.driver.connected and state.trouble_of(world.watch.device) is None
        assert len(home.accepted) - before <= 1  # it was dialled once, to see whether it answers


def go_on(world: World, seconds: int) -> None:
    end = world.now + seconds
    while world.now < end:
        world.clock.sleep(1)
        world.step()


@pytest.mark.parametrize("on_loss", [0.0, 5.0, 40.0])
def test_on_loss_counts_from_the_end_of_the_last_connection_though_that_comes_while_the_monitor_pauses(
    on_loss: float,
) -> None:
    """The server has ended before, and only its children were left."""
    with World(2, on_loss) as world:
        home = world.servers[HOME]
        world.busy, home.listens = True, False
        home.end_one()
        world.meanwhile(home.end_one)
        world.go_on()
        began = world.now
        world.step(pauses=40)  # `see_that_nothing_waits_for_ever` is asked meanwhile
        assert world.driver.failed and world.now > began + on_loss


def test_the_last_connection_has_its_own_on_loss_after_another_monitor_was_killed() -> None:
    """One of two had ended long before, and the server took no other."""
    with World(2, 5.0) as world:
        home = world.servers[HOME]
        home.listens = False
        home.end_one()
        world.step()
        world.monitor_dies()
        go_on(world, 20)
        home.die()
        world.submit()
        go_on(world, 3)  # `Driver.reconfigure` would say that requests fail too soon
        assert world.driver.request
        go_on(world, 20)
        assert world.driver.failed == [1]


def test_what_is_served_while_a_connection_is_handed_over_ends_the_outage() -> None:
    """The next loss is another one, and --on-loss begins again."""
    with World(1) as world:
        home, world.quick = world.servers[HOME], True
        home.die()
        world.driver.submit(1)
        go_on(world, 250)
        home.lives = True
        go_on(world, 6)
        assert world.driver.done == [1]
        home.die()
        world.driver.submit(2)
        go_on(world, 250)
        assert world.driver.failed == []
        go_on(world, 60)
        assert world.driver.failed == [2]


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("lives", [1, 14, 60])
def test_requests_fail_after_on_loss_though_a_server_comes_again_and_again_and_serves_none(
    connections: int, lives: int
) -> None:
    with World(connections) as world:
        home = world.servers[HOME]
        home.die()
        world.driver.submit(1)
        while not world.driver.failed:
            home.lives = True
            go_on(world, lives)
            home.die()
            go_on(world, 2)  # `see_that_nothing_waits_for_ever` ends this
        assert world.driver.failed == [1]


def test_nothing_fails_while_a_connection_lives_that_a_restarted_monitor_does_not_hold() -> None:
    """One of two was cut by the monitor before, which was killed, and no other can be made."""
    with World(2) as world:
        home = world.servers[HOME]
        world.watch._links._links[0].cut()
        world.monitor_dies()
        home.size = 2 * MIB  # so it is refused
        go_on(world, int(ON_LOSS) + 100)
        assert world.driver._patience == ON_LOSS
        assert not any("requests fail" in line for line in world.log)


def test_a_restarted_monitor_leaves_a_connection_alone_that_recovers_beside_one_that_it_does_not_hold() -> None:
    with World(2) as world:
        home, world.quick = world.servers[HOME], True
        world.monitor_dies()
        home.accepted.pop().sock.close()
        go_on(world, 3)
        assert world.driver.connected and len(world.watch._links._links) == 1
        world.driver.submit(1)
        go_on(world, 20)
        dial, dials = world.watch._connecting._carrier.dial, [0]

        def recover(*arguments: object, **more: object) -> Connection:
            dials[0] += 1
            home.silent_since = math.inf
            return dial(*arguments, **more)  # type: ignore[arg-type]

        world.watch._connecting._carrier.dial = recover  # type: ignore[method-assign]
        home.silent_since = world.now - 1.5
        began = world.now
        go_on(world, 60)
        assert (dials[0], state.trouble_of(world.watch.device)) == (1, None)
        assert world.now < began + 65  # it offered nothing to a driver that had no place


def test_a_loss_right_after_an_outage_that_is_over_is_told_as_its_own() -> None:
    """Requests were served in between. Since the other connection serves, the pause before the first try is short."""
    with World(2) as world:
        home, world.quick = world.servers[HOME], True
        home.die()
        go_on(world, 250)
        home.lives = True
        go_on(world, 6)
        assert world.driver.connected
        world.driver.submit(1)
        go_on(world, 2)
        home.accepted.pop().sock.close()
        world.go_on()
        began = world.now
        world.step()
        world.step()
        assert world.driver.connected and world.now < began + 2
        assert "connected again after 0." in world.log[-1]


def test_a_connection_that_is_silent_does_not_make_requests_wait_again() -> None:
    """They fail, and the first of two new connections is silent from the beginning."""
    with World(2) as world:
        home = world.servers[HOME]
        have_one_place(world)
        lost_for_long(world)
        home.lives = home.slow = True
        hand_over = world.watch._connecting.hand_over

        def hand_over_a_silent_one(fresh: Connection, noticed: Deadline) -> bool:
            taken = hand_over(fresh, noticed)
            home.be_silent(world.now - 1.5)
            return taken

        world.watch._connecting.hand_over = hand_over_a_silent_one  # type: ignore[method-assign]
        while not home.accepted:
            go_on(world, 1)
        go_on(world, 5)
        assert home.accepted and world.driver._patience == 0
        home.silent_since = math.inf
        go_on(world, 5)
        assert world.driver._patience == ON_LOSS


def script(world: World, events: list[tuple[float, Callable[[], object]]], always: Callable[[], object]) -> None:
    """Each event happens at its moment, also while the monitor waits for something."""
    go_on_as_before = world.go_on

    def go_on_with_events() -> None:
        while events and world.now >= events[0][0]:
            events.pop(0)[1]()
        go_on_as_before()
        always()

    world.go_on = go_on_with_events  # type: ignore[method-assign]


def test_a_server_that_is_restarted_a_few_times_and_then_is_well_serves_soon() -> None:
    """Though a request was under way at the first loss that comes back to the driver much later."""
    with World(2, 5.0, io_timeout=600) as world:
        home = world.servers[HOME]
        home.slow = True
        world.driver.submit(1)

        def come_back() -> None:
            home.lives = home.slow = True

        def be_well() -> None:
            home.lives, home.slow, world.quick = True, False, True

        began = world.now + 1
        events: list[tuple[float, Callable[[], object]]] = [(began, home.die)]
        for number in range(3):
            events += [(began + 9 + 17 * number, come_back), (began + 17 + 17 * number, home.die)]
        script(world, [*events, (began + 60, be_well)], lambda: None)
        go_on(world, 70)
        while not (world.driver.connected and world.driver._patience == 5):
            go_on(world, 1)
        assert world.now < began + 130


def test_a_plain_outage_longer_than_on_loss_ends_as_soon_as_the_server_is_back() -> None:
    """A program goes on to try, and each request fails at once. Requests that wait do not prove that it is stuck."""
    with World(2, io_timeout=60) as world:
        home, number = world.servers[HOME], iter(range(2, 100_000))
        world.quick = home.slow = True
        world.driver.submit(1)
        home.die()
        began = world.now

        def try_again() -> None:
            if world.driver.request is None:
                world.driver.submit(next(number))

        script(world, [(began + ON_LOSS + 3, lambda: setattr(home, "lives", True))], try_again)
        while not world.driver._lives:
            world.clock.sleep(1)
            world.step(pauses=3)
            assert world.now < began + ON_LOSS + 40
        assert world.driver.failed


@pytest.mark.parametrize("other_work", [False, True])
def test_a_command_that_holds_the_device_while_the_server_comes_back_makes_no_request_fail(other_work: bool) -> None:
    """Nor does an order that came meanwhile."""
    with World(2, 20.0) as world:
        home, watch = world.servers[HOME], world.watch
        dial = watch._connecting._carrier.dial

        def held_meanwhile(*arguments: object, **more: object) -> Connection:
            made = dial(*arguments, **more)  # type: ignore[arg-type]
            watch._connecting._carrier.dial = dial  # type: ignore[method-assign]
            watch.hold()
            world.clock.sleep(3)
            watch._access.give_back()
            if other_work:
                watch._ordered.append((lambda: "", lambda _: None))
            return made

        watch._connecting._carrier.dial = held_meanwhile  # type: ignore[method-assign]
        world.driver.submit(1)
        home.die()
        world.quick = True
        until(world, world.now + 18)
        home.lives = True
        while not watch._ordered and not world.driver.done:
            until(world, world.now + 0.2)
        watch._ordered.clear()
        until(world, world.now + 20)
        assert (world.driver.failed, world.driver.done) == ([], [1])


@pytest.mark.parametrize("late", [0.02, 0.05, 0.5])
def test_a_restarted_monitor_does_not_take_a_dead_server_for_well_while_the_driver_is_late(late: float) -> None:
    """It asks by scouts, and the driver has to notice the end of each before the next one says anything."""
    with World(2) as world:
        home = world.servers[HOME]
        world.monitor_dies()
        world.driver.late = late
        world.driver.submit(1)
        home.die()
        began = world.now
        while not world.driver.failed:
            go_on(world, 1)
            assert world.now < began + ON_LOSS + 60
        assert not any("connected again" in line for line in world.log)


def have_one_place(world: World) -> None:
    """From now on the server takes one connection at a time."""
    home, dial = world.servers[HOME], world.watch._connecting._carrier.dial

    def dial_if_there_is_room(*arguments: object, **more: object) -> Connection:
        ready = more.get("ready")
        if len(home.accepted) > bool(ready):
            if isinstance(ready, socket.socket):
                ready.close()
            raise NoConnection(HOME, "no place", "")
        return dial(*arguments, **more)  # type: ignore[arg-type]

    world.watch._connecting._carrier.dial = dial_if_there_is_room  # type: ignore[method-assign]


@pytest.mark.parametrize("busy", [True, False])
def test_nothing_fails_while_one_of_two_connections_lives(busy: bool) -> None:
    """The server has one place only after a restart, for longer than --on-loss; then it restarts once more."""
    with World(2) as world:
        home = world.servers[HOME]
        have_one_place(world)
        world.quick = True
        home.die()
        go_on(world, 1)
        home.lives = True
        for number in range(400):
            go_on(world, 1)
            if busy:
                world.driver.submit(number)
                world.go_on()
        home.die()
        world.driver.submit(400)
        go_on(world, 3)
        home.lives = True
        go_on(world, 10)
        assert (world.driver.failed, world.driver.done[-1]) == ([], 400)


def owed(link: ModelLink) -> float:
    """Silence of a link that loses all but small packets: it owes an answer as soon as a request is sent."""
    request = link._world.driver.request
    if link.over or request is None or request.slot is None or request.slot.sock.fileno() < 0:
        return 0.0
    same = os.fstat(link.fileno()).st_ino == os.fstat(request.slot.sock.fileno()).st_ino
    return link._world.now - request.sent if same else 0.0


@pytest.mark.parametrize("connections", [1, 2, 3])
@pytest.mark.parametrize("on_loss", [0.0, 5.0, ON_LOSS])
@pytest.mark.parametrize("io_timeout", [3.0, 15.0, 60.0])
def test_requests_fail_after_on_loss_though_connections_come_to_be_over_which_nothing_gets_through(
    connections: int, on_loss: float, io_timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several connections, one is always without a request, and so owes no answer."""
    monkeypatch.setattr(ModelLink, "silence", property(owed))
    monkeypatch.setattr(world_module.World, "check", lambda _: None)  # each connection is cut, and has reason to be
    with World(connections, on_loss, io_timeout) as world:
        world.servers[HOME].slow = True
        world.driver.submit(1)
        began = world.now
        while not world.driver.failed:
            go_on(world, 5)
            assert world.now < began + on_loss + (2 * connections + 4) * (io_timeout + 2) + 100


@pytest.mark.parametrize("connections", [1, 2])
def test_the_driver_has_closed_all_dead_connections_before_it_gets_a_new_one(
    connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS by the kernel knows no other reset, and TCP would go on to send its data."""

    def bury(link: ModelLink, _: object) -> bool:
        link.cut()
        link.close()
        return False

    monkeypatch.setattr(ModelLink, "bury", bury)
    with World(connections) as world:
        old = [slot.sock for slot in world.driver.slots]
        still_open: list[int] = []
        taken = world.taken

        def taken_now(number: int) -> bool:
            leads_to_a_server = taken(number)
            if leads_to_a_server:
                still_open.append(sum(sock.fileno() >= 0 for sock in old))
            return leads_to_a_server

        world.taken = taken_now  # type: ignore[method-assign]
        world.servers[HOME].be_silent(world.now)
        go_on(world, 10)
        world.servers[HOME].silent_since = math.inf
        go_on(world, 10)
        assert still_open == [0] * connections


def until(world: World, moment: float) -> None:
    while world.now < moment:
        world.step(pauses=1)
        world.clock.sleep(0.1)


def come_back_late(connections: int) -> World:
    """After a long outage the server is back, and is at the first request of the new connection."""
    world = World(connections, io_timeout=30)
    home = world.servers[HOME]
    lost_for_long(world)
    home.lives = home.slow = True
    while not world.driver.connected:
        go_on(world, 1)
    world.driver.submit(2)
    world.clock.sleep(3)
    return world


def refuse_others(world: World, _: float) -> None:
    world.clock.sleep(0.01)
    raise NoConnection(HOME, "no place", "")


def recover_soon(world: World, within: float) -> None:
    world.clock.sleep(min(within, 0.7))
    if within < 0.7:
        raise NoConnection(HOME, "timed out", "")
    world.servers[HOME].silent_since = math.inf


def hiccup(world: World, when_dialled: Callable[[World, float], None]) -> None:
    """1.5 seconds of silence, while the monitor dials as it does."""
    home, dial = world.servers[HOME], world.watch._connecting._carrier.dial

    def dialled(target: Target, dead_peer: float, within: float, *arguments: object, **more: object) -> Connection:
        if home.silent:
            when_dialled(world, within)
        return dial(target, dead_peer, within, *arguments, **more)  # type: ignore[arg-type]

    world.watch._connecting._carrier.dial = dialled  # type: ignore[method-assign,assignment]
    home.silent_since = world.now - 1.5
    world.step(pauses=2)
    home.silent_since = math.inf
    world.step(pauses=1)
    world.watch._connecting._carrier.dial = dial  # type: ignore[method-assign]


def test_no_connection_is_idle_at_its_server_while_requests_are_made_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server might end it meanwhile. So requests fail first, and then the server is dialled."""
    monkeypatch.setattr(ModelLink, "silence", property(owed))
    monkeypatch.setattr(world_module.World, "check", lambda _: None)
    with World(1) as world:
        home, await_failure = world.servers[HOME], world.watch._links.await_failure
        idle: list[int] = []

        def look_meanwhile(go_on: Callable[[], bool], all_of_them: bool) -> bool:
            idle.append(sum(not (one.taken or has_ended(one.sock)) for one in home.accepted))
            return await_failure(go_on, all_of_them)

        world.watch._links.await_failure = look_meanwhile  # type: ignore[method-assign]
        home.slow = True
        for number in range(3):
            world.driver.submit(number)
            while world.driver.request:
                go_on(world, 5)
        assert len(idle) >= 2 and not any(idle)


def serve(world: World) -> None:
    """All requests, also those that the driver has yet to send again."""
    world.servers[HOME].slow = False
    world.quick = True
    go_on(world, 40)


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("hiccups", [1, 3])
@pytest.mark.parametrize("when_dialled", [refuse_others, recover_soon])
def test_a_hiccup_right_after_a_long_outage_fails_nothing_and_ends_no_connection(
    connections: int, hiccups: int, when_dialled: Callable[[World, float], None]
) -> None:
    with come_back_late(connections) as world:
        for _ in range(hiccups):
            hiccup(world, when_dialled)
            world.clock.sleep(2)
        serve(world)
        assert (world.driver.failed, world.driver.done) == ([1], [2])


@pytest.mark.parametrize("connections", [1, 2])
def test_a_connection_that_was_silent_before_proves_nothing_against_the_good_one_that_replaces_it(
    connections: int,
) -> None:
    with come_back_late(connections) as world:
        hiccup(world, recover_soon)
        home = world.servers[HOME]
        home.be_silent(world.now - 1.5)
        silent_since = home.silent_since
        dial = world.watch._connecting._carrier.dial

        def by_another_way(*arguments: object, **more: object) -> Connection:
            home.silent_since = math.inf
            made = dial(*arguments, **more)  # type: ignore[arg-type]
            home.silent_since = silent_since
            return made

        hand_over = world.watch._connecting.hand_over

        def by_the_same_way(fresh: Connection, noticed: Deadline) -> bool:
            nonlocal silent_since
            silent_since = home.silent_since = math.inf
            return hand_over(fresh, noticed)

        world.watch._connecting._carrier.dial = by_another_way  # type: ignore[method-assign]
        world.watch._connecting.hand_over = by_the_same_way  # type: ignore[method-assign]
        world.step(pauses=2)
        serve(world)
        assert (world.driver.failed, world.driver.done) == ([1], [2])


@pytest.mark.parametrize("connections", [1, 2])
def test_tries_have_pauses_and_time_while_a_connection_is_silent_though_on_loss_is_fail(connections: int) -> None:
    with World(connections, on_loss=0.0, io_timeout=30) as world:
        home = world.servers[HOME]
        home.die()
        go_on(world, 20)
        home.lives = home.slow = True
        while not world.driver.connected:
            go_on(world, 1)
        world.driver.submit(1)
        world.clock.sleep(3)
        home.silent_since = world.now - 1.5
        began, withins = world.now, []

        def refuse(_target: Target, _dead_peer: float, within: float, *_: object, **__: object) -> Connection:
            withins.append(within)
            raise NoConnection(HOME, "connection refused", "")

        world.watch._connecting._carrier.dial = refuse  # type: ignore[method-assign,assignment]
        world.step(pauses=20)
        assert min(withins) >= 3.0  # seconds, the least of a try
        assert world.now >= began + 19 * 0.2  # 20 pauses
        assert world.driver._lives


@pytest.mark.parametrize("event", ["ends", "is held"])
def test_a_new_connection_is_ended_properly_if_it_is_not_handed_over(event: str) -> None:
    """The attachment ended while it was dialled, or a command has held the device, and the server ended it perhaps."""
    with World(1) as world:
        home, watch = world.servers[HOME], world.watch
        dial, said = watch._connecting._carrier.dial, list[int]()

        def meanwhile(*arguments: object, **more: object) -> Connection:
            made = dial(*arguments, **more)  # type: ignore[arg-type]

            def run(_: object) -> None:
                said.append(made.stream.sock.fileno())

            made.stream.run = run  # type: ignore[method-assign,assignment]
            if event == "ends":
                watch._access._is_there = lambda: False
            else:
                watch.hold()
                watch._access.give_back()
            watch._connecting._carrier.dial = dial  # type: ignore[method-assign]
            return made

        home.die()
        home.lives = True
        watch._connecting._carrier.dial = meanwhile  # type: ignore[method-assign]
        with contextlib.suppress(Gone):
            world.step()
        assert len(said) == 1
        if event == "is held":
            go_on(world, 3)
            assert world.driver.connected


def test_no_connection_of_a_probe_stays_at_the_server_while_an_order_comes_first() -> None:
    """The order dials, and the server may have one place only; or a command holds the device for long."""
    with World(1) as world:
        home, watch = world.servers[HOME], world.watch

        def come_back() -> None:
            home.come_back()
            world._asking.ask()
            watch._ordered.append((lambda: "", lambda _: None))

        home.die()
        world.meanwhile(come_back, 5.0)
        world.step(pauses=20)
        assert watch._ordered
        home.read()
        assert home.accepted == []


@pytest.mark.parametrize("call", ["hear", "tick"])
def test_what_a_dead_connection_has_not_delivered_is_dropped_while_the_thread_dials(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[ModelLink] = []
    monkeypatch.setattr(ModelLink, "drop_undelivered", lambda link: dropped.append(link))
    with World(2) as world:
        dead, _ = world.watch._links._links
        socket.socket.shutdown(dead._sock, socket.SHUT_RDWR)
        getattr(world.watch, call)()
        assert dropped == [dead]
        dropped.clear()
        world.watch.hold()
        getattr(world.watch, call)()
        assert dropped == []  # a command is at the device


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_server_that_ends_each_second_connection_is_dialled_with_pauses(busy: bool, at_once: bool) -> None:
    """The first one serves, and after a hand-over it is not known which of them does."""
    with World(2) as world:
        home, hand_over, dials = world.servers[HOME], world.watch._connecting.hand_over, [0]

        def ends() -> None:
            home.accepted.pop().sock.close()
            world.go_on()

        def hand_over_for_nothing(fresh: Connection, noticed: Deadline) -> bool:
            dials[0] += 1
            taken = hand_over(fresh, noticed)
            if at_once:
                ends()
            return taken

        world.watch._connecting.hand_over = hand_over_for_nothing  # type: ignore[method-assign]
        world.quick = True
        ends()
        began = world.now
        for number in range(4 if at_once else 40):
            if busy:
                world.driver.submit(number)
                world.go_on()
            world.step(pauses=20)
            if not at_once and len(home.accepted) == 2:
                ends()
        assert dials[0] < 10 + (world.now - began) / 0.2  # seconds, the least pause


def test_what_a_dead_connection_has_not_delivered_is_dropped_while_no_other_can_be_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver has shut it down while the thread dials, and sends its requests over the other one."""
    dropped: list[ModelLink] = []
    monkeypatch.setattr(ModelLink, "drop_undelivered", lambda link: dropped.append(link))
    with World(2) as world:
        one, _ = held = world.watch._links._links
        monkeypatch.setattr(ModelLink, "silence", property(lambda link: 2.0 if link is one and not link.over else 0.0))
        monkeypatch.setattr(world_module.World, "check", lambda _: None)
        monkeypatch.setattr(world.watch._mending, "_give_up_silent", lambda _: None)
        monkeypatch.setattr(world.watch._connecting._carrier, "dial", lambda *_, **__: refuse_others(world, 0))
        world.meanwhile(lambda: socket.socket.shutdown(one._sock, socket.SHUT_RDWR))
        world.step(pauses=3)
        assert held[0] in dropped and held[1] not in dropped


def test_the_only_place_of_a_server_that_came_just_in_time_is_kept_while_it_is_at_its_first_request() -> None:
    with World(2) as world:
        home = world.servers[HOME]
        have_one_place(world)
        world.driver.submit(1)
        home.die()
        until(world, world.now + 294)
        home.lives = home.slow = True
        came = world.now
        until(world, came + 4)
        assert world.driver._lives
        until(world, came + 8)  # --on-loss has passed since
        home.slow = False
        home.answer()
        go_on(world, 3)
        assert (world.driver.failed, world.driver.done) == ([], [1])


# 45 seconds, and four times as many beside all other lanes of make test.
TestEvents = pytest.mark.timeout(900)(Events.TestCase)
# make test has a fixed budget; these need a larger one than others, because a fault takes several events in a row.
TestEvents.settings = settings(stateful_step_count=40, max_examples=max(200, settings().max_examples))
