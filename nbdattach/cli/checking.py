# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of the command check: all servers at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from nbdattach.backends import limits
from nbdattach.cli.interrupt import killed_by_interrupt
from nbdattach.cli.reach import There
from nbdattach.connection import client
from nbdattach.connection.client import Checked
from nbdattach.errors import NbdattachError
from nbdattach.reporter import Trace
from nbdattach.text import plain

# Seconds. A server that we have to start computes for so long.
_STARTING = 0.2
# All others wait: a far server needs some round trips, and a silent one keeps its thread for the whole of the timeout.
_FAR = 0.02
# Each is done within a millisecond if its server is near; more threads would spend as much on taking turns.
_FEW = 4

Way = tuple[str, Callable[[], AbstractContextManager[There]]]


def checked(ways: Sequence[Way], timeout: float, trace: Trace) -> Iterator[tuple[str, Checked]]:
    """The name and the result of each, in the order given, as soon as it and all before it are there.

    `ways`: each with the text that names its server. A mistake in one, such as an image that is not there, is its
    result, and stops no other: the list may be that of a program.
    """
    check = partial(_checked, timeout=timeout, trace=trace)
    if len(ways) == 1:
        yield from map(check, ways)
    else:
        yield from _at_once(check, ways)


def _at_once(check: Callable[[Way], tuple[str, Checked]], ways: Sequence[Way]) -> Iterator[tuple[str, Checked]]:
    from nbdattach import at_once  # slow to import, and most commands have one target
    from nbdattach.own_server.source import may_be_source

    stalled = _STARTING if any(may_be_source(text) for text, _ in ways) else _FAR
    there: dict[int, tuple[str, Checked]] = {}
    following = 0
    with killed_by_interrupt():
        for number, found in at_once.outcomes(lambda number: check(ways[number]), range(len(ways)), stalled, _FEW):
            there[number] = found
            while following in there:
                yield there.pop(following)
                following += 1


def _checked(way: Way, timeout: float, trace: Trace) -> tuple[str, Checked]:
    name, reach = way
    try:
        with reach() as there:
            name, found = there.name, client.check(there.target, limits.attachable, timeout, trace)
            return name, replace(found, error=there.explained(found.error)) if found.error else found
    except NbdattachError as error:  # of the target itself, or of the start of a server
        return plain(name), Checked(None, None, error)
    except (OSError, RuntimeError) as error:  # of this machine, such as its limit of threads
        cause, hint = f"this machine cannot check it: {error}", "has it memory, tasks and descriptors left?"
        return plain(name), Checked(None, None, NbdattachError(plain(name), cause, hint))
