# SPDX-License-Identifier: GPL-2.0-or-later
"""Our errors: each class takes the facts, words the message and has its exit code.

`str(error)` is one line, "thing: cause"; `error.hint` tells how to solve it.
Exit codes are those of the contract (nbdattach(8), EXIT STATUS).
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Sequence

from nbdattach.text import plain, quoted, typed

# Names of a server's exports to show in one hint; `nbdattach list` shows them all.
MAX_NAMES_IN_HINT = 8
# In the hint of `DeadlinePassed`; commands without this option have other words in its place.
TIMEOUT_OPTION = "--connect-timeout TIME"


class NbdattachError(Exception):
    """Base of all errors of this package; exit code 1. `word` names the kind for programs, one for each exit code.

    A class that has further facts declares each with its type and default; `error_facts` takes it to other processes.
    """

    exit_code = 1
    word = "failed"

    def __init__(self, thing: str, cause: str, hint: str) -> None:
        super().__init__(f"{thing}: {cause}")
        self.thing = thing
        self.cause = cause
        self.hint = hint


class Malformed(NbdattachError):
    """An invalid option, TARGET or DEVICE."""

    exit_code = 2
    word = "usage"


class NoConnection(NbdattachError):
    """The server does not answer, or the connection ended during the handshake."""

    exit_code = 3
    word = "no-connection"


class ConnectionLost(NoConnection):
    """The server closed the connection while we waited for `doing`."""

    def __init__(self, thing: str, doing: str) -> None:
        super().__init__(
            thing,
            f"the server closed the connection ({doing})",
            "is it an NBD server, does it accept one more client, did it just stop? see its log",
        )


class DeadlinePassed(NoConnection):
    """The whole connect-and-handshake took longer than `seconds`. `silent`: not one byte came over a new connection."""

    def __init__(self, thing: str, seconds: float, doing: str, silent: bool = False) -> None:
        cause, hint = f"no answer within {seconds:g} s ({doing})", f"{TIMEOUT_OPTION} sets how long to wait"
        if silent:  # such as qemu-nbd: the kernel accepts more clients for it than it serves
            cause += ": the server may be full"
            hint = f"qemu-nbd serves more clients with -e N; a device attached to it here counts as one; {hint}"
        super().__init__(thing, cause, hint)


class Refused(NbdattachError):
    """The server refused, or does not offer it."""

    exit_code = 4
    word = "refused"


class UnknownExport(Refused):
    """The server has no export of that name; `offered` are the names it has, None if it does not list them."""

    def __init__(self, thing: str, name: str, offered: Sequence[str] | None, where: str, words: str = "") -> None:
        what = f"export named {quoted(name)}" if name else "default export"
        said = f"; it says: {quoted(words)}" if words else ""
        super().__init__(thing, f"the server has no {what}{said}", self._offer(offered, where))

    @classmethod
    def _offer(cls, offered: Sequence[str] | None, where: str) -> str:
        if offered is None:
            return "it does not list its exports: see its configuration for their names"
        if not offered:
            return "it lists no exports: see its configuration for their names"
        if not any(offered):
            return f"it lists only a default export, which has no name: use {typed(where)}"
        also = "; it has a default export as well, without a name" if "" in offered else ""
        return f"{cls.names_shown(offered)}{also}; see nbdattach list {typed(where)}"

    @staticmethod
    def names_shown(offered: Sequence[str]) -> str:
        """The first names for a hint; empty if there is none except that of the default export, which is empty."""
        names = [plain(name) for name in offered if name]
        more = ", ..." if len(names) > MAX_NAMES_IN_HINT else ""
        return f"it offers: {', '.join(names[:MAX_NAMES_IN_HINT])}{more}" if names else ""


class BrokenProtocol(NbdattachError):
    """The server sent data that the NBD specification does not allow, or more than we accept."""

    exit_code = 4
    word = "refused"

    def __init__(self, thing: str, what: str) -> None:
        super().__init__(thing, what, "is this an NBD server? --debug shows each step")


class TlsFailed(NbdattachError):
    """TLS was requested or required, and failed."""

    exit_code = 5
    word = "tls"


class NotInKernel(TlsFailed):
    """The kernel cannot do TLS with this server: it refused, or lacks the version or cipher."""


class MaybeNotInKernel(NotInKernel):
    """The server just closed the connection: for that reason perhaps, or because it is about to stop."""


class KernelRefused(NbdattachError):
    """A system call failed at `step`, or this machine cannot do the operation."""

    exit_code = 6
    word = "kernel"

    @classmethod
    def at(cls, thing: str, step: str, errno: int, hint: str = "") -> KernelRefused:
        name = errno_names.errorcode.get(errno, str(errno))
        return cls(thing, f"{step}: {os.strerror(errno)} ({name})", hint or "see the kernel's log: dmesg")


class DeviceInUse(NbdattachError):
    """The device is mounted, held, open exclusively, or holds something else.

    `users` are lines for people, in the order in which the users have to be released: each names one and the command
    that releases it. `uses` are the same for programs: `kind`, `where`, and `release`, the words of the command; or
    `instead`, what to do if no command is known.
    """

    exit_code = 7
    word = "in-use"
    users: tuple[str, ...] = ()
    uses: tuple[dict[str, object], ...] = ()

    def __init__(
        self,
        thing: str,
        cause: str,
        hint: str,
        users: Sequence[str] = (),
        uses: Sequence[dict[str, object]] = (),
    ) -> None:
        super().__init__(thing, cause, hint)
        self.users = tuple(users)
        self.uses = tuple(uses)


class NotAttached(NbdattachError):
    """Nothing is attached at the device."""

    exit_code = 8
    word = "not-attached"

    def __init__(self, device: str) -> None:
        super().__init__(device, "not attached", "nbdattach status shows the attached devices")
