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

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.attached.status import status_of
from nbdattach.backends import by_netlink, queue_choice
from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.kernel import sysfs
from nbdattach.operations import attachment, handle
from nbdattach.operations.handle import Attachment


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


def test_what_a_program_keeps_of_a_failed_attachment_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows it as attached for as long as its partition is open, and nothing else tells them apart."""
    host, later = pretend(tmp_path, monkeypatch), list[tuple[object, ...]]()
    host.attach()
    monkeypatch.setattr(attachment, "_steps_to_ready", raises)
    monkeypatch.setattr(attachment, "tidy_up_later", lambda *arguments: later.append(arguments))
    monkeypatch.setattr(queue_choice, "take_back", lambda _: None)
    state.save(NBD0, Record("mine", "nbd://db1", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711))
    node = SimpleNamespace(device=NBD0, clear=lambda _: None)
    hold: Any = SimpleNamespace(node=node, abandon=lambda: None, close=lambda: None)
    job: Any = SimpleNamespace(options=SimpleNamespace(server=None))
    with pytest.raises(KernelRefused):
        attachment._complete(hold, Any, job, Deadline(1), list, Any)  # type: ignore[arg-type]
    assert later == [(NBD0, 4711)]
    found = status_of(NBD0)
    assert (found.state, found.target) == ("lost", None)
    assert found.trouble and found.trouble["error"] == "detached; the kernel frees it when its last user releases it"


def raises(*_: object) -> NoReturn:
    raise KernelRefused("/dev/nbd0", "no", "ask again")


def test_a_program_that_is_interrupted_as_it_enters_the_context_leaves_no_device_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    pretend(tmp_path, monkeypatch).attach()
    one, done = Attachment("/dev/nbd0", 1), list[str]()
    monkeypatch.setattr(one, "disconnect", lambda: done.append("detached"))
    monkeypatch.setattr(handle.upgrade, "load_all", interrupted)
    with pytest.raises(KeyboardInterrupt), one:
        pytest.fail("entered")
    assert done == ["detached"]
