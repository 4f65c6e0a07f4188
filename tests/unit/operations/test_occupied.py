# SPDX-License-Identifier: GPL-2.0-or-later
"""How a device that has another attachment is refused. `tests/kernel` has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.operations import occupied


def test_an_attachment_of_another_program_by_netlink_is_told_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That has ended, as nbd-client has, and its number means nothing."""
    pretend(tmp_path, monkeypatch).attach()
    assert occupied.holds_other(NBD0).cause == "holds an attachment of another program"
