# SPDX-License-Identifier: GPL-2.0-or-later
"""Planned changes of a living attachment: another connection, another server, another size. The monitor does them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.errors import TIMEOUT_OPTION, DeadlinePassed, NotAttached
from nbdattach.kernel import driver
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.monitor.control import Request
from nbdattach.operations.alone import alone_with_all
from nbdattach.operations.twice import Wanted
from nbdattach.protocol.target import Target


def reconnect(device: Device, target: Target | None = None, any_content: bool = False, shared: bool = False) -> str:
    """Hands the device over to new connections, to `target` if one is given; returns the URI that it now has.

    Only to the same disk, as far as its content tells, unless `any_content`; and not to one that another device has for
    writing, unless `shared`. The driver sends requests in flight again, and none fails. Raises `NbdattachError`; then
    everything is as before.
    """
    return _asked(device, "reconnect", target, any_content, shared)


def resize(device: Device) -> str:
    """Asks the server for the export's size and gives it to the device; returns the outcome as text.

    Raises `NbdattachError`; `DeviceInUse` if the device would shrink while it is in use.
    """
    return _asked(device, "resize")


def _asked(
    device: Device, do: str, target: Target | None = None, any_content: bool = False, shared: bool = False
) -> str:
    driver.refuse_other_systems()
    if not Kernel(device).attached:
        raise NotAttached(device.path)
    if target and target.tls:
        from nbdattach.connection import tls

        tls.require_usable(target)
    launch.ensure_monitor()
    uri, trust = (target.uri, target.trust) if target else (None, None)
    try:
        with _alone_at(device, target) if target and not shared else nullcontext():
            return control.ask(Request(do, device.name, uri, trust=trust, any_content=any_content))
    except DeadlinePassed as error:
        error.hint = error.hint.replace(TIMEOUT_OPTION, "the --connect-timeout of connect")
        raise


@contextmanager
def _alone_at(device: Device, target: Target) -> Iterator[None]:
    """Until the monitor has recorded the move, no other command attaches that export for writing.

    The command looks, not the monitor: that must not wait for another command, or for a name server. It will go to one
    of the addresses of the target; each counts. Raises `DeviceInUse` if a device has that export for writing already.
    """
    record = state.load(device)
    if record and record.read_only:
        yield
        return
    wanted = Wanted(target, target.export, None)
    with alone_with_all(wanted.names, target.uri):
        wanted.refuse(moving=device)
        yield
