# SPDX-License-Identifier: GPL-2.0-or-later
"""The common part of both backends: the kernel's name for a tag, and the limits of the queue. On a /sys of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NBD0, pretend
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.backends.base import Job, set_queue_limits
from nbdattach.backends.limits import plan
from nbdattach.connect_options import ConnectOptions
from nbdattach.kernel.sysfs import MAX_IDENTIFIER, identifier
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target

EXPORT = Export("disk", 1 << 20, 0x101, "newstyle-fixed")
PAGE = 4096


def size(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))


# -- the identifier ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["t", "nbd://db1/disk", "a" * 1024, "ä" * 512, "磁" * 341, "\udcff" * 1024])
def test_a_tag_that_fits_is_its_own_identifier(tag: str) -> None:
    assert identifier(tag) == tag


@pytest.mark.parametrize("tag", ["a" * 1025, "ä" * 513, "磁" * 342, "\udcff" * 1025, "nbd://db1/" + "%00" * 4096])
def test_a_tag_that_is_too_long_has_a_digest(tag: str) -> None:
    assert identifier(tag).startswith("sha256:")
    assert len(identifier(tag)) == len("sha256:") + 64


def test_the_digest_is_that_of_the_tags_bytes() -> None:
    """Another version of this program, and `sha256sum`, find the same."""
    assert identifier("a" * 1025) == "sha256:4a82297889eb505cf6b5cbdf69977afab4632d6557539782f657bd7dc78091a5"


@given(st.text(max_size=9), st.text(max_size=9), st.integers(1, 2000))
def test_identifiers_fit_into_a_page_and_tell_tags_apart(one: str, other: str, times: int) -> None:
    first, second = (identifier((text * times).encode(errors="ignore").decode()) for text in (one, other))
    assert size(first) <= MAX_IDENTIFIER < PAGE - len("\n\0")
    same = (one * times).encode(errors="ignore") == (other * times).encode(errors="ignore")
    assert (first == second) is same


# -- times and limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "whole"), [(0.0, 0), (0.001, 1), (0.5, 1), (1.0, 1), (1.001, 2), (90.0, 90), (31_536_000.0, 31_536_000)]
)
def test_a_short_limit_does_not_become_none(asked: float, whole: int) -> None:
    """0 means no limit to the kernel, which counts whole seconds."""
    assert ConnectOptions(io_timeout=asked).whole_io_timeout == whole


@pytest.mark.parametrize(
    ("connections", "io_timeout", "written"),
    [(1, 0.0, 3000), (1, 0.5, 1000), (1, 90.0, 90_000), (4, 1.5, 2000)],
)
def test_the_limits_of_the_queue_are_those_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int, io_timeout: float, written: int
) -> None:
    queue = pretend(tmp_path, monkeypatch).sys / "block/nbd0/queue"
    queue.mkdir(parents=True)
    job = Job(
        "t", Target("db1"), EXPORT, plan("db1", EXPORT), list(range(connections)), ConnectOptions(io_timeout=io_timeout)
    )  # fmt: skip
    set_queue_limits(NBD0, job, 3000)
    assert {file.name: file.read_text() for file in queue.iterdir()} == {
        "io_timeout": str(written), "max_sectors_kb": "1024", "write_cache": "write back", "iostats": "1",
    }  # fmt: skip
