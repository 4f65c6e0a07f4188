# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that stays while its files are replaced, as by an upgrade to a version whose modules have other names."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import free_port, nbdkit
from tool import BACKEND, attached, by_our_backend, digest_of, fill_with_noise, nbd_ok, sparse_file

import nbdattach
from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

FIRST = Kernel(Device(0))
# Uses our API: attaches nbd0, and detaches it at the end of its input.
PROGRAM = """
import sys, nbdattach
with nbdattach.connect(sys.argv[1], "nbd0", backend=sys.argv[2]) as attachment:
    print(attachment.device, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A copy of our program, to be removed. The monitor, which a package restarts, is another's."""
    shutil.copytree(Path(nbdattach.__file__).parent, tmp_path / "old/nbdattach")
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd1"):
        yield tmp_path / "old"


def connecting_from(old: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    words, pipe = [sys.executable, "-m", "nbdattach", *by_our_backend("connect", *arguments)], subprocess.PIPE
    return subprocess.Popen(words, cwd=old, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **more})


def in_foreground(old: Path, uri: str) -> subprocess.Popen[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{old}/told")
        process = connecting_from(old, "--foreground", uri, "nbd0", NOTIFY_SOCKET=f"{old}/told")
        _is_attached(process)
        assert told.recv(1000).startswith(b"READY=1")
    return process


def program(old: Path, uri: str) -> subprocess.Popen[str]:
    words, pipe = [sys.executable, "-c", PROGRAM, uri, BACKEND], subprocess.PIPE
    process = subprocess.Popen(words, cwd=old, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    _is_attached(process)
    return process


def _is_attached(process: subprocess.Popen[str]) -> None:
    assert process.stdout and process.stdout.readline() == "/dev/nbd0\n"


@pytest.mark.parametrize("attach", [in_foreground, program])
def test_what_stays_with_the_device_detaches_it(
    attach: Callable[[Path, str], subprocess.Popen[str]], tmp_path: Path, old: Path
) -> None:
    """connect --foreground, and a program with our API."""
    image = sparse_file(tmp_path / "image", 8 << 20)
    with nbdkit("file", f"file={image}") as server:
        process = attach(old, server.uri)
        shutil.rmtree(old)
        written = fill_with_noise("/dev/nbd0", 8)
        if process.stdin is None:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err, FIRST.attached) == (0, "", False)
    assert digest_of(image) == written


@pytest.mark.netlink
def test_a_connect_that_waits_attaches(old: Path) -> None:
    """By ioctl it starts the worker, from files of the new version then."""
    port = free_port()
    process = connecting_from(old, "--retry-for", "60", f"localhost:{port}", "nbd0")
    assert process.stderr and "trying again" in process.stderr.readline()
    shutil.rmtree(old)
    with nbdkit("memory", "1M", port=port):
        assert process.communicate(timeout=60) == ("/dev/nbd0\n", "")
        nbd_ok("disconnect", "nbd0")
