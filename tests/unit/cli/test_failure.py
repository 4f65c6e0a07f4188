# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures as JSON: one object on standard output, the lines for people where they always are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbdattach.attached import status
from nbdattach.attached.uses import Use, refusal
from nbdattach.cli import failure, main
from nbdattach.device import Device
from nbdattach.errors import KernelRefused
from nbdattach.operations import detachment

Capture = pytest.CaptureFixture[str]


def ran(capsys: Capture, *arguments: str) -> tuple[int, Any, list[str]]:
    """Exit code, the document on stdout, the lines on stderr."""
    code = main.run(list(arguments))
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--json", "connect"], True),
        (["connect", "db1", "--json"], True),
        (["connect", "--", "--json"], False),
        (["connect", "[", "server", "--json", "]"], False),
        (["connect", "[", "server", "--", "]", "--json"], True),
        (["connect", "[::1]:10809", "--json"], True),
        (["connect", "--json=yes"], False),
        (["status", "--format", "json", "sda"], True),
        (["status", "--format", "JSON"], True),
        (["--debug", "status", "--format=json"], True),
        (["status", "--format", "openmetrics"], False),
        (["connect", "--format", "json", "status"], False),
        ([], False),
    ],
)
def test_it_is_asked_for_by_the_word_alone(arguments: list[str], asked: bool) -> None:
    assert failure.asked_for(arguments) is asked


@pytest.mark.parametrize(
    ("arguments", "thing", "message", "hint"),
    [
        (
            ["connect", "--json"],
            "nbdattach connect",
            "nbdattach connect: Missing argument 'TARGET'.",
            "see nbdattach connect --help",
        ),
        (["frob", "--json"], "nbdattach", "nbdattach: No such command 'frob'.", "see nbdattach --help"),
        (
            ["status", "--json", "sda"],
            "'sda'",
            "'sda': not an nbd device",
            "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ...",
        ),
    ],
)
def test_a_usage_error_is_one_too(capsys: Capture, arguments: list[str], thing: str, message: str, hint: str) -> None:
    code, found, lines = ran(capsys, *arguments)
    error = {"kind": "usage", "exit_code": 2, "thing": thing, "message": message, "hint": hint, "users": []}
    assert (code, found["error"]) == (2, error)
    assert lines == [message if message.startswith("nbdattach") else f"nbdattach: {message}", f"({hint})"]


@pytest.mark.parametrize(
    ("stop", "message"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("boom"), "internal error: ValueError: boom")],
)
def test_an_end_that_nobody_meant_is_one_too(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, stop: BaseException, message: str
) -> None:
    def ends(*_: object) -> None:
        raise stop

    monkeypatch.setattr(status, "all_attached", ends)
    code, found, lines = ran(capsys, "status", "--json")
    assert (code, found["error"]["kind"], found["error"]["exit_code"]) == (1, "failed", 1)
    assert found["error"]["message"] == message
    assert f"nbdattach: {message}" in lines


def test_of_several_devices_all_failures_and_what_was_done(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Use("mount", "/srv/a b", "mounted at /srv/a b", ("umount", "/srv/a b"))
    bcache = Use("holder", "/dev/bcache0", "held by bcache0", (), "see /sys/block/bcache0")

    def detach(device: Device, *_: object, **__: object) -> str:
        if device.index == 1:
            raise refusal(device, "mounted at /srv/a b", "release it first", [mount, bcache])
        if device.index == 2:
            raise KernelRefused(device.path, "no", "ask again")
        return "" if device.index else "not attached"

    monkeypatch.setattr(detachment, "detach", detach)
    code, found, lines = ran(capsys, "disconnect", "--json", "nbd0", "nbd1", "nbd2", "nbd3")
    in_use = {
        "kind": "in-use",
        "exit_code": 7,
        "thing": "/dev/nbd1",
        "message": "/dev/nbd1: mounted at /srv/a b",
        "hint": "release it first",
        "users": [
            {"kind": "mount", "where": "/srv/a b", "release": ["umount", "/srv/a b"], "instead": None},
            {"kind": "holder", "where": "/dev/bcache0", "release": [], "instead": "see /sys/block/bcache0"},
        ],
    }
    assert (code, list(found), found["error"]) == (7, ["error", "errors", "results"], in_use)
    assert [one["kind"] for one in found["errors"]] == ["in-use", "kernel"]
    assert found["results"] == [
        {"device": "/dev/nbd0", "detached": False, "reason": "not attached"},
        {"device": "/dev/nbd3", "detached": True, "reason": None},
    ]
    assert lines == [
        "nbdattach: /dev/nbd0: not attached, nothing to do",
        "nbdattach: /dev/nbd2: no",
        "(ask again)",
        "nbdattach: /dev/nbd1: mounted at /srv/a b",
        "  mounted at /srv/a b: umount '/srv/a b'",
        "  held by bcache0: see /sys/block/bcache0",
        "(release it first)",
    ]
