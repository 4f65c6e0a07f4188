# SPDX-License-Identifier: GPL-2.0-or-later
"""The missing driver, case by case, on a file system of our own: the cause and the hint."""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from nbdattach.errors import KernelRefused
from nbdattach.kernel import driver, sysfs

RELEASE = "6.1.0-test"
CONTAINERS = ["/run/systemd/container", "/.dockerenv", "/run/.containerenv"]


class Machine:
    """A root directory that `driver` takes for the machine's own; `modprobe` is a shell script there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = root / "lib/modules"
        for name in ("sys/module", "sys/block", "bin", "lib/modules"):
            (root / name).mkdir(parents=True)

    def at(self, path: str) -> str:
        return f"{self.root}{path}"

    def open(self, path: str) -> IO[str]:
        return builtins.open(self.at(path))

    def write(self, path: str, text: str = "") -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def has_modprobe(self, script: str) -> None:
        self.write("bin/modprobe", f'#!/bin/sh\necho "$@" >>{self.root}/asked\n{script}\n')
        (self.root / "bin/modprobe").chmod(0o755)

    def has_module(self, name: str = "kernel/drivers/block/nbd.ko.xz:") -> None:
        self.write(f"lib/modules/{RELEASE}/modules.dep", f"kernel/drivers/block/loop.ko.xz:\n{name}\n")

    @property
    def asked(self) -> list[str]:
        """The calls of modprobe."""
        file = self.root / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    paths = SimpleNamespace(
        exists=lambda path: os.path.exists(made.at(path)), isdir=lambda path: os.path.isdir(made.at(path))
    )
    fake = SimpleNamespace(
        path=paths, listdir=lambda path: os.listdir(made.at(path)), uname=lambda: SimpleNamespace(release=RELEASE)
    )
    monkeypatch.setattr(driver, "os", fake)
    monkeypatch.setattr(driver, "open", made.open, raising=False)
    monkeypatch.setattr(driver, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(driver, "is_root", lambda: True)
    monkeypatch.setattr(driver, "SYSTEM_PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path / "sys"))
    return made


def refusal() -> KernelRefused:
    with pytest.raises(KernelRefused) as caught:
        driver.ensure_loaded()
    assert caught.value.exit_code == 6
    assert str(caught.value).isprintable()
    return caught.value


# -- the driver exists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["module/nbd", "block/nbd0"])
def test_loaded_driver_is_not_loaded_again(machine: Machine, sign: str) -> None:
    (machine.root / "sys" / sign).mkdir()
    machine.has_modprobe("exit 1")
    driver.ensure_loaded()
    assert machine.asked == []


def test_loaded_driver_is_enough_for_who_is_not_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "sys/module/nbd").mkdir()
    monkeypatch.setattr(driver, "is_root", lambda: False)
    driver.ensure_loaded()


def test_missing_driver_is_loaded(machine: Machine) -> None:
    machine.has_modprobe(f"/bin/mkdir {machine.root}/sys/module/nbd")
    driver.ensure_loaded()
    assert machine.asked == ["nbd"]


def test_driver_that_is_there_in_spite_of_modprobes_complaints_is_good(machine: Machine) -> None:
    machine.has_modprobe(f"/bin/mkdir {machine.root}/sys/module/nbd; echo 'bad line in a file' >&2; exit 1")
    driver.ensure_loaded()


# -- not Linux ---------------------------------------------------------------------------------------------------------


@pytest.mark.row(14)
@pytest.mark.parametrize("platform", ["darwin", "freebsd14", "win32"])
def test_other_systems_are_refused_clearly(machine: Machine, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    (machine.root / "sys/module/nbd").mkdir()
    machine.has_modprobe("exit 0")
    monkeypatch.setattr(driver, "sys", SimpleNamespace(platform=platform))
    error = refusal()
    assert str(error) == f"this system ({platform}): not Linux, and only Linux has the nbd driver"
    assert error.hint == "only list, info and check work here"
    assert machine.asked == []


@pytest.mark.row(14)
def test_linux_is_not_refused() -> None:
    assert sys.platform == "linux"
    driver.refuse_other_systems()


def test_a_machine_without_proc_is_refused_because_users_cannot_be_seen(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.procfs, "PROC", f"{machine.root}/proc")
    assert str(refusal()) == f"{machine.root}/proc: not mounted, so the users of devices cannot be seen"
    assert machine.asked == []


# -- it cannot be loaded -----------------------------------------------------------------------------------------------


def test_who_is_not_root_is_told_what_root_must_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_module()
    machine.has_modprobe("exit 0")
    monkeypatch.setattr(driver, "is_root", lambda: False)
    error = refusal()
    assert str(error) == "nbd driver: not loaded, and only root may load it"
    assert error.hint == "as root: modprobe nbd"
    assert machine.asked == []


def test_no_modprobe(machine: Machine) -> None:
    machine.has_module()
    error = refusal()
    assert str(error) == "nbd driver: not loaded, and there is no modprobe"
    assert error.hint == "install the package kmod"


def test_modprobe_that_hangs_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_modprobe("exec /bin/sleep 60")
    monkeypatch.setattr(driver, "MODPROBE_SECONDS", 0.2)
    error = refusal()
    assert str(error) == "nbd driver: modprobe nbd took more than 0.2 s"
    assert error.hint == "see dmesg"


@pytest.mark.parametrize("mark", CONTAINERS)
@pytest.mark.parametrize("script", ["exit 0", "echo 'Operation not permitted' >&2; exit 1"])
def test_container_is_told_to_load_it_on_the_host(machine: Machine, mark: str, script: str) -> None:
    """Modules in its file system, if there are any, are not the host's."""
    machine.write(mark)
    machine.has_modprobe(script)
    error = refusal()
    assert str(error) == "nbd driver: not loaded, and this is a container"
    assert error.hint == "load it on the host: modprobe nbd; pass /dev/nbd* in"


