# SPDX-License-Identifier: GPL-2.0-or-later
"""The choice of a backend: every combination of the options and of this machine's abilities."""

from __future__ import annotations

import errno
import importlib.util
import math
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import nbdattach.backends
import nbdattach.kernel
from nbdattach.backends import by_ioctl, choice
from nbdattach.backends.base import Hold, Job
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import KernelRefused

MISSING = KernelRefused("netlink backend", "not here", "get it")
NO_WAIT = "the ioctl backend cannot wait for a server: the kernel ends its attachment when the connection is lost"


def attach_by_netlink(device: Device, job: Job) -> Hold:
    """Stands for by_netlink.attach, because importing that needs pyroute2."""
    raise NotImplementedError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(nbdattach.backends, "by_netlink", SimpleNamespace(attach=attach_by_netlink), raising=False)
    return monkeypatch


WAITS = [None, 0.0, 5.0, math.inf]


@pytest.mark.parametrize("asked", ["auto", "netlink"])
@pytest.mark.parametrize("on_loss", WAITS)
def test_netlink_is_taken_where_it_can_be_had(machine: pytest.MonkeyPatch, asked: str, on_loss: float | None) -> None:
    machine.setattr(choice, "why_no_netlink", lambda: None)
    chosen = choice.choose(ConnectOptions(backend=asked, on_loss=on_loss))
    assert (chosen.name, chosen.attach, chosen.makes_devices) == ("netlink", attach_by_netlink, True)


@pytest.mark.parametrize(("asked", "missing"), [("auto", MISSING), ("ioctl", MISSING), ("ioctl", None)])
@pytest.mark.parametrize("on_loss", [None, 0.0])
def test_ioctl_is_taken_where_it_is_asked_for_or_all_there_is(
    machine: pytest.MonkeyPatch, asked: str, missing: KernelRefused | None, on_loss: float | None
) -> None:
    machine.setattr(choice, "why_no_netlink", lambda: missing)
    chosen = choice.choose(ConnectOptions(backend=asked, on_loss=on_loss))
    assert (chosen.name, chosen.attach, chosen.makes_devices) == ("ioctl", by_ioctl.attach, False)


@pytest.mark.parametrize(
    ("asked", "on_loss"), [*(("netlink", on_loss) for on_loss in WAITS), ("auto", 5.0), ("auto", math.inf)]
)
def test_what_only_netlink_can_do_is_refused_with_the_reason_why_it_is_missing(
    machine: pytest.MonkeyPatch, asked: str, on_loss: float | None
) -> None:
    machine.setattr(choice, "why_no_netlink", lambda: MISSING)
    with pytest.raises(KernelRefused) as caught:
        choice.choose(ConnectOptions(backend=asked, on_loss=on_loss))
    assert caught.value is MISSING


@pytest.mark.parametrize("missing", [None, MISSING])
@pytest.mark.parametrize("on_loss", [5.0, math.inf])
def test_ioctl_that_is_asked_to_wait_is_refused(
    machine: pytest.MonkeyPatch, missing: KernelRefused | None, on_loss: float
) -> None:
    machine.setattr(choice, "why_no_netlink", lambda: missing)
    with pytest.raises(KernelRefused) as caught:
        choice.choose(ConnectOptions(backend="ioctl", on_loss=on_loss))
    assert str(caught.value) == f"--on-loss: {NO_WAIT}"
    assert caught.value.hint == "use --backend netlink, or --on-loss fail"


# -- reasons for no netlink --------------------------------------------------------------------------------------------


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyroute2" else pytest.fail(name))
    reason = choice.why_no_netlink()
    assert str(reason) == "netlink backend: pyroute2 is not installed"
    assert reason is not None
    assert reason.hint == f"{choice.how_to_install()}, or --backend ioctl"


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the modules of a Python that is in no venv."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path) if name == "stdlib" else pytest.fail(name))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    return tmp_path


PIP = f"{sys.executable} -m pip install 'pyroute2>=0.7.2'"


def test_pip_is_not_the_hint_for_a_python_that_refuses_it(python: Path) -> None:
    """Wherever nbdattach itself is: Debian's Python refuses pip for a checkout, too."""
    (python / "EXTERNALLY-MANAGED").touch()
    assert choice.how_to_install() == "apt install python3-pyroute2"


def test_pip_is_the_hint_for_other_pythons(python: Path) -> None:
    assert choice.how_to_install() == PIP


def test_pip_is_the_hint_in_a_venv_of_a_python_that_refuses_it(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (python / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sys, "prefix", "/srv/venv")
    assert choice.how_to_install() == PIP


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOENT, "the kernel has no netlink family nbd here"),
        (errno.EPERM, "opening it: Operation not permitted (EPERM)"),
    ],
)
def test_missing_family_is_named(monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    def refuse() -> None:
        raise OSError(number, "no")

    pretend(monkeypatch, refuse)
    reason = choice.why_no_netlink()
    assert str(reason) == f"netlink backend: {cause}"
    assert reason is not None
    assert reason.hint == "use --backend ioctl"


def test_where_the_family_opens_there_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    pretend(monkeypatch, lambda: SimpleNamespace(close=lambda: closed.append(True)))
    assert choice.why_no_netlink() is None
    assert closed == [True]


def pretend(monkeypatch: pytest.MonkeyPatch, family: object) -> None:
    """pyroute2 is installed, and opening the family has this result."""
    module = ModuleType("nbdattach.kernel.netlink")
    module.Family = family  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "nbdattach.kernel.netlink", module)
    monkeypatch.setattr(nbdattach.kernel, "netlink", module, raising=False)


@pytest.mark.parametrize(
    "options", [ConnectOptions(connections=4, io_timeout=60), ConnectOptions(connections=4, reconnect=False)]
)
def test_several_connections_are_had_where_nothing_is_sent_again_unasked(options: ConnectOptions) -> None:
    assert choice.no_less_safe_than_one(options) == (options, [])


def test_several_connections_without_a_time_for_requests_are_one_and_the_reason_is_said() -> None:
    """The driver would send a slow request again over another connection, and the server may still do the first."""
    options, (note,) = choice.no_less_safe_than_one(ConnectOptions(connections=4))
    assert options == ConnectOptions(connections=1)
    assert note.startswith("only one connection is made") and "--io-timeout TIME" in note


@pytest.mark.parametrize("connections", [0, 1])
def test_one_connection_is_nothing_to_speak_of(connections: int) -> None:
    assert choice.no_less_safe_than_one(ConnectOptions(connections=connections)) == (ConnectOptions(connections=1), [])
