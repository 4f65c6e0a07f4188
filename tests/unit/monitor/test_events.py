# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of the log: their words are documented, and each line of a device has its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nbdattach.device import Device
from nbdattach.monitor import events

PAGE = Path(__file__).resolve().parents[3] / "man/nbdattach-monitor.service.8"


def test_all_words_are_in_the_man_page() -> None:
    listed = PAGE.read_text().partition(".It Cm watching")
    words = re.findall(r"^\.It Cm ([a-z]+)$", listed[1] + listed[2].partition(".El")[0], re.MULTILINE)
    assert words == [event.word for event in events.EVENTS]


def test_all_events_are_listed() -> None:
    assert {name for name, value in vars(events).items() if isinstance(value, events.Event)} == {
        event.word.upper() for event in events.EVENTS
    }


def test_a_line_of_a_device_has_its_fields() -> None:
    written: list[tuple[str, int, Mapping[str, str]]] = []
    there = ["nbd://db1/disk"]
    log = events.log_to(lambda line, priority=0, fields=(), /: written.append((line, priority, dict(fields))))
    one = events.log_of(log, Device(3), "db", lambda: there[0])
    one("nbd3: lost", events.LOST)
    there[0] = "nbd://db2/disk"
    one("nbd3: moved", events.MOVED)
    fields = {"NBDATTACH_DEVICE": "/dev/nbd3", "NBDATTACH_TAG": "db"}
    assert written == [
        ("nbd3: lost", 4, {**fields, "NBDATTACH_EVENT": "lost", "NBDATTACH_TARGET": "nbd://db1/disk"}),
        ("nbd3: moved", 5, {**fields, "NBDATTACH_EVENT": "moved", "NBDATTACH_TARGET": "nbd://db2/disk"}),
    ]
