# SPDX-License-Identifier: GPL-2.0-or-later
"""Installing, reinstalling and removing the package do not disturb a writer on a mounted device."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from certificates import make
from dpkg import NBDATTACH, install, remove, run, status
from load import Load
from servers import Server, free_port, nbdkit
from tool import eventually, shell, sparse_file

from nbdattach.monitor import control

pytestmark = pytest.mark.usefixtures("installed")
MIB = 1 << 20


@dataclass
class Disk:
    """An image with a file system, served, attached to nbd0 and mounted at /mnt."""

    image: Path
    serve_options: list[str] = field(default_factory=list)
    connect_options: list[str] = field(default_factory=lambda: ["--backend", "netlink", "--on-loss", "wait:60"])
    port: int = field(default_factory=free_port)

    def serve(self) -> AbstractContextManager[Server]:
        return nbdkit(*self.serve_options, "file", f"file={self.image}", port=self.port)

    def attach(self) -> None:
        where = [f"localhost:{self.port}", "/dev/nbd0"]
        done = run(NBDATTACH, "connect", *self.connect_options, *where)
        assert done.stdout == "/dev/nbd0\n"
        run("mount", "/dev/nbd0", "/mnt")
        sparse_file(Path("/mnt/file"), MIB)

    def detach(self) -> None:
        run("umount", "/mnt")
        run(NBDATTACH, "disconnect", "/dev/nbd0")
        run("e2fsck", "-fn", str(self.image))


def disk(folder: Path) -> Disk:
    image = sparse_file(folder / "image", 32 * MIB)
    run("mkfs.ext4", "-q", str(image))
    return Disk(image)


def writer() -> Load:
    """On the mounted file system; it leaves time for dpkg, on one CPU."""
    return Load("/mnt/file", writers=2, pause=0.05)


def test_main_job(tmp_path: Path) -> None:
    one = disk(tmp_path)
    with one.serve():
        one.attach()
        assert (status("nbd0")["backend"], status("nbd0")["mounts"]) == ("netlink", ["/mnt"])
        assert "mounted at /mnt" in run(NBDATTACH, "disconnect", "nbd0", code=7).stderr
        one.detach()
        run(NBDATTACH, "status", "nbd0", code=8)


def see_it_installed_under_a_writer(one: Disk, deb: Path) -> None:
    """A new monitor comes with it, and connects again when the server is killed."""
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        one.attach()
        before = control.listener()
        with writer() as load:
            load.see_it_run()
            install(deb)
            load.see_it_run()
            assert control.listener() not in (None, before)
            server.kill()
            servers.enter_context(one.serve())
            load.see_it_run()
        assert load.errors == []
        assert status("nbd0")["state"] == "connected"
        one.detach()


def test_reinstalled_under_a_writer(tmp_path: Path, deb: Path) -> None:
    see_it_installed_under_a_writer(disk(tmp_path), deb)


@pytest.mark.parametrize("tls", [None, "relay"])
def test_upgraded_under_a_writer_from_modules_in_one_folder(
    tmp_path: Path, deb: Path, before_rooms: Path, tls: str | None
) -> None:
    """The old monitor and the old relay have the names of modules that are gone; the new monitor takes all over."""
    install(before_rooms)
    one = disk(tmp_path)
    if tls:
        certificates = make(tmp_path / "certificates")
        one.serve_options = ["--tls=require", f"--tls-certificates={certificates}"]
        one.connect_options += ["--tls-ca", f"{certificates}/ca-cert.pem", "--tls-transport", tls]
    see_it_installed_under_a_writer(one, deb)


def test_upgraded_by_ioctl_from_modules_in_one_folder(tmp_path: Path, deb: Path, before_rooms: Path) -> None:
    install(before_rooms)
    one = disk(tmp_path)
    one.connect_options = ["--backend", "ioctl"]
    with one.serve():
        one.attach()
        with writer() as load:
            load.see_it_run()
            install(deb)
            load.see_it_run()
        assert load.errors == []
        one.detach()


def test_removed_under_a_writer_and_installed_again(tmp_path: Path, deb: Path) -> None:
    """The monitor goes on without its program, and ends when the next package brings another one."""
    one = disk(tmp_path)
    with ExitStack() as servers:
        first = servers.enter_context(one.serve())
        one.attach()
        before = control.listener()
        with writer() as load:
            load.see_it_run()
            assert remove().splitlines() == [
                "nbdattach: left attached: /dev/nbd0",
                "nbdattach: the monitor keeps them connected until it is stopped, or the machine is.",
                "nbdattach: to detach them, install nbdattach again and use nbdattach disconnect.",
            ]
            assert not Path(NBDATTACH).exists()
            load.see_it_run()
            first.kill()
            second = servers.enter_context(one.serve())
            load.see_it_run()
            assert control.listener() == before
            install(deb)
            assert control.listener() not in (None, before)
            second.kill()
            servers.enter_context(one.serve())
            load.see_it_run()
        assert load.errors == []
        one.detach()


def test_removed_under_tls_in_the_kernel(tmp_path: Path, deb: Path) -> None:
    """The monitor has never spoken TLS before the program is gone."""
    one = disk(tmp_path)
    certificates = make(tmp_path / "certificates")
    one.serve_options = ["--tls=require", f"--tls-certificates={certificates}"]
    one.connect_options += ["--tls-ca", f"{certificates}/ca-cert.pem"]
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        one.attach()
        assert status("nbd0")["tls"]["transport"] == "kernel"
        remove()
        with writer() as load:
            load.see_it_run()
            server.kill()
            servers.enter_context(one.serve())
            load.see_it_run()
        assert load.errors == []
        install(deb)
        one.detach()


def test_removed_and_installed_under_the_ioctl_backend(tmp_path: Path, deb: Path) -> None:
    one = disk(tmp_path)
    one.connect_options = ["--backend", "ioctl"]
    with one.serve():
        one.attach()
        with writer() as load:
            load.see_it_run()
            assert "left attached: /dev/nbd0" in remove()
            load.see_it_run()
            install(deb)
            load.see_it_run()
        assert load.errors == []
        one.detach()


def test_removal_ends_the_monitor_where_nothing_is_attached(tmp_path: Path) -> None:
    one = disk(tmp_path)
    with one.serve():
        one.attach()
        one.detach()
    assert control.listener() is not None
    assert remove() == ""
    eventually(lambda: control.listener() is None)
    assert "nbdattach" not in shell("ls /lib/systemd/system /lib/udev/rules.d /lib/udev")
