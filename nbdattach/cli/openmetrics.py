# SPDX-License-Identifier: GPL-2.0-or-later
"""Attachments as metrics, in the text format of OpenMetrics 1.0.

Decision that matters: it has only what node_exporter's textfile collector reads too: its format is Prometheus's older
one. That has no StateSet and no Info, and refuses the whole file for them. So states are gauges, 1 or 0.
The label `device` is "nbd0", as in node_exporter's metrics of disks, so that both can be joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from nbdattach.immutable import immutable

if TYPE_CHECKING:
    from nbdattach.attached.history import History
    from nbdattach.attached.status import Status

STATES = ("connected", "reconnecting", "lost", "unknown")
_Sample = tuple[dict[str, str], float]


@immutable
class Measured:
    """One attached device at one moment. `history` is None if no monitor watches it. `now` is of `clock.boot_time`."""

    status: Status
    under_way: int  # requests
    history: History | None
    now: float


def text(found: Sequence[Measured], monitor: bool | None) -> str:
    """`monitor`: whether one runs; None if that is not known."""
    return "\n".join([*_lines(found, monitor), "# EOF"])


def _lines(found: Sequence[Measured], monitor: bool | None) -> Iterator[str]:
    yield from _family(
        "nbdattach_monitor_up",
        "gauge",
        "Whether the monitor runs.",
        [({}, int(monitor))] if monitor is not None else [],
    )
    yield from _family(
        "nbdattach_device_info", "gauge", "An attached device; always 1.", [(_info(one), 1) for one in found]
    )
    yield from _family(
        "nbdattach_device_state",
        "gauge",
        "1 for the state of the device, 0 for other states.",
        [({**_names(one), "state": state}, int(one.status.state == state)) for one in found for state in STATES],
    )
    yield from _family(
        "nbdattach_device_size_bytes",
        "gauge",
        "Size of the device.",
        [(_names(one), one.status.size) for one in found],
        unit="bytes",
    )
    yield from _family(
        "nbdattach_device_inflight_requests",
        "gauge",
        "Requests under way, also those that wait for the server's return.",
        [(_names(one), one.under_way) for one in found],
        unit="requests",
    )
    watched = [(_names(one), one.history, one.now) for one in found if one.history]
    yield from _family(
        "nbdattach_device_reconnects",
        "counter",
        "Outages of the server that are over.",
        [(names, history.reconnects) for names, history, _ in watched],
    )
    yield from _family(
        "nbdattach_device_away_seconds",
        "counter",
        "Time without all connections.",
        [(names, history.seconds_away(now)) for names, history, now in watched],
        unit="seconds",
    )
    yield from _family(
        "nbdattach_device_last_error_age_seconds",
        "gauge",
        "Time since the last failed try to connect again.",
        [
            (names, max(0.0, now - history.failed_at))
            for names, history, now in watched
            if history.failed_at is not None
        ],
        unit="seconds",
    )


def _names(one: Measured) -> dict[str, str]:
    return {"device": one.status.device.removeprefix("/dev/"), "tag": one.status.tag or ""}


def _info(one: Measured) -> dict[str, str]:
    status = one.status
    return {
        **_names(one),
        "target": status.target or "",
        "export": status.export or "",
        "backend": status.backend or "",
        "tls": status.tls["version"] if status.tls else "",
    }


def _family(name: str, kind: str, help_: str, samples: Iterable[_Sample], unit: str = "") -> Iterator[str]:
    samples = list(samples)
    if not samples:
        return
    yield f"# TYPE {name} {kind}"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {help_}"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(of)}"' for label, of in labels.items())
        yield f"{name}{'_total' * (kind == 'counter')}{f'{{{inside}}}' * bool(inside)} {_number(value)}"


def _escaped(value: str) -> str:
    """Bytes that are no UTF-8 become question marks, because a reader would refuse them."""
    whole = value.encode(errors="replace").decode()
    return whole.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
