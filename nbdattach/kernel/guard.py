# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that guards a connect by netlink: if connect dies before it is done, the guard removes its attachment.

It is a copy of that process (`host.copies`): `backends.by_netlink` makes it, and holds the other end of its pipe.
"""

from __future__ import annotations

import os
import time

from nbdattach.kernel import ioctl
from nbdattach.kernel.bare_sysfs import attribute
from nbdattach.kernel.leftovers import tidied

# Seconds that the kernel may take to end the attachment.
_PATIENCE = 5
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
            node = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if is_there():
                # Without NBD_DISCONNECT before it: if we were killed in between, the data left could not be flushed,
                # so nothing could detach it. The server sees the connection end, as that of any process that is killed.
                ioctl.nbd_clear_sock(node)
            os.close(node)
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
