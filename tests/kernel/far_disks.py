# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks on other machines, attached by a command in brackets: the examples of nbdattach-images(7). Run by `make far`.

The other machine is this guest: an SSH server, and an S3 service that keeps all in memory.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leftovers import servers_of_images
from listening import listens
from tool import digest_of, eventually, nbd, nbd_ok, shell

pytestmark = [pytest.mark.timeout(600), pytest.mark.any_monitor]
MOTO = Path(__file__).parents[2] / "build/far/bin/moto_server"
S3 = "http://127.0.0.1:5055"
SSH_PORT = 2222
SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""


@contextmanager
def running(*command: str | Path, port: int) -> Iterator[None]:
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: listens(server.pid, ("127.0.0.1", port)), 120)
            yield
        finally:
            server.kill()


def write_and_read_again(*words: str) -> str:
    """A file on a file system on that disk; returns the digest of the file after another attachment."""
    name = f"[ {' '.join(words)} ]"
    assert nbd_ok("connect", "[", *words, "]", "nbd0") == "/dev/nbd0"
    shell("mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt; head -c 3000000 /dev/urandom >/mnt/file")
    digest = digest_of("/mnt/file")
    shell("umount /mnt")
    nbd_ok("disconnect", name)
    assert not servers_of_images()
    nbd_ok("connect", "[", *words, "]", "nbd1")
    shell("mount -o ro /dev/nbd1 /mnt")
    assert digest_of("/mnt/file") == digest
    shell("umount /mnt")
    nbd_ok("disconnect", "nbd1")
    return digest


def test_a_disk_over_ssh(tmp_path: Path) -> None:
    for name in ("host", "user"):
        shell(f"ssh-keygen -q -t ed25519 -N '' -f {tmp_path}/{name}")
    (tmp_path / "sshd").write_text(SSHD.format(port=SSH_PORT, folder=tmp_path))
    kind, key, *_ = (tmp_path / "host.pub").read_text().split()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{SSH_PORT} {kind} {key}\n")
    disk = tmp_path / "disk.img"
    disk.touch()
    os.truncate(disk, 64 << 20)
    Path("/run/sshd").mkdir(exist_ok=True)
    options = [f"port={SSH_PORT}", f"identity={tmp_path}/user", f"known-hosts={tmp_path}/known"]
    with running("/usr/sbin/sshd", "-D", "-f", tmp_path / "sshd", port=SSH_PORT):
        digest = write_and_read_again("nbdkit", "ssh", "host=127.0.0.1", *options, str(disk))
    shell(f"debugfs -R 'dump file {tmp_path}/file' {disk}")
    assert digest_of(tmp_path / "file") == digest


def test_a_disk_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # nbdkit's Python looks for its modules beside the first python3 of PATH.
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    plugin = shell("dpkg -L nbdkit-plugin-python | grep S3-plugin$").strip()
    where = [f"endpoint-url={S3}", "bucket=disks", "key=vm1", "size=64M", "object-size=64k"]
    with running(MOTO, "-H", "127.0.0.1", "-p", "5055", port=5055):
        urllib.request.urlopen(urllib.request.Request(f"{S3}/disks", method="PUT")).close()
        write_and_read_again("nbdkit", "--filter=blocksize", "python", plugin, *where)
        lost = nbd("info", "[", "nbdkit", "S3", *where, "]")
        assert (lost.code in (3, 4), lost.out) == (True, ""), lost
        assert "does it take its socket by LISTEN_FDS" in lost.err, lost
    found = subprocess.run(["pgrep", "-x", "nbdkit"], capture_output=True, text=True)
    assert found.stdout == ""
