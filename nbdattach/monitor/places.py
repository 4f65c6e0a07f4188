# SPDX-License-Identifier: GPL-2.0-or-later
"""The places where a new connection may be made: the server in use at its address, other addresses, other servers.

Decisions that matter:
* Another machine is another disk until its content proves the contrary, and even then perhaps an older state. So the
  address in use is the only one for long, as a server that restarts is the usual case; unless its name no longer has
  that address.
* While one of several connections lives, the others go to the same server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nbdattach.attached.state import Record
from nbdattach.connection.stream import addresses_of
from nbdattach.deadline import Deadline
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target, target_of

# Seconds without any connection after which other servers (--also) are tried, and other addresses of the same name.
OTHER_SERVERS = 10.0
OTHER_ADDRESSES = 30.0
_LOOKUP = 1.0
# Seconds after which a try has to follow probes that failed. It looks up the name again: soon, if the outage is young.
_SAME_PLACE = 30.0
_LEAST_SAME_NAME, _MOST_SAME_NAME, _NAME_SHARE = 1.0, 5.0, 4


@immutable
class Place:
    """`target` as users name it, and the numeric `address` to dial; None for each that its name has."""

    target: Target
    address: str | None
    elsewhere: bool = False  # not where the device was connected last
    ordered: bool = False  # a user named it

    @property
    def name(self) -> str:
        """Of this address of the server."""
        return f"{self.target.uri} {self.address or ''}"

    @property
    def dialled(self) -> Target:
        """Verified by the name, though it is dialled at the address."""
        if not self.address or self.target.socket:
            return self.target
        name = self.target.verified_name if self.target.tls else ""
        return replace(self.target, host=self.address, tls_hostname=name)


def ordered(target: Target) -> Place:
    """Of a user's command."""
    return Place(target, None, elsewhere=True, ordered=True)


def in_use(record: Record) -> Place:
    return Place(record.current_target(), record.address)


def probes_suffice(record: Record, gone: float) -> float:
    """For how many seconds a try would fail as surely as a probe, after one that was refused.

    A try goes to other servers and addresses, too, and starts a server of our own again. `gone`: as of `places`.
    """
    if record.server or (record.others and gone >= OTHER_SERVERS):
        return 0.0
    first = in_use(record)
    if not record.others and (first.target.socket or first.target.host == first.address):
        return _SAME_PLACE
    same_name = max(_LEAST_SAME_NAME, min(gone / _NAME_SHARE, _MOST_SAME_NAME))
    return min([same_name, *(due - gone for due in (OTHER_SERVERS, OTHER_ADDRESSES) if due > gone)])


def places(record: Record, gone: float) -> Iterator[Place]:
    """In the order in which they are tried. `gone`: seconds without any connection, 0 while there is one."""
    first = in_use(record)
    yield first
    if gone >= OTHER_SERVERS and not record.moving_to:
        for uri in record.others:
            yield Place(target_of(uri, record.trust), None, elsewhere=True)
    if gone and first.address:
        found = addresses_of(first.target, Deadline(_LOOKUP))
        if gone >= OTHER_ADDRESSES or first.address not in found:
            for address in found:
                if address != first.address:
                    yield Place(first.target, address, elsewhere=True)
