# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands as copies of a process that has imported nbdattach (bin/warm_process.py).

In a guest, Python and the imports take 0.5 s of the 0.65 s of a command (7.2; four times as long on 6.1), and the tests
run hundreds. Tests that look at the start of a command, or kill it, start Python: `tool.command`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

_WARM = str(Path(__file__).with_name("bin") / "warm_process.py")
_CHUNK = 1 << 16
_starting = threading.Lock()  # two tests of commands at once would start two, of which one ends at once


@cache
def _asking() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        # It ends with our end of the socket.
        subprocess.Popen([sys.executable, _WARM, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL)
    return ours


def run(arguments: list[str], cwd: Path | None, seconds: float) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text and no input. Raises `subprocess.TimeoutExpired`."""
    end = time.monotonic() + seconds
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": str(cwd or os.getcwd())}
    answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (out, their_out), (err, their_err) = os.pipe(), os.pipe()
    with _starting:
        asking = _asking()
    socket.send_fds(asking, [json.dumps(asked).encode()], [their_out, their_err, theirs.fileno()])
    for number in (their_out, their_err, theirs.detach()):
        os.close(number)
    pid = int(answers.recv(_CHUNK))
    code = answers.detach()
    said = dict.fromkeys((out, err, code), b"")
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as files:
        for number in said:
            selector.register(number, selectors.EVENT_READ)
            files.callback(os.close, number)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, seconds, said[out], said[err])
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                said[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return subprocess.CompletedProcess(arguments, int(said[code]), said[out].decode(), said[err].decode())
