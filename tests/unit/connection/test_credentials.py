# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of TLS: read each time, and remembered for when their disk hangs or is broken."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdattach.connection import credentials
from nbdattach.connection.credentials import Credentials, File
from nbdattach.errors import TlsFailed
from nbdattach.protocol.target import Target

PLACE = Target("db1", tls=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(credentials, "_shelves", {})
    monkeypatch.setattr(credentials, "_PATIENCE", 60.0)
    for name in ("ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"):
        (tmp_path / name).write_text(f"first {name}")
    return tmp_path


def trusting(folder: Path) -> Target:
    return Target("db1", tls=True, tls_ca=str(folder))


@pytest.fixture
def stuck(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the authority is a pipe without a writer: opening it hangs, as on a disk that is away."""
    monkeypatch.setattr(credentials, "_PATIENCE", 0.2)
    place = folder / "ca-cert.pem"
    yield place
    if place.is_fifo():
        os.close(os.open(place, os.O_RDWR | os.O_NONBLOCK))


def hang(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def test_a_directory_has_them_all(folder: Path) -> None:
    found = credentials.of(trusting(folder), 60)
    assert found == Credentials(*(
        File(f"{folder}/{name}", f"first {name}".encode())
        for name in ("ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem")
    ))  # fmt: skip


def test_they_are_read_anew(folder: Path) -> None:
    credentials.of(trusting(folder), 60)
    for name in ("ca-cert.pem", "ca-crl.pem"):
        (folder / name).write_text("second")
    found = credentials.of(trusting(folder), 60)
    assert found.ca and found.ca.content == b"second"
    assert found.revoked and found.revoked.content == b"second"


@pytest.mark.parametrize("name", ["ca-crl.pem", "client-cert.pem", "client-key.pem"])
def test_a_file_that_is_being_replaced_does_not_count_as_none(folder: Path, name: str) -> None:
    """A revoked server would be trusted for as long as its list is missing."""
    before = credentials.of(trusting(folder), 60)
    (folder / name).unlink()
    if name == "client-key.pem":  # a certificate without its key is of no use
        with pytest.raises(TlsFailed, match="cannot be read: No such file or directory"):
            credentials.of(trusting(folder), 60)
    else:
        assert credentials.of(trusting(folder), 60) == before
    (folder / name).write_text("second")
    after = credentials.of(trusting(folder), 60)
    found = {"ca-crl.pem": after.revoked, "client-cert.pem": after.cert, "client-key.pem": after.key}[name]
    assert found == File(f"{folder}/{name}", b"second")


def test_what_was_never_there_is_none(folder: Path) -> None:
    for name in ("ca-crl.pem", "client-cert.pem", "client-key.pem"):
        (folder / name).unlink()
    assert credentials.of(trusting(folder), 60) == Credentials(ca=File(f"{folder}/ca-cert.pem", b"first ca-cert.pem"))


@pytest.mark.parametrize("name", ["ca-crl.pem", "client-cert.pem"])
@pytest.mark.parametrize(
    ("put", "why"),
    [
        (lambda place: place.symlink_to("nowhere"), "No such file or directory"),
        (lambda place: place.symlink_to(place), "Too many levels of symbolic links"),
        (lambda place: place.mkdir(), "Is a directory"),
    ],
    ids=["link to nothing", "loop", "directory"],
)
def test_a_file_that_is_there_and_cannot_be_read_does_not_count_as_none(
    folder: Path, name: str, put: Callable[[Path], None], why: str
) -> None:
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(TlsFailed, match=f"{name}: cannot be read: {why}"):
        credentials.of(trusting(folder), 60)


@pytest.mark.parametrize("name", ["ca-crl.pem", "client-cert.pem"])
def test_a_file_that_may_not_be_looked_at_does_not_count_as_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on a disk that fails, or if a security module forbids it."""
    lstat = os.lstat

    def fail(path: str) -> os.stat_result:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return lstat(path)

    (folder / name).unlink()
    monkeypatch.setattr(os, "lstat", fail)
    with pytest.raises(TlsFailed, match=f"{name}: cannot be read"):
        credentials.of(trusting(folder), 60)


def test_a_disk_that_hangs_is_waited_for_no_longer_than_told(stuck: Path) -> None:
    hang(stuck)
    with pytest.raises(TimeoutError):
        credentials.of(trusting(stuck.parent), 0.1)


def test_a_disk_that_hangs_leaves_what_was_read_before(stuck: Path) -> None:
    before = credentials.of(trusting(stuck.parent), 60)
    hang(stuck)
    assert [credentials.of(trusting(stuck.parent), 60) for _ in range(5)] == [before] * 5
    readers = [one for one in threading.enumerate() if isinstance(one, credentials._Reading)]
    assert [one._target for one in readers].count(trusting(stuck.parent)) == 1


def test_a_disk_that_is_back_is_read_again(stuck: Path) -> None:
    credentials.of(trusting(stuck.parent), 60)
    hang(stuck)
    credentials.of(trusting(stuck.parent), 60)
    writer = os.open(stuck, os.O_WRONLY)
    stuck.unlink()
    stuck.write_text("third")
    os.close(writer)
    ends = threading.Event()
    while (found := credentials.of(trusting(stuck.parent), 60)).ca != File(str(stuck), b"third"):
        assert not ends.wait(0.01)
        assert found.ca


def test_a_disk_that_fails_leaves_what_was_read_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = credentials.of(trusting(folder), 60)

    def fail(path: str, *_: object) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr("builtins.open", fail)
    assert credentials.of(trusting(folder), 60) == before
    with pytest.raises(TlsFailed, match="cannot be read: Input/output error"):
        credentials.of(Target("db1", tls_ca="/other"), 60)


def test_a_file_that_is_gone_is_an_error_all_the_same(folder: Path) -> None:
    credentials.of(trusting(folder), 60)
    (folder / "ca-cert.pem").unlink()
    with pytest.raises(TlsFailed, match="cannot be read: No such file or directory"):
        credentials.of(trusting(folder), 60)


KEYS = {
    "of a folder": ("client-key.pem", lambda folder: {"tls_ca": str(folder)}),
    "of its own": ("client-key.pem", lambda folder: {"tls_cert": "/c", "tls_key": f"{folder}/client-key.pem"}),
    "with its certificate": ("client-cert.pem", lambda folder: {"tls_cert": f"{folder}/client-cert.pem"}),
    "of a URI's folder": ("client-key.pem", lambda folder: {"tls_certificates": str(folder)}),
    "pre-shared": ("client-key.pem", lambda folder: {"tls_psk_file": f"{folder}/client-key.pem"}),
}


@pytest.fixture
def public(folder: Path) -> Iterator[Path]:
    """All folders above it are open to everybody; those of pytest are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        made = Path(place)
        made.chmod(0o755)
        for name in ("client-cert.pem", "client-key.pem"):
            (made / name).write_text("secret")
            (made / name).chmod(0o600)
        yield made


@pytest.mark.parametrize(("name", "options"), KEYS.values(), ids=KEYS)
def test_a_key_that_others_can_read_is_noticed(
    public: Path, name: str, options: Callable[[Path], dict[str, Any]]
) -> None:
    target = Target("db1", tls=True, **options(public))
    for mode, found in ((0o600, []), (0o640, []), (0o644, [f"{public}/{name}"]), (0o602, [f"{public}/{name}"])):
        (public / name).chmod(mode)
        assert credentials.exposed(target) == found
    public.chmod(0o700)
    assert credentials.exposed(target) == []


def test_where_there_is_no_key_nothing_is_noticed(folder: Path) -> None:
    (folder / "client-key.pem").unlink()
    assert credentials.exposed(trusting(folder)) == []
    assert credentials.exposed(PLACE) == []
    assert credentials.exposed(Target("db1", tls=True, tls_ca="/x\0y")) == []


def test_openssl_gets_just_these_bytes(folder: Path) -> None:
    file = File("/none", b"content")
    with file.for_openssl() as path:
        assert Path(path).read_bytes() == b"content"
    assert not Path(path).exists()
