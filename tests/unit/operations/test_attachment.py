# SPDX-License-Identifier: GPL-2.0-or-later
"""How a failed attach is undone. Attaching itself needs the driver: `kernel`."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from host import NBD0, pretend

from nbdattach.backends import by_netlink, queue_choice
from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.kernel import sysfs
from nbdattach.operations import attachment


@pytest.mark.parametrize("backend", ["ioctl", "netlink"])
def test_it_is_undone_even_if_we_have_no_descriptor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """That may be why it failed; the first to be freed is a descriptor of the backend."""
    host, none_left = pretend(tmp_path, monkeypatch), [True]
    host.attach()
    host.write("nbd0.json", "left by a step")
    (host.sys / "block/nbd0/size").write_text("0\n")
    read = sysfs._read

    def refused(path: str) -> str | None:
        if none_left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return read(path)

    def fails(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sysfs, "_read", refused)
    monkeypatch.setattr(attachment, "_steps_to_ready", fails)

    def abandon() -> None:
        if backend == "ioctl":
            none_left.clear()
        else:
            family: Any = SimpleNamespace(disconnect=lambda _: None, close=none_left.clear)
            by_netlink.Claimed(hold.node, family, job, ExitStack()).abandon()
        done.append("abandon")

    monkeypatch.setattr(queue_choice, "take_back", lambda _: done.append("queue"))
    done: list[str] = []
    hold: Any = SimpleNamespace(
        node=SimpleNamespace(device=NBD0, clear=lambda _: done.append("clear")),
        abandon=abandon,
        close=lambda: done.append("close"),
    )
    job: Any = SimpleNamespace(options=SimpleNamespace(server=None))
    with pytest.raises(KernelRefused, match="Too many open files"):
        attachment._complete(hold, Any, job, Deadline(1), list, Any)  # type: ignore[arg-type]
    assert (done, host.files) == (["abandon", "clear", "queue", "close"], [])
