# SPDX-License-Identifier: GPL-2.0-or-later
"""The status of an attachment at which nothing is unusual; a test replaces the fields that it is about."""

from __future__ import annotations

from nbdattach.attached.status import Status

PLAIN = Status(
    device="/dev/nbd0",
    index=0,
    state="connected",
    tag="nbd://db1/disk",
    target="nbd://db1/disk",
    export="disk",
    size=1 << 30,
    block_size=512,
    read_only=False,
    backend="netlink",
    connections=1,
    tls=None,
    pid=None,
    since="2026-01-02T03:04:05Z",
    mounts=[],
    holders=[],
    also=[],
    server=None,
    image=None,
    trouble=None,
)
