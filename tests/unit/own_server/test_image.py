# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that serves an image, and each reason to refuse one. The programs of QEMU are scripts of the test."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbdattach.connect_options import USUAL, ImageOptions
from nbdattach.errors import DeviceInUse, KernelRefused, Malformed, NbdattachError, Refused
from nbdattach.host.bare_files import identity
from nbdattach.own_server import commands, image, installed
from nbdattach.own_server.plan import Plan
from nbdattach.own_server.words import refusal
from nbdattach.server_of_ours import Image, OwnServer
from nbdattach.text import quoted

QCOW2 = b"QFI\xfb\0\0\0\x03" + bytes(504)
ON_ANOTHER = b"QFI\xfb\0\0\0\x03" + bytes(7) + b"\1" + bytes(496)  # with a backing file
VHD = bytes(4096) + b"conectix" + bytes(504)
PARALLELS = b"WithouFreSpacExt" + bytes(496)
STREAM = b'# Disk DescriptorFile\nversion=1\ncreateType="streamOptimized"\n'
# Answers as qemu-img does to `info`, and makes the last argument for `create`.
QEMU_IMG = """#!/bin/sh
echo "$@" >>"$LOG"
case $1 in
info) /bin/cat "$CHAIN" ;;
create) for last; do :; done; : >"$last" ;;
esac
"""
BAD = "#!/bin/sh\necho 'Formatting' >&2\necho 'qemu-img: it is bad' >&2\nexit 1\n"


class Qemu:
    """A folder with its programs, which is the only one on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.nbd = str(self.folder / "qemu-nbd")
        self.img = str(self.folder / "qemu-img")
        self._calls, self._chain = folder / "calls", folder / "chain"
        self.has("qemu-nbd", "#!/bin/sh\n")
        self.has("qemu-img", QEMU_IMG)
        self.says("[]")
        for name, value in (("PATH", self.folder), ("LOG", self._calls), ("CHAIN", self._chain)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(installed, "SYSTEM_PATH", "")

    def has(self, name: str, script: str) -> None:
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)

    def says(self, text: str) -> None:
        """The answer of qemu-img info."""
        self._chain.write_text(text)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    return Qemu(tmp_path, monkeypatch)


Make = Callable[[str, bytes], str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes an image, and returns its path."""

    def made(name: str, content: bytes) -> str:
        path = Path(os.path.realpath(tmp_path)) / name
        path.write_bytes(content)
        return str(path)

    return made


def planned(
    path: str,
    options: ImageOptions = USUAL,
    read_only: bool = False,
    size: int | None = None,
    goes_on: bool = True,
    look: bool = False,
) -> Plan:
    return image.plan(path, options, read_only, size, goes_on, look)


def as_qemu_has_it(path: str, driver: str) -> tuple[str, str]:
    """Without locks: the keeper has them."""
    options = f"driver={driver},file.driver=file,file.filename={path.replace(',', ',,')},file.locking=off"
    return "--image-opts", options


def image_of(found: Plan) -> Image:
    assert found.image
    return found.image


def refused(kind: type[NbdattachError], path: str, *options: Any, **more: Any) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        planned(path, *options, **more)
    return str(caught.value), caught.value.hint


# -- commands ----------------------------------------------------------------------------------------------------------


def test_raw_image_is_served_by_nbdkit_which_needs_the_keepers_lock(qemu: Qemu, make: Make) -> None:
    qemu.has("nbdkit", "#!/bin/sh\n")
    path = make("a=b,c.img", bytes(512))
    status = os.stat(path)
    assert planned(path) == Plan(
        (str(qemu.folder / "nbdkit"), "--foreground", "file", f"file={path}"),
        read_only=False,
        image=Image(path, "raw", f"{status.st_dev}:{status.st_ino}"),
        files=((path, f"{status.st_dev}:{status.st_ino}"),),
        locks=((path, "write"),),
    )
    assert planned(path, read_only=True).command[2] == "--readonly"
    assert planned(path, look=True, read_only=True).locks == ()  # a look may be at the disk of a running machine
    assert qemu.calls == []


