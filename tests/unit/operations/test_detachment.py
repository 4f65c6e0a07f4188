# SPDX-License-Identifier: GPL-2.0-or-later
"""Which attachment a detach is meant for. What else it does needs the driver: `kernel`."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.kernel import sysfs
from nbdattach.operations import detachment


@pytest.mark.parametrize("tag", ["mine", " mine ", "x" * 2000])
def test_attachment_of_another_tag_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    pretend(tmp_path, monkeypatch).attach(tag=sysfs.identifier(tag))
    assert detachment.nothing_to_do(NBD0, None, tag) == ""
    assert "another attachment" in detachment.nothing_to_do(NBD0, None, "other")
