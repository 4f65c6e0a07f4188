# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a scheduler could not be set."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.backends import queue_choice
from nbdattach.errors import KernelRefused
from nbdattach.kernel.sysfs import Kernel


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EINVAL, "the kernel has no scheduler bfq for it"),
        (errno.EROFS, "setting the scheduler bfq: Read-only file system (EROFS)"),
        (errno.EACCES, "setting the scheduler bfq: Permission denied (EACCES)"),
    ],
)
def test_the_kernel_lacks_it_only_if_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    host = pretend(tmp_path, monkeypatch)
    host.attach()
    (host.sys / "block/nbd0/queue").mkdir()
    (host.sys / "block/nbd0/queue/scheduler").write_text("[none] mq-deadline\n")

    def refuses(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(Kernel, "set_scheduler", refuses)
    with pytest.raises(KernelRefused) as caught:
        queue_choice.set_scheduler(NBD0, "bfq")
    assert caught.value.cause == cause
