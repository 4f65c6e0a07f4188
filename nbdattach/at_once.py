# SPDX-License-Identifier: GPL-2.0-or-later
"""Many jobs at the same time, most of which compute, while some wait for a server that does not answer.

A thread for each job costs more than it saves: they compete for the interpreter's lock, and each attachment makes
copies of this process, stacks of all threads included. So only a few jobs begin. If none of them ends for a while, they
wait, and as many others join them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_FEW = 16
_MOST = 256


def outcomes(do: Callable[[_Job], _Result], jobs: Sequence[_Job], stalled: float) -> Iterator[tuple[_Job, _Result]]:
    """Each job with its result, as they end. Raises what `do` raises.

    `stalled`: seconds without an end until others join; longer than a job takes that need not wait.
    """
    left = deque(jobs)
    work: dict[Future[_Result], _Job] = {}
    with ThreadPoolExecutor(_MOST) as pool:

        def begin(count: int) -> None:
            for _ in range(min(count, len(left), _MOST - len(work))):
                job = left.popleft()
                work[pool.submit(do, job)] = job

        begin(_FEW)
        while work:
            ended = wait(work, stalled if left else None, FIRST_COMPLETED).done
            for one in ended:
                yield work.pop(one), one.result()
            begin(len(ended) or len(work))
