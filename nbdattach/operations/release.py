# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases a device: carries out the commands that a refused detach lists, from the top of what is built on it.

Decisions that matter:
* We look anew after each command, because one command can release several users: a volume's inner devices go with it.
* No process is ended, nor a service restarted: a program may hold data of its own that only its user can judge.
* We stop at the first command that fails, and raise what is left, as a refused detach does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from nbdattach.attached import state
from nbdattach.attached.users import open_by, users_of
from nbdattach.attached.uses import Use, Users, opened, refusal
from nbdattach.deadline import Deadline
from nbdattach.device import Device, parse_device
from nbdattach.errors import DeviceInUse
from nbdattach.host import programs
from nbdattach.own_server import installed
from nbdattach.reporter import Reporter
from nbdattach.text import quoted, typed

# Commands that end a process.
_NEVER = ("kill", "systemctl")
_OURS = "nbdattach"
# Seconds within which a device that is no longer used goes, and a command that has failed is tried again.
_GOES_WITHIN = 2.0
_POLL, _AGAIN = 0.02, 0.2
# Somebody may mount it again as fast as we release it.
_MOST = 4


def planned(device: Device) -> tuple[list[Use], list[Use]]:
    """The users that `release` would release now, in order, and from the first that it would not, the rest."""
    uses = _users(device).uses
    count = next((number for number, one in enumerate(uses) if not _releases(one)), len(uses))
    return uses[:count], uses[count:]


def release(device: Device, reporter: Reporter, detach: Callable[[Device], object]) -> None:
    """Returns when no user is left that a command can release. Raises `DeviceInUse`, `KernelRefused`.

    `detach` is our own command, for a device that has its image there.
    """
    done: Counter[Use] = Counter()
    meant = state.identity_of(device)
    while uses := users_of(device).uses:
        if state.identity_of(device) != meant:
            raise DeviceInUse(device.path, "holds another attachment now", "nbdattach status shows it")
        first = uses[0]
        if not _releases(first):
            raise never(device, _users(device).uses)
        if done[first] >= _MOST:
            raise _left(device, f"{first.says} again each time that it was released", "stop what does that")
        done[first] += 1
        reporter.say(f"{device.path}: {first.command}")
        program = "" if first.release[0] == _OURS else installed.required(first.release[0], device.path)
        patience = Deadline(_GOES_WITHIN)  # from now on: a command that fails slowly has been patient itself
        if not program:
            detach(parse_device(first.where))
        failure = _run(first, program) if program else None
        if not failure:
            patience = Deadline(_GOES_WITHIN)
        while _is_there(first, uses.count(first), device, meant):
            if not patience.sleep(_AGAIN if failure else _POLL):
                raise _left(
                    device, *(failure or (f"{first.says}, although {first.command} succeeded", "try it by hand"))
                )
            # A mount may be busy for a moment after the end of a server that had a file on it. We look once more,
            # because by now the command may reach another mount at that place.
            if failure and _is_there(first, uses.count(first), device, meant):
                failure = _run(first, program)
                if not failure:
                    patience = Deadline(_GOES_WITHIN)


def never(device: Device, left: Sequence[Use]) -> DeviceInUse:
    """The error for a user that we do not release, the first of these."""
    first = left[0]
    why = "--release ends no process" if first.release else "no command is known that releases it"
    return refusal(device, f"{first.says}: {why}", "release it first", left)


def _users(device: Device) -> Users:
    return Users([*users_of(device).all, *opened(open_by(device)).all])


def _is_there(one: Use, count: int, device: Device, meant: state.Identity) -> bool:
    """Whether it still uses the device so many times, and the device still holds that attachment."""
    return users_of(device).uses.count(one) >= count and state.identity_of(device) == meant


def _releases(one: Use) -> bool:
    return bool(one.release) and one.release[0] not in _NEVER


def _run(one: Use, program: str) -> tuple[str, str] | None:
    """None, or cause and hint. The effect decides: lvchange fails if there is another group of the same name, too."""
    by_hand = f"try it by hand: {one.command}"
    try:
        result = programs.run(program, *one.release[1:])
    except OSError as error:
        return f"{one.command}: {error.strerror}", by_hand
    if not result.returncode:
        return None
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    cause = f"{one.command} failed: {quoted(said[-1]) if said else f'exit code {result.returncode}'}"
    return cause, f"fuser -vm {typed(one.where)} shows its users" if one.kind == "mount" else by_hand


def _left(device: Device, cause: str, hint: str) -> DeviceInUse:
    return refusal(device, cause, hint, _users(device).uses)
