# SPDX-License-Identifier: GPL-2.0-or-later
"""One outage of an attachment's server: facts and times go in, the next step comes out. No kernel, no socket, no clock.

Theory of operation. An outage begins with the first sign of trouble: a connection is silent, or dead.

    silent   the server owes an answer and sends none. We dial another connection: if the server answers there, the old
             connection is useless. If the old connection recovers by itself, there was no outage.
    dead     it has ended, or we have cut it. Requests wait in the driver for a new one. From now on --on-loss counts.
    lives    a connection is alive, also if it is silent: no request fails. But --on-loss counts on if it dies before it
             has served a request ("fruitless").
    failing  --on-loss has passed and no connection is alive: requests fail, and we go on trying.
    over     the driver has all its connections.

All times are seconds of CLOCK_BOOTTIME (`clock.boot_time`): it does not step when a user sets the clock, and it goes on
while the machine sleeps.
"""

from __future__ import annotations

import dataclasses
import math

from nbdattach.immutable import immutable

# The first try is at once; each pause is the age of the outage / _SHARE, between FIRST_PAUSE and MAX_PAUSE.
FIRST_PAUSE = 0.25
MAX_PAUSE = 5.0
_SHARE = 80
_MOST_REPEATS = 8
# So many useless connections in a row prove that the next one will be useless, too.
_SILENT_PROVE, _ENDED_PROVE = 2, 4
# While the server's machine says that nothing listens there, a bare connect says as much as a whole try. It is made
# more often at first, as a server that restarts is back soon, and in any case at least once in a second.
_PROBE_SHARE, MAX_PROBE = 8, 0.8
# Random share, so that many devices do not try at the same moment.
_SPREAD = 0.2
# Least time that TCP gets for one try. It is short, because a lost SYN must not delay the next try.
_LEAST_CONNECT = 0.5
_LEAST_DIAL = 3.0
_ROUND_TRIPS = 5
_LEAST_WAIT = 0.01
# Many devices may lose one server at once, so we update status only this often: users do not look more often.
_SAY_AGAIN = 1.0
# If a new connection dies within so many seconds and has served no request, the outage was not over.
FRUITLESS = 10.0


@immutable
class Terms:
    """The options of connect. `on_loss` is None if requests wait for ever."""

    on_loss: float | None
    dead_peer: float
    connect_timeout: float


@dataclasses.dataclass(slots=True)
class Outage:
    """`since` is `began` as text for users; `died` is None while connections are only silent."""

    terms: Terms
    began: float
    since: str
    error: str = ""  # of the last try
    said: float = -math.inf  # when we last updated status
    says_next: bool = False  # whether status has the time of the next try since then
    died: float | None = None
    told: bool = False  # whether the driver and the log know of it
    failing: bool = False
    lives: bool = False  # whether any connection is alive
    gained: bool = False  # whether the driver took a new connection since the last moment without any
    fruitless: int = 0  # how often it had none again, and the new one had served no request
    silent: int = 0  # how many of those we cut because they were silent
    stuck: bool = False  # whether a connection that was alive served no request for long
    resumed: bool = False  # whether it has seemed to be over
    repeats: int = 0  # how many outages like this one came just before, each right after a hand-over

    def age(self, now: float) -> float:
        return now - self.began

    def gone(self, now: float) -> float:
        """Seconds for which no connection has lived; 0 while one does."""
        return 0.0 if self.died is None or self.lives else max(0.0, now - self.died)

    def gain(self) -> None:
        """The driver took a new connection."""
        self.gained, self.stuck = True, False

    def cut_silent(self) -> None:
        """We cut silent connections, because the server answers a new one; to be called before `lose`."""
        self.silent += self.gained

    def lose(self, now: float) -> None:
        """No connection is alive, or those that are have stopped to serve."""
        self.fruitless += self.gained
        self.lives = self.gained = False
        self.repeats = 0  # they count while another connection serves
        if self.died is None:
            self.died = now

    def keep(self, has_served: bool) -> None:
        """A connection is alive. Only if one answers and `has_served` a request is the loss over."""
        self.lives = True
        if has_served:
            self.died, self.gained, self.fruitless, self.silent, self.stuck = None, False, 0, 0, False

    def start_counting(self) -> None:
        """All requests that a useless connection may have had have failed, so the next one may be of use."""
        self.silent, self.fruitless, self.stuck = 0, 0, False

    @property
    def is_hopeless(self) -> bool:
        """Whether the next connection would not help either: one useless connection proves nothing yet.

        A server that ends connections may be restarting; a request over which it dies each time is seen a little later.
        """
        return self.stuck or self.silent >= _SILENT_PROVE or self.fruitless >= _ENDED_PROVE

    def give_up_silent(self, silence: float, now: float) -> bool:
        """Whether to cut connections that have been silent for so long, if the server answers no new one either.

        Requests then wait in the driver for a good connection, which comes sooner than TCP gives the old one up. But if
        requests would fail before --dead-peer has passed, we cut none: a connection may recover until then.
        """
        left = self.terms.dead_peer - silence
        # If `died` is set, another one is dead, or was before this one had served a request.
        died = now + max(0.0, self.terms.dead_peer - self.age(now)) if self.died is None else self.died
        wait = math.inf if self.terms.on_loss is None else self.terms.on_loss
        if left > 0 and (wait == 0 or died + wait < now + left):
            return False
        self.died = died
        return True

    def until_failing(self, now: float) -> float:
        """Seconds until requests fail; infinite if they do not have to, or fail already."""
        if self.failing or self.lives or self.died is None or self.terms.on_loss is None:
            return math.inf
        return max(0.0, self.died + self.terms.on_loss - now)

    def pause(self, now: float, chance: float) -> float:
        """Seconds until the next try. `chance` from 0 to 1 spreads the tries of many devices."""
        spread = 1 + _SPREAD * (2 * chance - 1)
        repeated = min(FIRST_PAUSE * float(2**self.repeats), MAX_PAUSE) if self.lives else 0.0
        usual = max(pause_after(self.age(now)), repeated)
        return min(usual * spread, self.until_failing(now))

    def between_probes(self, now: float) -> float:
        """Seconds; 0.0 if requests have to fail now."""
        return min(MAX_PROBE, max(FIRST_PAUSE, self.age(now) / _PROBE_SHARE), self.until_failing(now))

    def connect_within(self, round_trip: float, now: float) -> float:
        """Seconds that TCP has for one try. A server that has just come up may have lost the first packet."""
        return max(_LEAST_CONNECT, _ROUND_TRIPS * round_trip, pause_after(self.age(now)))

    def dial_within(self, now: float) -> float:
        """Seconds for one try, the handshake included."""
        patience = min(self.terms.connect_timeout, max(_LEAST_DIAL, self.age(now) / 2))
        return max(_LEAST_WAIT, min(patience, self.until_failing(now)))

    def may_say(self, now: float) -> bool:
        """Whether it is time to update status again."""
        return now - self.said >= _SAY_AGAIN

    def again(self) -> Outage:
        """The same outage, which only seemed over. We told the driver in between to wait again, so this is reset."""
        return dataclasses.replace(self, told=False, failing=False, resumed=True)

    def next(self, now: float, since: str) -> Outage:
        """Another outage right after this one, of a device that another connection serves. The pauses get longer."""
        return Outage(self.terms, now, since, resumed=True, repeats=min(self.repeats + 1, _MOST_REPEATS))


def pause_after(age: float) -> float:
    """Seconds to the next try, when the server has been away for `age` seconds."""
    return min(MAX_PAUSE, max(FIRST_PAUSE, age / _SHARE))