def test_raw_image_without_nbdkit_is_served_as_raw_and_never_probed(qemu: Qemu, make: Make) -> None:
    path = make("disk.img", bytes(512))
    found = planned(path)
    assert found.command == (
        qemu.nbd,
        "--persistent",
        "--shared=0",
        "--cache=writeback",
        "--discard=unmap",
        *as_qemu_has_it(path, "raw"),
    )
    assert found.locks == ((path, "write"),)
    assert qemu.calls == []


@pytest.mark.parametrize(
    "options", [ImageOptions(cache="none"), ImageOptions(discard="ignore"), ImageOptions(offset=0)]
)
def test_wishes_that_only_qemu_can_fulfil_are_its(qemu: Qemu, make: Make, options: ImageOptions) -> None:
    qemu.has("nbdkit", "#!/bin/sh\n")
    path = make("disk.img", bytes(512))
    assert planned(path, options).command[0] == qemu.nbd
    assert planned(path, size=512).command[0] == qemu.nbd


def test_a_look_at_an_image_does_without_its_lock(qemu: Qemu, make: Make) -> None:
    """A virtual machine may have it."""
    path = make("a,b.qcow2", QCOW2)
    escaped = path.replace(",", ",,")
    assert planned(path, look=True, read_only=True).command == (
        qemu.nbd,
        "--persistent",
        "--shared=0",
        "--cache=writeback",
        "--discard=unmap",
        "--read-only",
        "--image-opts",
        f"driver=qcow2,force-share=on,file.driver=file,file.filename={escaped}",
    )


def test_options_of_the_user_reach_the_server(qemu: Qemu, make: Make) -> None:
    options = ImageOptions(cache="directsync", discard="ignore")
    path = make("disk.img", b"")
    command = planned(path, options, read_only=True).command
    assert command[3:] == ("--cache=directsync", "--discard=ignore", "--read-only", *as_qemu_has_it(path, "raw"))


def test_qcow2_writes_its_tables_with_each_request_where_a_killed_server_is_replaced(qemu: Qemu, make: Make) -> None:
    """They are in the server's memory until a flush; the kernel believes that the writes are done."""
    path = make("disk.qcow2", QCOW2)
    command = (
        qemu.nbd,
        "--persistent",
        "--shared=0",
        "--cache=writethrough",
        "--discard=unmap",
        *as_qemu_has_it(path, "qcow2"),
    )
    assert planned(path).command == command
    assert "--cache=writeback" in planned(path, goes_on=False).command
    assert "--cache=writeback" in planned(path, read_only=True).command
    assert "--cache=none" in planned(path, ImageOptions(cache="none")).command


def test_vhd_has_the_size_that_its_creator_meant_with_each_version_of_qemu(qemu: Qemu, make: Make) -> None:
    path = make("a,b.vhd", VHD)
    assert planned(path).command[-2:] == as_qemu_has_it(path, "vpc,force_size_calc=current_size")


@pytest.mark.parametrize(
    ("offset", "size", "driver"),
    [
        (1024, None, "raw,offset=1024"),
        (0, None, "raw,offset=0"),
        (None, 512, "raw,size=512"),
        (1024, 512, "raw,offset=1024,size=512"),
    ],
)
def test_part_of_a_raw_image(qemu: Qemu, make: Make, offset: int | None, size: int | None, driver: str) -> None:
    path = make("a,b=c.img", bytes(4096))
    command = planned(path, ImageOptions(offset=offset), size=size).command
    assert command[1:] == (
        "--persistent",
        "--shared=0",
        "--cache=writeback",
        "--discard=unmap",
        *as_qemu_has_it(path, driver),
    )


