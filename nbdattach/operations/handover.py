# SPDX-License-Identifier: GPL-2.0-or-later
"""Planned changes of a living attachment: another connection, another server, another size. The monitor does them."""

from __future__ import annotations

from nbdattach.device import Device
from nbdattach.errors import TIMEOUT_OPTION, DeadlinePassed, NotAttached
from nbdattach.kernel import driver
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.monitor.control import Request
from nbdattach.protocol.target import Target


def reconnect(device: Device, target: Target | None = None, any_content: bool = False) -> str:
    """Hands the device over to new connections, to `target` if one is given; returns the URI that it now has.

    Only to the same disk, as far as its content tells, unless `any_content`. The driver sends requests in flight again,
    and none fails. Raises `NbdattachError`; then everything is as before.
    """
    return _asked(device, "reconnect", target, any_content)


def resize(device: Device) -> str:
    """Asks the server for the export's size and gives it to the device; returns the outcome as text.

    Raises `NbdattachError`; `DeviceInUse` if the device would shrink while it is in use.
    """
    return _asked(device, "resize")


def _asked(device: Device, do: str, target: Target | None = None, any_content: bool = False) -> str:
    driver.refuse_other_systems()
    if not Kernel(device).attached:
        raise NotAttached(device.path)
    if target and target.tls:
        from nbdattach.connection import tls

        tls.require_usable(target)
    launch.ensure_monitor()
    uri, trust = (target.uri, target.trust) if target else (None, None)
    try:
        return control.ask(Request(do, device.name, uri, trust=trust, any_content=any_content))
    except DeadlinePassed as error:
        error.hint = error.hint.replace(TIMEOUT_OPTION, "the --connect-timeout of connect")
        raise
