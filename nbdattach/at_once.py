# SPDX-License-Identifier: GPL-2.0-or-later
"""Many jobs at the same time, most of which compute, while some wait for a server that does not answer.

A thread for each job costs more than it saves: they compete for the interpreter's lock, and each attachment makes
copies of this process, stacks of all threads included. So only a few jobs begin. As many others join those that wait: a
job waits if many that began after it have ended, however fast this machine is; and all of them do if none of them ends
for a while.
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


def outcomes(
    do: Callable[[_Job], _Result], jobs: Sequence[_Job], stalled: float, few: int = _FEW
) -> Iterator[tuple[_Job, _Result]]:
    """Each job with its result, as they end. If `do` raises, the others still have their turn, and then it is raised.

    `stalled`: seconds without an end until others join; longer than a job takes that need not wait. `few` jobs begin.
    """
    left, errors = deque(jobs), list[BaseException]()
    running: dict[Future[_Result], _Job] = {}
    overtaken: dict[Future[_Result], int] = {}  # by how many, in the order of their beginnings
    ended: list[tuple[_Job, Future[_Result]]] = []
    most, has_thread = _MOST, False
    with ThreadPoolExecutor(_MOST) as pool:
        while left or running or ended:
            waiting = sum(count >= few for count in overtaken.values())
            while left and len(running) < min(max(few, 2 * waiting), most):
                job = left.popleft()
                one = Future[_Result]()
                running[one], overtaken[one] = job, 0
                try:
                    pool.submit(_carry_out, one, do, job)
                    has_thread = True
                except RuntimeError:  # the system's limit of threads; the job waits in the pool until one is idle
                    if not has_thread:
                        raise
                    most = len(running)
            for job, one in ended:  # the caller may take its time with them, so others have begun
                if error := one.exception():
                    errors.append(error)
                else:
                    yield job, one.result()
            done = wait(running, stalled if left else None, FIRST_COMPLETED).done
            if not done:
                overtaken.update(dict.fromkeys(running, few))
            for one in done:
                for earlier in overtaken:
                    if earlier is one:
                        break
                    overtaken[earlier] += 1
                del overtaken[one]
            ended = [(running.pop(one), one) for one in done]
    if errors:
        raise errors[0]


def _carry_out(one: Future[_Result], do: Callable[[_Job], _Result], job: _Job) -> None:
    try:
        one.set_result(do(job))
    except BaseException as error:
        one.set_exception(error)
