#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that has imported nbdattach, and is copied for each command that `tests/kernel/warm.py` asks for.

It gets the number of its end of a socket pair as its only argument. Each message has arguments, environment and folder
of a command as JSON, and three descriptors: its standard output, its standard error, and a socket that its process id
goes back over, and later its exit code. All code from `main` on runs as in a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

from nbdattach.__main__ import main

sys.path.insert(1, str(Path(__file__).parents[1]))

from preloaded import import_all  # it lives in the folder above

_LONGEST = 1 << 16


def serve(asked: socket.socket) -> None:
    """Returns in each copy, when it is ready for `main`; ends with the other end of the socket."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the pidfd
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != asked.fileno():
                poll.unregister(ready)
                pid, back = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # who asked has not waited
                    back.send(str(code).encode())
                back.close()
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(asked, _LONGEST, 3)
            if not message:
                os._exit(0)
            out, err, answers = descriptors
            pid = os.fork()
            if not pid:
                _become(json.loads(message), out, err)
                return
            os.close(out)
            os.close(err)
            back = socket.socket(fileno=answers)
            back.send(str(pid).encode())
            ended = os.pidfd_open(pid)
            running[ended] = pid, back
            poll.register(ended, select.POLLIN)


def _become(command: dict[str, Any], out: int, err: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv[1:] = command["arguments"]


if __name__ == "__main__":
    import_all()
    gc.freeze()  # so that a look for garbage in a copy does not copy all pages
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
