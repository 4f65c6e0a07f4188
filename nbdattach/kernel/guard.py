# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that guards a connect by netlink: if connect dies before it is done, the guard removes its attachment.

It is a copy of that process (`host.copies`): `backends.by_netlink` makes it, and holds the other end of its pipe.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from nbdattach.kernel import ioctl, netlink
from nbdattach.kernel.bare_sysfs import attribute
from nbdattach.kernel.leftovers import tidied

# Seconds that the kernel may take to end the attachment.
_PATIENCE = 5
# Seconds after which an open counts as one that hangs. One that only is slow is no harm.
_HANGS = 1.0
_POLL = 0.01


def guard(pipe: int, path: str, state_file: str, identifier: str, pid: int) -> None:
    """Waits until a netlink connect is done. If it died instead, removes its attachment, with all traces of it.

    `pipe` tells when it is done. `identifier` is the attachment's in the kernel, `pid` that of the connect, or 0 if the
    kernel numbers processes differently from us.
    """
    if os.read(pipe, 1):
        return
    name = os.path.basename(path)

    def is_there() -> bool:
        return attribute(name, "backend") == identifier.strip() and str(pid) in ("0", attribute(name, "pid"))

    try:
        if is_there():
            _end(path, is_there)
        # The kernel, too, may have undone it (NBD_CFLAG_DISCONNECT_ON_CLOSE); it leaves partitions and our files.
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if attribute(name, "pid"):
                # Ours may have ended in between: then there is no pid any more.
                if not is_there() and attribute(name, "pid"):
                    break  # another attachment has come, and its connect removes them itself
            elif tidied(path, state_file):
                break
            time.sleep(_POLL)
    except OSError:
        pass  # there is no such device, or it has gone by itself


def _end(path: str, is_there: Callable[[], bool]) -> None:
    """Ends the attachment.

    The first open looks for partitions. If the server dies just then, as our own server does when its command has died,
    that open waits for an answer for ever. A message ends the attachment without an open; it names only the index, but
    nothing else can be attached there while the open waits.
    """
    thread = threading.Thread(target=_open_and_end, args=[path, is_there], daemon=True)
    thread.start()
    thread.join(_HANGS)
    if thread.is_alive() and is_there():
        with netlink.Family() as family:
            family.disconnect(int(path.removeprefix("/dev/nbd")))
        thread.join(_PATIENCE)


def _open_and_end(path: str, is_there: Callable[[], bool]) -> None:
    try:
        node = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if is_there():
            # Without NBD_DISCONNECT before it: if we were killed in between, the data left could not be flushed, so
            # nothing could detach it. The server sees the connection end, as that of any process that is killed.
            ioctl.nbd_clear_sock(node)
        os.close(node)
    except OSError:
        pass  # there is no such device, or it has gone by itself
