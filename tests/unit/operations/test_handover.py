# SPDX-License-Identifier: GPL-2.0-or-later
"""A planned change that takes too long names the option that it has: that of connect."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from host import NBD0, pretend

from nbdattach.errors import DeadlinePassed
from nbdattach.monitor import control, launch
from nbdattach.operations import handover


def test_a_late_server_is_a_matter_of_the_option_of_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> NoReturn:
        raise DeadlinePassed("nbd://db1", 30, "connecting")

    pretend(tmp_path, monkeypatch).attach()
    monkeypatch.setattr(launch, "ensure_monitor", lambda: None)
    monkeypatch.setattr(control, "ask", late)
    for change in (handover.reconnect, handover.resize):
        with pytest.raises(DeadlinePassed) as caught:
            change(NBD0)
        assert caught.value.hint == "the --connect-timeout of connect sets how long to wait"
