# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a server's restart is felt: killed (-9) with requests in flight, away for a while, and back.

The server is back when it takes connections. Its return is seen some milliseconds late, so a figure may be that much
too small, and even negative.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from attached import Device, run, until
from contenders import Contender
from figures import Row
from load import Load, seconds_for_a_new_read
from servers import Server, free_port, nbdkit, poll

MIB = 1 << 20
WRITERS = 8
AWAY = (1.0, 5.0)
_TRIES = 5
NEW_AIM, OLD_AIM = "<= 1000", "<= 6000"


@dataclass(frozen=True)
class Felt:
    """By the event that came late. `new` and `old` in milliseconds after the server's return.

    `new`: a read that was made at its return is done. `old`: so is the last request that was in flight at its death,
    of which there were `in_flight`.
    """

    new: float
    old: float
    in_flight: int
    errors: list[str]


def measure(contenders: dict[int, Contender], rounds: int) -> list[Row]:
    """`contenders` by their number of connections. The kinds of restart take turns, each with a new attachment."""
    kinds = [(connections, away) for connections in contenders for away in AWAY]
    names = {kind: f"-C {kind[0]}, away {kind[1]:g} s" for kind in kinds}
    subject = next(iter(contenders.values())).name
    new = {kind: Row(f"{names[kind]}: new request", "ms", subject, {subject: []}, {subject: NEW_AIM}) for kind in kinds}
    old = {kind: Row(f"{names[kind]}: last old", "ms", subject, {subject: []}, {subject: OLD_AIM}) for kind in kinds}
    in_flight = Row("in flight at its death", "requests", subject, {subject: []})
    errors = Row("errors", "count", subject, {subject: []}, {subject: "<= 0"})
    for _ in range(rounds):
        for connections, away in kinds:
            felt = _one_that_counts(contenders[connections], away)
            new[connections, away].samples[subject].append(felt.new)
            old[connections, away].samples[subject].append(felt.old)
            in_flight.samples[subject].append(felt.in_flight)
            errors.samples[subject].append(len(felt.errors))
            if felt.errors:
                print(f"{names[connections, away]}: {felt.errors}", file=sys.stderr)
    return [*(row for kind in kinds for row in (new[kind], old[kind])), in_flight, errors]


def _one_that_counts(contender: Contender, away: float) -> Felt:
    for _ in range(_TRIES):
        if felt := one_restart(contender, away):
            return felt
    raise RuntimeError(f"{_TRIES} times no request was in flight at the server's death")


def one_restart(contender: Contender, away: float) -> Felt | None:
    """None if no request was in flight: those from before its death were answered, the others are from after it."""
    device, port = Device(0), free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as servers:
        image = Path(folder, "image")
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        first = servers.enter_context(serve(image, port))
        with attachment(contender, first, device):
            load = Load(device.path, writers=WRITERS)
            with load:
                load.see_it_run(200)
                killed = time.monotonic()
                first.kill()
                gone = time.monotonic()
                time.sleep(max(0.0, killed + away - gone))
                servers.enter_context(serve(image, port))
                back = time.monotonic()
                new = _milliseconds_for_a_new_read(load)
                # Each writer has one request at a time, and all were stuck at that moment.
                poll(lambda: bool(load.errors) or len(load.caught(gone)) == WRITERS, "the old requests")
                old = [one.ended for one in load.caught(gone) if one.began < killed]
                if not load.errors:
                    load.see_it_run()
        if not load.is_on(image):
            load.errors.append("the server's image lacks what was written")
    if not old and not load.errors:
        return None
    return Felt(new, (max(old, default=float("inf")) - back) * 1000, len(old), load.errors)


def serve(image: Path, port: int) -> AbstractContextManager[Server]:
    return nbdkit("file", f"file={image}", port=port)


def _milliseconds_for_a_new_read(load: Load) -> float:
    try:
        return seconds_for_a_new_read(load.device) * 1000
    except OSError as error:
        load.errors.append(f"a new request: {error}")
        return float("inf")


@contextlib.contextmanager
def attachment(contender: Contender, server: Server, device: Device) -> Iterator[None]:
    run(contender.attach(server, device.path))
    try:
        until(lambda: device.ready)
        yield
    finally:
        run(contender.detach(device.path))
        until(lambda: device.free)
