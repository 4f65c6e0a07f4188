# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system from an initramfs: its messages, its trusted authorities, and its files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nbdattach
from nbdattach.boot import root
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import NoConnection
from nbdattach.monitor import service
from nbdattach.operations import attachment
from nbdattach.operations.handle import Attachment
from nbdattach.protocol.target import Target
from nbdattach.reporter import Reporter


class Kernel:
    """Attaches every target."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.patience = 0.0
        self.stand_in = ""  # why there is none

    def attach(self, target: Target, device: Device, options: ConnectOptions, reporter: Reporter) -> Attachment:
        assert options.root
        self.targets.append(target)
        self.patience = options.retry_for
        reporter.trace("nbd://db1: cannot connect: Connection refused")
        reporter.trace("nbd://db1: cannot connect: Connection refused")
        return Attachment(device.path, 1, ["a note"])


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(attachment, "attach", made.attach)
    monkeypatch.setattr(service, "stand_in", lambda: made.stand_in)
    monkeypatch.setattr(root, "_KERNEL_LINE", str(tmp_path / "cmdline"))
    return made


def no_server(*_: object) -> None:
    raise NoConnection("nbd://db1", "cannot connect", "is it running?")


def booted(tmp_path: Path, line: str) -> None:
    (tmp_path / "cmdline").write_text(line)
    root.main()


def test_the_initramfs_is_told_what_to_mount(
    kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    booted(tmp_path, "root=nbd:db1:disk:ext4:noatime,x=$(reboot)")
    out, err = capsys.readouterr()
    assert out == ("ROOT=/dev/nbd0\nROOTFSTYPE=ext4\nROOTFLAGS='-o noatime,x=$(reboot)'\nNBDATTACH_DEVICE=/dev/nbd0\n")
    assert err.splitlines() == [
        "nbdattach: attaching nbd://db1/disk",
        "nbdattach: nbd://db1: cannot connect: Connection refused",
        "nbdattach: a note",
    ]


def test_it_boots_without_anybody_who_stands_in(
    kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.stand_in = "monitor: no memory"
    booted(tmp_path, "root=nbd://db1")
    out, err = capsys.readouterr()
    assert out == "ROOT=/dev/nbd0\nNBDATTACH_DEVICE=/dev/nbd0\n"
    assert "a lost connection is not made again before the real system's monitor runs: monitor: no memory" in err


def test_a_root_elsewhere_is_no_business_of_ours(
    kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    booted(tmp_path, "root=/dev/sda1")
    assert (kernel.targets, capsys.readouterr().out) == ([], "")


def test_an_error_is_one_line_and_its_exit_code(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attachment, "attach", no_server)
    with pytest.raises(SystemExit) as ended:
        booted(tmp_path, "nbdroot=nbd://db1 root=/dev/nbd0")
    assert ended.value.code == NoConnection.exit_code
    said = "nbdattach: attaching nbd://db1\nnbdattach: nbd://db1: cannot connect\n(is it running?)\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("options", "ca"),
    [
        ("", root.TLS_FOLDER),
        ("tls-ca=/etc/ca.pem", "/etc/ca.pem"),
        ("tls-no-verify", ""),
        ("tls-psk=/etc/psk", ""),
    ],
)
def test_whom_the_hook_has_copied_is_trusted_if_nothing_is_said(
    kernel: Kernel, tmp_path: Path, options: str, ca: str
) -> None:
    booted(tmp_path, f"nbdroot=nbds://db1 nbdopts={options}")
    assert kernel.targets[0].tls_ca == ca


@pytest.mark.parametrize(("line", "since"), [("root=nbd://db1", 0.0), ("root=nbd://db1 nbdopts=retry-for=30", 15.0)])
def test_who_calls_again_and_again_is_asked_for_another_turn(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, since: float
) -> None:
    monkeypatch.setattr(attachment, "attach", no_server)
    monkeypatch.setenv("NBDATTACH_SINCE", str(time.monotonic() - since))
    with pytest.raises(SystemExit) as ended:
        booted(tmp_path, line)
    assert ended.value.code == 75


@pytest.mark.parametrize("since", [25.0, 300.0])
def test_the_last_turn_ends_with_the_error(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float
) -> None:
    monkeypatch.setattr(attachment, "attach", no_server)
    monkeypatch.setenv("NBDATTACH_SINCE", str(time.monotonic() - since))
    with pytest.raises(SystemExit) as ended:
        booted(tmp_path, "root=nbd://db1 nbdopts=retry-for=30")
    assert ended.value.code == NoConnection.exit_code


@pytest.mark.parametrize(("since", "patience"), [(0.0, 10.0), (25.0, 5.0), (300.0, 0.0)])
def test_a_turn_is_short_and_all_together_are_as_long_as_was_asked_for(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float, patience: float
) -> None:
    monkeypatch.setenv("NBDATTACH_SINCE", str(time.monotonic() - since))
    booted(tmp_path, "root=nbd://db1 nbdopts=retry-for=30")
    assert kernel.patience == pytest.approx(patience, abs=1.0)


def test_an_initramfs_may_have_words_that_the_kernel_was_not_given(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBDATTACH_CMDLINE", "quiet root=nbd://db2/x")
    booted(tmp_path, "quiet")
    assert kernel.targets[0].uri == "nbd://db2/x"


def kernels(folder: Path, answer: str) -> dict[str, str]:
    """An environment with this code, installed or not, and with a modprobe that succeeds with everything."""
    (folder / "modprobe").write_text(f"#!/bin/sh\necho {answer}\n")
    (folder / "modprobe").chmod(0o755)
    here = str(Path(nbdattach.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": here, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_kernel_without_the_driver_makes_no_initramfs(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "nbdattach.boot.initramfs", str(tmp_path), "1.2.3"]
    done = subprocess.run(command, capture_output=True, text=True, env=kernels(tmp_path, ""))
    assert (done.returncode, done.stderr) == (1, "nbdattach: the kernel 1.2.3 has no driver nbd\n")


def test_what_an_initramfs_gets_is_all_that_it_takes(tmp_path: Path) -> None:
    """Byte code alone, beside an interpreter that finds nothing else."""
    found = subprocess.run(
        [sys.executable, "-P", "-m", "nbdattach.boot.initramfs", str(tmp_path), "1.2.3"],
        check=True,
        capture_output=True,
        text=True,
        env=kernels(tmp_path, "aesni"),
    ).stdout
    interpreter, *others = [line.split() for line in found.splitlines()]
    assert interpreter == ["copy", os.path.realpath(sys.executable), "/usr/bin/python3"]
    assert {line[0] for line in others} == {"copy", "module"}
    assert all(line[1].endswith(".so") for line in others if line[0] == "copy")
    assert {line[1] for line in others if line[0] == "module"} >= {"nbd", "tls", "aesni"}
    modules = tmp_path / "usr/lib/nbdattach"
    packages = {path.name for path in modules.iterdir()}
    assert {"nbdattach", "pyroute2"} <= packages
    assert not packages & {"click", "pytest", "hypothesis"}
    stdlib = next(tmp_path.rglob("os.pyc")).parent
    program = f"""
import sys
dynamic = [path for path in sys.path if path.endswith("lib-dynload")]
sys.path[:] = [*dynamic, "{modules}", "{stdlib}"]
from nbdattach.boot import root
root.require_all_modules()
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] == "nbdattach":
        print(module.__file__)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(map(str, (modules / "nbdattach").rglob("*.pyc")))
