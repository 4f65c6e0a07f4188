# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that has an attachment already: whether that is the requested one, and how it is refused otherwise.

Its imports look for users of a device, and take longer than most of an attach, so `attachment` imports it on demand.
"""

from __future__ import annotations

from nbdattach.attached import state
from nbdattach.attached.status import status_of
from nbdattach.attached.users import in_use, open_by, users_of
from nbdattach.attached.uses import opened, refusal
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.protocol.target import Target
from nbdattach.text import quoted


def require_same(device: Device, target: Target, options: ConnectOptions) -> None:
    """Raises `DeviceInUse` if the attachment has the right tag but another export or other properties."""
    there, record = status_of(device), state.load(device)
    hint = f"nbdattach disconnect {device.path}"
    if not (record and record.server):  # which has one device, whatever its tag
        hint += ", or give another --tag"
    attached = record.target if record else there.target
    if attached != target.uri:
        raise DeviceInUse(device.path, f"the tag {quoted(there.tag or '')} is taken: it holds {attached}", hint)
    if options.read_only and not there.read_only:
        raise DeviceInUse(device.path, f"{target.uri} is attached there read-write, not read-only", hint)
    if options.read_write and there.read_only:
        raise DeviceInUse(device.path, f"{target.uri} is attached there read-only, not read-write", hint)
    if record and record.trust != target.trust:
        cause = f"{target.uri} is attached there with other TLS options (verification, certificate or key)"
        raise DeviceInUse(device.path, cause, hint)
    transport = there.tls and there.tls["transport"]
    if transport and options.tls_transport not in ("auto", transport):
        cause = f"{target.uri} is attached there with TLS by {transport}, not by {options.tls_transport}"
        raise DeviceInUse(device.path, cause, hint)
    for option, wanted, found in (
        ("--expect-size", options.expect_size, there.size),
        ("--block-size", options.block_size, there.block_size),
    ):
        if wanted is not None and wanted != found:
            raise DeviceInUse(
                device.path, f"{target.uri} is attached there with {found} bytes, not {option} {wanted}", hint
            )
    # By the record: the files of the queue cannot be read if the kernel waits for the server.
    for name in ("scheduler", "read-ahead") if record else ():
        field = name.replace("-", "_")
        asked, was = getattr(options, field), getattr(record, field)
        if asked is not None and asked != was:
            attached = f"--{name} {was}" if was is not None else f"no --{name}"
            raise DeviceInUse(
                device.path, f"{target.uri} is attached there with {attached}, not --{name} {asked}", hint
            )


def holds_other(device: Device) -> DeviceInUse:
    status = status_of(device)
    if status.state == "lost":
        users = users_of(device) or opened(open_by(device))
        cause = f"holds the rest of a lost attachment, and is still {users if users else 'open'}"
        return refusal(device, cause, "release it first", users.uses)
    by = f"process {status.pid}" if status.pid else "another program"
    what = status.target or f"an attachment of {by}"
    return DeviceInUse(device.path, f"holds {what}", f"nbdattach disconnect {device.path}, or use another device")


def open_elsewhere(device: Device) -> DeviceInUse:
    """Another program has it open for itself alone."""
    return in_use(device, users_of(device))