def test_part_of_a_block_device_is_one_of_a_host_device(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("sda", bytes(512))
    monkeypatch.setattr(commands.stat, "S_ISBLK", lambda _: True)
    options = planned(path, ImageOptions(offset=512)).command[-1]
    assert options == f"driver=raw,offset=512,file.driver=host_device,file.filename={path},file.locking=off"


@pytest.mark.parametrize(
    ("option", "offset", "size"), [("--offset", 512, None), ("--size", None, 512), ("--offset", 0, 1)]
)
def test_only_a_raw_image_has_parts(qemu: Qemu, make: Make, option: str, offset: int | None, size: int | None) -> None:
    said, hint = refused(Malformed, make("disk.qcow2", QCOW2), ImageOptions(offset=offset), size=size)
    assert said == f"{option}: the image is qcow2, but only a raw one can be served in part"
    assert hint == "leave it out"


def test_an_image_that_is_marked_while_open_is_mended_before_its_server_starts_again(qemu: Qemu, make: Make) -> None:
    path = make("disk.hdd", PARALLELS)
    assert planned(path).repair == (qemu.img, "check", "-q", "-r", "all", *as_qemu_has_it(path, "parallels"))
    assert planned(path, read_only=True).repair == ()
    assert planned(make("disk.img", b"")).repair == ()


# -- read-only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_an_image_that_cannot_be_written_is_attached_read_only_and_said(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = make("disk.img", bytes(512))
    real = os.open

    def refusing(name: str, flags: int, *more: int) -> int:
        if name == path and flags & os.O_ACCMODE == os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return real(name, flags, *more)

    monkeypatch.setattr(image.os, "open", refusing)
    found = planned(path)
    assert found.read_only
    assert "--read-only" in found.command
    assert found.notes == (f"{path}: attached read-only: {os.strerror(number)}",)
    assert found.unwritable == os.strerror(number)
    assert planned(path, read_only=True).notes == ()  # the user knows
    assert planned(path, read_only=True).unwritable == ""
    assert planned(path, ImageOptions(snapshot=True)).notes == ()  # the writes go elsewhere


@pytest.mark.parametrize(
    "only_read", [{"look": True}, {"read_only": True}, {"options": ImageOptions(snapshot=True)}], ids=str
)
def test_an_image_that_is_only_read_is_not_opened_for_writing(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch, only_read: dict[str, Any]
) -> None:
    """On overlayfs that would copy all of it."""
    path = make("disk.img", b"")
    real = os.open

    def reading(name: str, flags: int, *more: int) -> int:
        assert name != path or flags & os.O_ACCMODE == os.O_RDONLY
        return real(name, flags, *more)

    monkeypatch.setattr(image.os, "open", reading)
    found = planned(path, **only_read).image
    assert found and found.writable


def test_a_format_that_qemu_can_only_read_is_attached_read_only_and_said(qemu: Qemu, make: Make) -> None:
    path = make("disk.vmdk", STREAM)
    found = planned(path)
    assert (found.read_only, "--read-only" in found.command) == (True, True)
    assert found.notes == (f"{path}: attached read-only: QEMU can only read streamOptimized VMDK images",)


# -- format ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "wanted", "cause", "right"),
    [
        ("d.img", bytes(512), "qcow2", "--format qcow2, but it has no such header", "raw"),
        ("d.qcow2", QCOW2, "vmdk", "--format vmdk, but it has the header of qcow2", "qcow2"),
        ("d.qcow2", b"", "qcow2", "--format qcow2, but it has no such header", "raw"),
    ],
)
def test_a_format_that_the_image_has_not_is_refused(
    qemu: Qemu, make: Make, name: str, content: bytes, wanted: str, cause: str, right: str
) -> None:
    path = make(name, content)
    said, hint = refused(Malformed, path, ImageOptions(format=wanted))
    assert (said, hint) == (f"{path}: {cause}", f"--format {right} if that is right")


def test_a_header_without_its_name_needs_the_word_of_the_user(qemu: Qemu, make: Make) -> None:
    """A virtual machine can write any header into its raw disk."""
    path = make("disk.img", QCOW2)
    said, hint = refused(Malformed, path)
    assert said == (
        f"{path}: it has the header of a qcow2 image, but not its name: a virtual machine may have written that header "
        "into a raw disk to make this host read other files"
    )
    assert hint == "--format qcow2 if you trust it, --format raw if it is a raw disk"
    for word in ("raw", "qcow2"):
        assert planned(path, ImageOptions(format=word)).command[-2:] == as_qemu_has_it(path, word)