@pytest.mark.parametrize("mark", CONTAINERS)
def test_container_without_modprobe_is_not_told_to_install_it(machine: Machine, mark: str) -> None:
    """Images are usually like this; kmod in there would not help."""
    machine.write(mark)
    assert str(refusal()) == "nbd driver: not loaded, and this is a container"


def test_modprobe_that_may_not_be_run_is_no_traceback(machine: Machine) -> None:
    machine.write("bin/modprobe", "#!/bin/sh\n")
    refusal()


def test_kernel_upgraded_without_a_reboot(machine: Machine) -> None:
    machine.has_modprobe("exit 1")
    for name in ("6.12.0-new", "6.1.9-new"):
        machine.write(f"lib/modules/{name}/modules.dep", "kernel/drivers/block/nbd.ko:\n")
    error = refusal()
    there = "6.1.9-new, 6.12.0-new"
    cause = f"not loaded: the modules of the running kernel {RELEASE} are gone, only those of {there} exist"
    assert str(error) == f"nbd driver: {cause}"
    assert error.hint == "the kernel was upgraded: reboot"


@pytest.mark.parametrize("empty", [True, False])
def test_no_modules_at_all(machine: Machine, empty: bool) -> None:
    machine.has_modprobe("exit 1")
    if not empty:
        machine.modules.rmdir()
    error = refusal()
    assert str(error) == f"nbd driver: not loaded: no modules for kernel {RELEASE} in /lib/modules"
    assert error.hint == "install the kernel's modules"


@pytest.mark.parametrize("listing", [None, "", "kernel/drivers/block/loop.ko:\nkernel/fs/not-nbd.ko:\n"])
def test_kernel_without_the_module(machine: Machine, listing: str | None) -> None:
    machine.has_modprobe("echo 'Module nbd not found' >&2; exit 1")
    (machine.modules / RELEASE).mkdir()
    if listing is not None:
        machine.write(f"lib/modules/{RELEASE}/modules.dep", listing)
    error = refusal()
    assert str(error) == f"nbd driver: kernel {RELEASE} has no nbd module"
    packages = "linux-modules-extra or kernel-modules-extra"
    assert error.hint == f"some distributions have it in a separate package, such as {packages}"


@pytest.mark.parametrize("listing", ["modules.dep", "modules.builtin"])
@pytest.mark.parametrize("name", ["nbd.ko", "nbd.ko.xz:", "nbd.ko.zst: kernel/lib/x.ko.zst"])
def test_module_that_is_there_and_cannot_be_loaded(machine: Machine, listing: str, name: str) -> None:
    machine.has_modprobe("echo 'modprobe: ERROR: Key was rejected by service' >&2; exit 1")
    machine.write(f"lib/modules/{RELEASE}/{listing}", f"kernel/drivers/block/{name}\n")
    error = refusal()
    assert str(error) == "nbd driver: cannot be loaded: modprobe: ERROR: Key was rejected by service"
    assert error.hint == "see dmesg; is module loading locked down?"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "modprobe nbd gave no reason"),
        (" \n", "modprobe nbd gave no reason"),
        ("one\n  two\tthree\n", "one two three"),
        ("x" * 999, "x" * 200),
    ],
)
def test_words_of_modprobe_are_on_one_line(machine: Machine, words: str, said: str) -> None:
    machine.has_module()
    error = driver.why_not(words)
    assert type(error) is KernelRefused
    assert str(error) == f"nbd driver: cannot be loaded: {said}"
