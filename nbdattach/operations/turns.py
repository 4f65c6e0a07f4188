# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that attach devices at the same time take turns at the part that needs a CPU.

Each attachment has a deadline for what the kernel and the server do. If 64 threads share one CPU, most of that time
passes while a thread waits for the others, and the server is idle. So only a few are at that part at a time. A thread
that waits for a server to come up has no turn, and keeps none from the others.
"""

from __future__ import annotations

import os
import threading

# Beyond one for each CPU, because a turn has short waits of its own: for the server, and for udev.
_SPARE = 2

turn = threading.BoundedSemaphore((os.cpu_count() or 1) + _SPARE)