def test_the_footer_of_a_large_image_is_found(qemu: Qemu, make: Make) -> None:
    path = make("disk.vhd", b"")
    with open(path, "r+b") as file:
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(VHD[-512:])
    assert image_of(planned(path)).format == "vpc"


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "run it as a user who may read it"),
        (errno.EPERM, "run it as a user who may read it"),
        (errno.EIO, "see dmesg"),
    ],
)
def test_an_image_that_cannot_be_read_says_why(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    path = make("disk.img", b"")

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(image, "open", failing, raising=False)
    assert refused(KernelRefused, path) == (f"{path}: cannot be read: {os.strerror(number)}", hint)


# -- programs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "name", "content"),
    [("qemu-nbd", "disk.img", b""), ("qemu-img", "disk.qcow2", ON_ANOTHER), ("qemu-img", "disk.hdd", PARALLELS)],
)
def test_a_program_that_is_missing_is_named_with_its_package(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch, program: str, name: str, content: bytes
) -> None:
    monkeypatch.setenv("PATH", str(qemu.folder))
    os.unlink(qemu.folder / program)
    path = make(name, content)
    said = f"{path}: it needs the program {program}, which is not installed"
    assert refused(KernelRefused, path) == (said, "apt install qemu-utils")


@pytest.mark.parametrize("path", ["bin", "", ":", "bin:."])
def test_a_program_in_the_current_folder_is_none(
    qemu: Qemu, make: Make, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Another user may have put it there, and root runs it."""
    monkeypatch.chdir(qemu.folder)
    monkeypatch.setenv("PATH", path)
    with pytest.raises(KernelRefused, match="qemu-nbd, which is not installed"):
        planned(make("disk.img", b""))


# -- images below ------------------------------------------------------------------------------------------------------


def test_the_images_below_are_told_the_nearest_first(qemu: Qemu, make: Make) -> None:
    qemu.says('[{"filename": "/top"}, {"filename": "/middle"}, {"filename": "/base", "format": "raw"}]')
    path = make("disk.qcow2", ON_ANOTHER)
    assert image_of(planned(path)).backing == ("/middle", "/base")
    assert f"info --force-share --backing-chain --output=json -f qcow2 {path}" in qemu.calls


@pytest.mark.parametrize("text", ["", "{", "5", '[{}, {"a": 1}]', "[1, 2]", '["x", "y"]'])
def test_an_answer_that_is_no_list_of_images_is_an_error(qemu: Qemu, make: Make, text: str) -> None:
    """Without it nothing would keep the images below from being written."""
    qemu.says(text)
    path = make("disk.qcow2", ON_ANOTHER)
    said, _ = refused(KernelRefused, path)
    assert said.startswith(f"{path}: qemu-img info has not told what is below it: ")


def test_all_files_that_an_image_lies_on_are_known(qemu: Qemu, make: Make) -> None:
    """Whatever form QEMU gives their names: a server that is started again needs the very same ones."""
    path, base, data, extent = (
        make(name, ON_ANOTHER) for name in ("disk.qcow2", "base", "disk.data", "base-flat.vmdk")
    )
    options = {"driver": "raw", "offset": 512, "file": {"driver": "file", "filename": base}}
    specific = [{"data": {"data-file": "disk.data"}}, {"data": {"extents": [{"filename": extent}]}}]
    told = [
        {"filename": path, "format-specific": specific[0]},
        {"filename": f"json:{json.dumps(options)}", "format": "raw", "format-specific": specific[1]},
        {"filename": "https://db1/disk", "format": "raw"},
    ]
    qemu.says(json.dumps(told))
    found = planned(path)
    assert found.files == tuple((one, identity(os.stat(one))) for one in (path, data, base, extent))
    assert image_of(found).below == tuple(identity(os.stat(one)) for one in (data, base, extent))
    assert found.locks == ((path, "write"), (base, "read"), (extent, "read"))  # QEMU writes the other part


def test_an_image_below_whose_format_is_not_recorded_is_refused(qemu: Qemu, make: Make) -> None:
    """QEMU would look at its content, into which a virtual machine may have written a header."""
    path = make("disk.qcow2", ON_ANOTHER)
    qemu.says(json.dumps([{"filename": path, "format": "qcow2", "backing-filename": "my base"}, {"filename": "/b"}]))
    said, hint = refused(Refused, path)
    assert said == f"{path}: does not say which format its backing file my base has"
    assert hint == f"if it is raw: qemu-img rebase -u -F raw -b 'my base' {path}"
    long = f"/{'x' * 250}"
    for base, hint in (
        (long, f"if it is raw: qemu-img rebase -u -F raw -b {long} {path}"),
        ("a\x1bb", "qemu-img rebase -u sets it"),
    ):
        qemu.says(json.dumps([{"filename": path, "format": "qcow2", "backing-filename": base}, {"filename": "/b"}]))
        assert refused(Refused, path)[1] == hint
    qemu.says(json.dumps([{"filename": path, "format": "vmdk", "backing-filename": "my base"}]))
    assert planned(path)


def test_an_image_below_that_is_missing_is_refused_before_the_server_starts(qemu: Qemu, make: Make) -> None:
    qemu.has("qemu-img", BAD)
    path = make("disk.qcow2", ON_ANOTHER)
    assert refused(Refused, path) == (f"{path}: QEMU cannot open it: 'it is bad'", "qemu-img check shows more")
    qemu.has("qemu-img", BAD.replace("it is bad", "no backing file"))
    assert refused(Refused, path) == (
        f"{path}: QEMU cannot open it: 'no backing file'",
        "qemu-img rebase -u corrects the name of a backing file",
    )


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_writes_to_a_snapshot_go_to_a_file_that_is_deleted_at_the_end(qemu: Qemu, make: Make) -> None:
    qemu.has("nbdkit", "#!/bin/sh\n")
    path = make("disk.img", bytes(512))
    found = planned(path, ImageOptions(snapshot=True))
    (overlay,) = found.delete
    assert re.fullmatch(r"/var/tmp/nbdattach-[0-9a-f]{16}/overlay.qcow2", overlay)
    assert (found.command[0], found.command[-2:]) == (qemu.nbd, as_qemu_has_it(overlay, "qcow2"))
    assert found.prepare == (qemu.img, "create", "-q", "-f", "qcow2", "-b", path, "-F", "raw", overlay)
    assert (found.repair, found.read_only) == ((), False)
    assert (image_of(found).path, image_of(found).format, image_of(found).snapshot) == (path, "raw", True)
    assert qemu.calls == []  # so that a mistake, or a command that is killed, leaves no file
    assert not os.path.exists(overlay)


@pytest.mark.parametrize(("offset", "size"), [(512, None), (None, 512), (0, 512)])
def test_part_of_an_image_cannot_be_a_snapshot(qemu: Qemu, make: Make, offset: int | None, size: int | None) -> None:
    options = ImageOptions(snapshot=True, offset=offset)
    said, hint = refused(Malformed, make("disk.img", bytes(4096)), options, size=size)
    assert (said, hint) == ("--snapshot: cannot be combined with --offset or --size", "leave one out")


# -- a server that has ended -------------------------------------------------------------------------------------------


def ended(words: str) -> NbdattachError:
    server = OwnServer("/d.img", "/run/nbdattach/servers/1", ("/usr/bin/qemu-nbd", "--format=raw", "/d d.img"))
    return refusal(server, words)


@pytest.mark.parametrize(
    "words",
    [
        'Failed to get "write" lock',
        'Failed to get shared "write" lock',
        "Is another process using the image [/d.img]?",
    ],
)
def test_an_image_that_another_program_uses_is_in_use(words: str) -> None:
    shown = f"qemu-nbd: Failed to blk_new_open '/d.img': {words}"
    error = ended(shown)
    assert isinstance(error, DeviceInUse)
    assert str(error) == f"/d.img: another program uses the image; it says: {quoted(shown)}"
    assert error.hint == "stop the virtual machine that uses it, or attach a copy"


def test_a_server_that_ended_is_refused_with_its_words_and_command() -> None:
    error = ended("no\x1b luck")
    assert isinstance(error, Refused)
    assert str(error) == r"/d.img: its server qemu-nbd ended; it says: 'no\x1b luck'"
    assert error.hint == "its command: /usr/bin/qemu-nbd --format=raw '/d d.img'"
    assert str(ended("")) == "/d.img: its server qemu-nbd ended"
