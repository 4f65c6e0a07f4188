# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd/nbdattach-tag: any identifier becomes one safe file name, and no two the same one."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).resolve().parents[3] / "systemd" / "nbdattach-tag"
PLAIN = rb"[A-Za-z0-9#+.:=@_-]"
ESCAPE = rb"\\x[0-9a-f]{2}"
UNCUT = 190
# The kernel takes up to 1024 of nbdattach; other programs may give more.
IDENTIFIERS = st.binary(min_size=1, max_size=1100).map(lambda tag: tag.replace(b"\0", b"\x81"))
WICKED = st.lists(
    st.sampled_from([b"/", b"..", b".", b" ", b"\\", b"\\x2f", b"$(id)", b"%p", b"\n", b"'", b'"', b"-part1", b"a"]),
    min_size=1,
).map(b"".join)


def run(attribute: bytes, *shell: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[bytes]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(attribute)
        file.flush()
        return subprocess.run([*shell, SCRIPT, file.name], env={"PATH": path}, capture_output=True, timeout=60)


def name_of(tag: bytes, *shell: str, path: str = "/usr/bin:/bin") -> bytes:
    done = run(tag + b"\n", *shell, path=path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n")
    return done.stdout[:-1]


def weight(name: bytes) -> int:
    """The length of the name as udev spells it for a folder of its own."""
    return len(name.replace(b"\\", rb"\x5c"))


def unescaped(name: bytes) -> bytes:
    return re.sub(ESCAPE, lambda found: bytes.fromhex(found[0][2:].decode()), name)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (b"vm1-root", b"vm1-root"),
        (b"A#+.:=@_-z0", b"A#+.:=@_-z0"),
        (b"nbd://db1/disk", rb"nbd:\x2f\x2fdb1\x2fdisk"),
        (b"..", rb"\x2e."),
        (b"../../etc/passwd", rb"\x2e.\x2f..\x2fetc\x2fpasswd"),
        (b"a b", rb"a\x20b"),
        (b"$(reboot) %p `x` \"'", rb"\x24\x28reboot\x29\x20\x25p\x20\x60x\x60\x20\x22\x27"),
        (rb"\x2f", rb"\x5cx2f"),
        (b"a\n\n", rb"a\x0a\x0a"),
        ("é".encode(), rb"\xc3\xa9"),
        (b"disk-part1", rb"disk\x2dpart1"),
        (b"disk-part1-part23", rb"disk-part1\x2dpart23"),
        (b"disk-part", b"disk-part"),
        (b"-n", b"-n"),
    ],
)
def test_name(tag: bytes, name: bytes) -> None:
    assert name_of(tag) == name


@given(IDENTIFIERS | WICKED)
@example(bytes(range(1, 256)))
@example(b"a" * 190)
@example(b"a" * 191)
@example(b"a" * 182 + b"-part1")
@example(b"a" * 185 + b"-part1")
def test_name_is_safe_and_leads_back_to_its_tag(tag: bytes) -> None:
    """Which is more than that no two tags share a name."""
    name = name_of(tag)
    assert re.fullmatch(rb"(?!\.)(?:%b|%b)+" % (PLAIN, ESCAPE), name)
    assert not re.search(rb"-part[0-9]+$", name)  # those of partitions
    assert len(rb"\x2fdisk\x2fby-nbd\x2f") + weight(name) + len("-part255") <= 240
    if weight(name) <= UNCUT:
        assert unescaped(name) == tag
    else:
        kept, digest = name.rsplit(b"-", 1)
        assert digest.decode() == hashlib.sha256(tag).hexdigest()
        assert tag.startswith(unescaped(kept))


@pytest.mark.parametrize("tag", [b"/" * 27 + b"a", b"a" * 190])
def test_what_fits_is_not_cut(tag: bytes) -> None:
    assert unescaped(name_of(tag)) == tag
    assert weight(name_of(tag + b"a")) > UNCUT


@pytest.mark.parametrize("at", range(4))
def test_escapes_are_not_cut_in_two(at: int) -> None:
    tag = b"a" * at + b"/" * 255
    kept, _ = name_of(tag).rsplit(b"-", 1)
    assert re.fullmatch(rb"a*(%b)+" % ESCAPE, kept)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
@pytest.mark.parametrize("tag", [bytes(range(1, 256)), bytes(range(255, 0, -1)) * 4, b".\x81-part1", b"/" * 40])
def test_shells_agree(tmp_path: Path, shell: str, tag: bytes) -> None:
    """With the tools of busybox too, as far as Debian's has them: it lacks od."""
    busybox = shutil.which("busybox")
    assert busybox
    for tool in ("cat", "awk", "sha256sum"):
        (tmp_path / tool).symlink_to(busybox)
    path = f"{tmp_path}:/usr/bin:/bin" if shell.startswith("busybox") else "/usr/bin:/bin"
    assert name_of(tag, *shell.split(), path=path) == name_of(tag)


@pytest.mark.parametrize("attribute", [b"", b"\n"])
def test_no_identifier_no_name(attribute: bytes) -> None:
    done = run(attribute)
    assert (done.returncode, done.stdout) == (1, b"")


def test_no_attribute_no_name() -> None:
    done = subprocess.run([SCRIPT, "/nowhere/backend"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
