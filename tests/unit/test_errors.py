# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors made of facts: exit codes are the contract's, and a text is one line even if the peer's name is not."""

from __future__ import annotations

import errno

import pytest

from nbdattach import errors
from nbdattach.errors import (
    BrokenProtocol,
    ConnectionLost,
    DeadlinePassed,
    DeviceInUse,
    KernelRefused,
    Malformed,
    NbdattachError,
    NoConnection,
    NotAttached,
    Refused,
    TlsFailed,
    UnknownExport,
)

EXIT_CODES: dict[type[NbdattachError], int] = {
    NbdattachError: 1,
    Malformed: 2,
    NoConnection: 3,
    ConnectionLost: 3,
    DeadlinePassed: 3,
    Refused: 4,
    UnknownExport: 4,
    BrokenProtocol: 4,
    TlsFailed: 5,
    errors.NotInKernel: 5,
    errors.MaybeNotInKernel: 5,
    KernelRefused: 6,
    DeviceInUse: 7,
    NotAttached: 8,
}
HOSTILE = "\x1b[2J\r\n\u202e\u2028\x9b'\\\udcff%s{0}"


@pytest.mark.parametrize(("of", "code"), EXIT_CODES.items())
def test_exit_code_is_the_contracts(of: type[NbdattachError], code: int) -> None:
    assert of.exit_code == code


def test_every_class_has_its_row_in_the_table() -> None:
    classes = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, NbdattachError)}
    assert classes == set(EXIT_CODES)


def test_text_is_thing_and_cause() -> None:
    error = Refused("nbd://db1", "the server is shutting down", "try again")
    assert str(error) == "nbd://db1: the server is shutting down"
    assert (error.thing, error.cause, error.hint) == ("nbd://db1", "the server is shutting down", "try again")


def test_no_error_is_made_without_a_hint() -> None:
    with pytest.raises(TypeError, match="hint"):
        Refused("nbd://db1", "no")  # type: ignore[call-arg]


def test_deadline_tells_seconds_and_what_was_waited_for() -> None:
    error = DeadlinePassed("nbd://db1", 2.5, "connecting")
    assert str(error) == "nbd://db1: no answer within 2.5 s (connecting)"
    assert error.hint == "--connect-timeout TIME sets how long to wait"


def test_unknown_export_as_in_the_contract() -> None:
    error = UnknownExport("nbd://db1/disk", "disk", ["root", "swap"], "nbd://db1")
    assert str(error) == "nbd://db1/disk: the server has no export named 'disk'"
    assert error.hint == "it offers: root, swap; see nbdattach list nbd://db1"


@pytest.mark.parametrize(
    ("offered", "hint"),
    [
        (None, "it does not list its exports: see its configuration for their names"),
        ([], "it lists no exports: see its configuration for their names"),
        ([""], "it lists only a default export, which has no name: use nbd://db1"),
        (
            ["", "a"],
            "it offers: a; it has a default export as well, without a name; see nbdattach list nbd://db1",
        ),
        (list("abcdefgh"), "it offers: a, b, c, d, e, f, g, h; see nbdattach list nbd://db1"),
        (list("abcdefghi"), "it offers: a, b, c, d, e, f, g, h, ...; see nbdattach list nbd://db1"),
    ],
)
def test_unknown_export_hints_at_what_there_is(offered: list[str] | None, hint: str) -> None:
    assert UnknownExport("nbd://db1", "", offered, "nbd://db1").hint == hint


def test_hostile_names_stay_on_one_line() -> None:
    error = UnknownExport("nbd://db1", HOSTILE, [HOSTILE, "n" * 4096], "nbd://db1", HOSTILE)
    shown = r"\x1b[2J\r\n\u202e\u2028\x9b\'\\\udcff%s{0}"
    assert str(error) == f"nbd://db1: the server has no export named '{shown}'; it says: '{shown}'"
    assert error.hint.isprintable()
    assert len(error.hint) < 400


def test_kernel_refusal_names_step_and_error() -> None:
    error = KernelRefused.at("/dev/nbd0", "NBD_SET_SOCK", errno.EBUSY)
    assert str(error) == "/dev/nbd0: NBD_SET_SOCK: Device or resource busy (EBUSY)"
    assert error.hint == "see the kernel's log: dmesg"
    assert KernelRefused.at("/dev/nbd0", "NBD_SET_SOCK", errno.EPERM, "be root").hint == "be root"


def test_kernel_refusal_with_an_error_without_a_name() -> None:
    assert str(KernelRefused.at("/dev/nbd0", "NBD_DO_IT", 4000)) == "/dev/nbd0: NBD_DO_IT: Unknown error 4000 (4000)"


def test_not_attached() -> None:
    error = NotAttached("/dev/nbd0")
    assert (str(error), error.hint) == ("/dev/nbd0: not attached", "nbdattach status shows the attached devices")
