# SPDX-License-Identifier: GPL-2.0-or-later
"""Events for udev rules, in the form that the kernel takes. A file stands for the attribute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.kernel import uevents

# kobject_action_args in lib/kobject_uevent.c: a UUID, then words of letters and digits only.
TAKEN = re.compile(r"change [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}( [A-Za-z0-9]+=[A-Za-z0-9]+)+")


@pytest.mark.parametrize("what", [uevents.LOST, uevents.RECONNECTED])
def test_an_event_has_a_form_that_the_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    file = pretend(tmp_path, monkeypatch).sys / "block/nbd0/bdi/uevent"
    file.parent.mkdir(parents=True)
    file.touch()
    uevents.send(NBD0, what)
    assert TAKEN.fullmatch(file.read_text())
    assert file.read_text().endswith(f" NBDATTACH={what} DEVICE=nbd0")


def test_a_kernel_that_takes_none_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch)
    uevents.send(NBD0, uevents.LOST)
