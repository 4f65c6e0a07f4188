# SPDX-License-Identifier: GPL-2.0-or-later
"""Which device holds the attachment of a tag or of a target: by its record, or by what the kernel keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state, tags
from nbdattach.attached.state import Record
from nbdattach.kernel import sysfs


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return pretend(tmp_path, monkeypatch)


def save(tag: str, target: str) -> None:
    state.save(NBD0, Record(tag, target, "", "netlink", 1, "2026-01-02T03:04:05Z", 4711))


@pytest.mark.parametrize("tag", ["mine", " mine ", "x" * 2000])
def test_without_a_record_a_tag_is_known_by_what_the_kernel_keeps_of_it(host: Host, tag: str) -> None:
    host.attach(tag=sysfs.identifier(tag))
    assert tags.attached_as(tag=tag) == [NBD0]
    assert tags.has_tag(NBD0, tag)
    assert not tags.has_tag(NBD0, "other")


def test_with_a_record_its_tag_and_target_decide(host: Host) -> None:
    host.attach(tag="mine")
    host.attach(NBD1, tag="other")
    save("mine", "nbd://db1")
    assert tags.tag_of(NBD0) == "mine"
    assert tags.attached_as(tag="mine") == tags.attached_as(target="nbd://db1") == [NBD0]
    assert tags.attached_as(target="nbd://db2") == []


def test_device_that_is_not_attached_has_no_tag(host: Host) -> None:
    save("mine", "nbd://db1")
    assert tags.attached_as(tag="mine") == []
    assert tags.tag_of(NBD0) is None


def test_an_attachment_that_has_ended_is_not_found_by_its_tag(host: Host) -> None:
    """A program keeps the device, and the kernel keeps its identifier."""
    host.attach(tag="mine")
    save("mine", "nbd://db1")
    state.note_end(NBD0, state.identity_of(NBD0))
    assert (tags.attached_as(tag="mine"), tags.attached_as(target="nbd://db1"), tags.tag_of(NBD0)) == ([], [], None)
    assert tags.has_tag(NBD0, "mine")
