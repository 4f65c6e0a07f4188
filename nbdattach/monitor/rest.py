# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a device is at rest: all was well at the last whole look at it, and nothing has happened since.

Most devices are idle most of the time, and a whole look once a second reads ten files of sysfs.
"""

from __future__ import annotations

import contextlib

from nbdattach.device import Device
from nbdattach.kernel.pulse import Pulse
from nbdattach.kernel.sysfs import Kernel

_Beat = tuple[object, ...]


class Rest:
    """For one caller at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pulse: Pulse | None = None
        self._beat: _Beat | None = None

    def begin(self) -> _Beat | None:
        """Before a whole look, whose result is for `note`. What happens during the look belongs to the next one."""
        self._beat = None
        self.close()
        with contextlib.suppress(OSError):  # no attachment, or no descriptor is free
            self._pulse = Pulse(self._device)
            return self._pulse.beat()
        return None

    def note(self, begun: _Beat | None) -> None:
        """The look has found that all is well, and that nothing is to be done."""
        if not Kernel(self._device).pending:
            self._beat = begun

    def goes_on(self) -> bool:
        """Whether nothing has happened since such a look."""
        pulse = self._pulse  # which another thread may close
        return self._beat is not None and pulse is not None and pulse.beat() == self._beat

    def close(self) -> None:
        if self._pulse:
            self._pulse.close()
            self._pulse = None
