# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that nbdattach starts itself for a look: real ones, by socket activation, without a kernel."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOL = [sys.executable, "-m", "nbdattach"]


def nbd(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*TOOL, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done
    return done


def info(*target: str) -> Any:
    return json.loads(nbd("info", "--json", *target).stdout)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    yield
    assert list((tmp_path / "run").iterdir()) == []
    assert not list(Path("/run/nbdattach/servers").glob("look-*"))
    found = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert found == ""


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "32M"], check=True)
    return path


def test_an_image_is_looked_at_with_its_backing_file(tmp_path: Path, qcow2: Path) -> None:
    over = tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", qcow2.name, "-F", "qcow2", over], check=True)
    found = info(str(over))
    assert found["size"] == 32 << 20
    assert found["image"]["format"] == "qcow2"
    assert [os.path.basename(one) for one in found["image"]["backing"]] == ["disk.qcow2"]
    assert nbd("check", str(over)).stdout.startswith(f"{over}: ok, handshake ")


def test_an_image_is_looked_at_while_another_program_writes_it(tmp_path: Path, qcow2: Path) -> None:
    with subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", tmp_path / "sock", qcow2]) as other:
        while not (tmp_path / "sock").exists():
            assert other.poll() is None
        assert info(str(qcow2))["size"] == 32 << 20
        other.kill()


@pytest.mark.parametrize("path", ["disk,with=commas:and spaces.qcow2", "x:1.qcow2", "-r.qcow2", "ä%20.qcow2"])
def test_a_name_that_means_something_to_qemu_is_only_a_name(tmp_path: Path, qcow2: Path, path: str) -> None:
    there = qcow2.rename(tmp_path / path)
    assert info(str(there))["image"]["path"] == str(there)
    raw = tmp_path / f"{path}.img"
    raw.write_bytes(bytes(1 << 20))
    assert info(str(raw))["size"] == 1 << 20


def test_each_server_with_socket_activation_works_in_brackets(qcow2: Path) -> None:
    daemon = f"driver=file,node-name=f,filename={qcow2}"
    over_nbd = ["--nbd-server", "addr.type=fd,addr.str=3", "--export", "type=nbd,id=e,node-name=d,name="]
    for words in (
        ["nbdkit", "memory", "32M"],
        ["env", "A=b", "nbdkit", "memory", "32M"],
        ["qemu-nbd", "-t", "-e", "0", "-f", "qcow2", str(qcow2)],
        ["qemu-nbd", "-t", "-e", "0", "--image-opts", f"driver=qcow2,file.filename={qcow2}"],
        ["qemu-storage-daemon", "--blockdev", daemon, "--blockdev", "driver=qcow2,node-name=d,file=f", *over_nbd],
    ):
        assert info("[", *words, "]")["size"] == 32 << 20, words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nbdkit", "memor", "1M"], "its server nbdkit ended; it says: 'nbdkit: error: cannot open plugin"),
        (["qemu-nbd", "-t", "/nonexistent"], "its server qemu-nbd ended; it says: 'qemu-nbd: Failed to blk_new_open"),
        (["nbdkit", "curl", "http://127.0.0.1:1/x"], "refuses to open it; its server says: 'nbdkit: curl[1]: error:"),
    ],
)
def test_a_server_that_fails_has_its_words_in_the_error(words: list[str], said: str) -> None:
    done = nbd("check", "[", *words, "]", code=4)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_what_a_server_has_started_ends_with_it() -> None:
    done = nbd("check", "--connect-timeout", "1", "[", "sh", "-c", "sleep 1000.5 & wait", "]", code=3)
    assert "no answer within 1 s" in done.stderr
    assert subprocess.run(["pgrep", "-f", "sleep 1000[.]5"], capture_output=True).returncode == 1


class Ranges(http.server.BaseHTTPRequestHandler):
    """A web server of one file, of which parts can be asked for."""

    content = bytes(range(256)) * 4096

    def do_HEAD(self) -> None:
        self._head(200, len(self.content))

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found
        part = self.content[int(found[1]) : int(found[2]) + 1]
        self._head(206, len(part))
        self.wfile.write(part)

    def _head(self, code: int, length: int) -> None:
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_disk_on_a_web_server_is_read() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/disk.img"
        assert info("[", "nbdkit", "curl", url, "]")["size"] == 1 << 20
        assert "ok" in nbd("check", "[", "nbdkit", "curl", url, "]").stdout
        server.shutdown()
