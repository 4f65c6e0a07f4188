# SPDX-License-Identifier: GPL-2.0-or-later
"""One outage of an attachment's server: facts and times go in, the next step comes out. No kernel, no socket, no clock.

Theory of operation. An outage begins with the first sign of trouble: a connection is silent, or dead.

    silent   it owes an answer and none comes. Another connection is dialled, as only a server that answers that one
             shows that it is the old connection that is of no use. It may also recover by itself; then nothing was.
    dead     it has ended, or we have cut it. Requests wait in the driver for a new one. From now on --on-loss counts,
             unless another connection lives: that one serves them.
    failing  --on-loss has passed: requests fail, and we go on trying.
    over     the driver has all its connections. Where the next one dies before it has served one request, it was not
             over at all, and goes on as it was ("fruitless").

All times are seconds of CLOCK_BOOTTIME (`clock.boot_time`): it does not step when somebody sets the clock, and it goes
on while the machine sleeps.
"""

from __future__ import annotations

import dataclasses
import math

# Between tries: at once, then a share of the time that the server has been away, and never longer than MAX_PAUSE.
FIRST_PAUSE = 0.25
MAX_PAUSE = 5.0
_SHARE = 80
# The pauses of many devices shall not fall together.
_SPREAD = 0.2
# What TCP has for one try: a SYN that was lost, or sent into a cut link, must not hold up the next one.
_LEAST_CONNECT = 0.5
_LEAST_DIAL = 3.0
_ROUND_TRIPS = 5
_LEAST_WAIT = 0.01
# Many devices may lose one server at once, so status is told no more often than anybody looks at it.
_SAY_AGAIN = 1.0
# Within so many seconds a new connection that has served nothing may not die, to count as an end of the trouble.
FRUITLESS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What connect was told. `on_loss` is None where requests wait for ever."""

    on_loss: float | None
    dead_peer: float
    connect_timeout: float


@dataclasses.dataclass(slots=True)
class Outage:
    """`since` tells people when it `began`; `died` is None while connections are only silent."""

    terms: Terms
    began: float
    since: str
    error: str = ""  # of the last try
    said: float = -math.inf  # when status was last told
    died: float | None = None
    told: bool = False  # so have the driver and the log
    failing: bool = False
    fruitless: int = 0  # how often a connection has come that served nothing
    served: bool = False  # by a connection that lives

    def age(self, now: float) -> float:
        return now - self.began

    def lose(self, now: float) -> None:
        """No connection lives."""
        self.served = False
        if self.died is None:
            self.died = now

    def keep(self, has_served: bool) -> None:
        """A connection lives and answers; whether it has served: one that dies before it has was no help."""
        self.served = True
        if has_served:
            self.died = None

    def give_up_silent(self, silence: float, now: float) -> bool:
        """Whether connections that have been silent for so long are to be cut, when the server answers no other either.

        What comes then waits in the driver for a good connection, which is sooner than TCP finds out by itself. Where
        requests are to fail at the loss of a connection, none is lost before --dead-peer says so.
        """
        if self.terms.on_loss == 0 and silence < self.terms.dead_peer:
            return False
        if self.died is None:  # else another one is dead already, or was before this one had served a request
            self.died = now + max(0.0, self.terms.dead_peer - self.age(now))
        return True

    def until_failing(self, now: float) -> float:
        """Seconds; infinite where nothing is to fail, or does already."""
        if self.failing or self.served or self.died is None or self.terms.on_loss is None:
            return math.inf
        return max(0.0, self.died + self.terms.on_loss - now)

    def pause(self, now: float, chance: float) -> float:
        """Seconds until the next try. `chance` from 0 to 1 spreads those of many devices."""
        spread = 1 + _SPREAD * (2 * chance - 1)
        return min(pause_after(self.age(now)) * spread, self.until_failing(now))

    def connect_within(self, round_trip: float, now: float) -> float:
        """Seconds that TCP has for one try. A server that has just come up may have lost the first packet."""
        return max(_LEAST_CONNECT, _ROUND_TRIPS * round_trip, pause_after(self.age(now)))

    def dial_within(self, now: float) -> float:
        """Seconds for one try, the handshake included."""
        patience = min(self.terms.connect_timeout, max(_LEAST_DIAL, self.age(now) / 2))
        return max(_LEAST_WAIT, min(patience, self.until_failing(now)))

    def may_say(self, now: float) -> bool:
        """Whether status is to be told again."""
        return now - self.said >= _SAY_AGAIN

    def again(self) -> Outage:
        """The same one, which had only seemed to be over. The driver was told to wait since, so it is told anew."""
        return dataclasses.replace(self, fruitless=self.fruitless + 1, told=False, failing=False, served=False)


def pause_after(age: float) -> float:
    """Seconds to the next try, when the server has been away for `age` seconds."""
    return min(MAX_PAUSE, max(FIRST_PAUSE, age / _SHARE))
