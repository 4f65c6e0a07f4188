# SPDX-License-Identifier: GPL-2.0-or-later
"""Which TARGET is an image or a command in brackets, and which names a server that runs already."""

from __future__ import annotations

import os
import shlex
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbdattach import api
from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, Malformed
from nbdattach.own_server import source
from nbdattach.own_server.source import Source, collapsed, one_text, source_of, tag_of

Capture = pytest.CaptureFixture[str]
WRITE = "write [ nbdkit memory 1G ]"
NO_FILE = "No such file or directory"
IS_PATH_CORRECT = "is the path correct?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: without links in its path."""
    made = Path(os.path.realpath(tmp_path))
    monkeypatch.chdir(made)
    return made


def refused(text: str, export: str | None = None) -> tuple[str, str]:
    with pytest.raises(Malformed) as caught:
        source_of(text, export)
    return str(caught.value), caught.value.hint


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk", "disk.img", "a b", "a,b=c:d.qcow2", "[", "é.raw", "\udcff"])
def test_a_file_that_is_named_by_a_path_is_an_image(folder: Path, name: str) -> None:
    path = folder / name
    path.touch()
    assert source_of(f"./{name}") == source_of(str(path)) == Source(path=str(path))


@pytest.mark.parametrize("name", ["d.img", "d.IMG", "d.raw", "d.iso", "d.qcow2", "d.vmdk", "d.vhd", "d.vhdx", "d.vdi"])
def test_a_bare_name_that_ends_as_an_image_is_one(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert source_of(name) == Source(path=f"{folder}/{name}")


@pytest.mark.parametrize("name", ["db1", "localhost", "db1.example.org", "10.0.0.1", "db1:10809", "[::1]", "disk.tar"])
def test_a_file_that_is_named_like_a_host_does_not_replace_it(folder: Path, name: str) -> None:
    """Others may write to the folder."""
    (folder / name).touch()
    assert source_of(name) is None


@pytest.mark.parametrize(
    "text",
    ["db1", "db1:99", "nbd://db1/disk", "nbds://db1/disk.img", "nbd+unix:///?socket=/run/s", "", "a\0b", "/a\0b.img"],
)
def test_a_server_is_no_source(text: str) -> None:
    assert source_of(text) is None


def test_the_path_of_an_image_has_no_links(folder: Path) -> None:
    """QEMU would look for a relative backing file beside the link."""
    (folder / "real").mkdir()
    (folder / "real/disk.qcow2").touch()
    (folder / "link.qcow2").symlink_to("real/disk.qcow2")
    (folder / "folder").symlink_to("real")
    for text in ("link.qcow2", "folder/disk.qcow2", "./real/../real/disk.qcow2", f"{folder}/link.qcow2"):
        assert source_of(text) == Source(path=f"{folder}/real/disk.qcow2")


def test_a_block_device_is_an_image_unless_it_is_one_of_nbd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sda", "nbd0", "nbd15p2"):
        (folder / name).touch()
    (folder / "by-nbd").symlink_to("nbd0")
    device = os.stat_result((stat.S_IFBLK | 0o660, *[0] * 9))
    monkeypatch.setattr(source, "os", SimpleNamespace(**{**vars(os), "stat": lambda _: device}))
    assert source_of("./sda") == Source(path=f"{folder}/sda", named=f"{folder}/sda")
    for name in ("nbd0", "nbd15p2", "by-nbd"):
        said = f"./{name}: a device of the nbd driver, not an image"
        assert refused(f"./{name}") == (said, "DEVICE comes after TARGET")


@pytest.mark.parametrize("name", ["disk.img", "no/such/folder/disk.img", "./db1", "../db1/disk"])
def test_a_missing_image_is_said(folder: Path, name: str) -> None:
    assert refused(name) == (f"{name}: no such image: {NO_FILE}", IS_PATH_CORRECT)


@pytest.mark.parametrize("name", ["sub/disk", "db1/disk"])
def test_a_missing_image_may_be_an_export_of_a_server(folder: Path, name: str) -> None:
    hint = f"{IS_PATH_CORRECT} an export of a server is nbd://{name}"
    assert refused(name) == (f"{name}: no such image: {NO_FILE}", hint)


def test_a_missing_absolute_path_is_an_image_only_if_it_has_the_name_of_one(folder: Path) -> None:
    """Else it may be the socket of a server that is not there yet."""
    assert source_of(f"{folder}/socket") is None
    assert refused(f"{folder}/disk.raw") == (f"{folder}/disk.raw: no such image: {NO_FILE}", IS_PATH_CORRECT)


def test_links_in_a_circle_are_said(folder: Path) -> None:
    (folder / "a.img").symlink_to("a.img")
    assert refused("a.img") == ("a.img: no such image: Too many levels of symbolic links", IS_PATH_CORRECT)


def test_a_socket_is_a_server_by_its_absolute_path_only(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("server.img")
    assert source_of(f"{folder}/server.img") is None
    for text in ("server.img", "./server.img"):
        assert refused(text) == (f"{text}: a socket, which needs its absolute path", f"write {folder}/server.img")


def test_neither_file_nor_socket_is_refused(folder: Path) -> None:
    (folder / "folder.img").mkdir()
    os.mkfifo("fifo")
    for text in ("folder.img", "./folder.img", f"{folder}/", "./fifo", "/dev/null"):
        assert refused(text) == (
            f"{text}: neither an image nor a socket",
            "an image is a file or a block device",
        )


def test_an_image_has_no_exports(folder: Path) -> None:
    (folder / "d.img").touch()
    assert refused("d.img", "disk") == ("--export: d.img is an image, which has no exports", "leave it out")
    assert source_of("d.img", "") == Source(path=f"{folder}/d.img")


def test_the_name_of_an_image_cannot_write_on_the_terminal(folder: Path) -> None:
    said, _ = refused("./\x1b[2J\n.img")
    assert said == rf"./\x1b[2J\n.img: no such image: {NO_FILE}"


def test_a_block_device_is_known_by_the_name_that_its_user_gave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a volume, /dev/dm-3 may be another name at the next boot."""
    (folder / "dm-3").touch()
    (folder / "lv").symlink_to("dm-3")
    device = os.stat_result((stat.S_IFBLK | 0o660, *[0] * 9))
    monkeypatch.setattr(source, "os", SimpleNamespace(**{**vars(os), "stat": lambda _: device}))
    found = source_of("./lv")
    assert found == Source(path=f"{folder}/dm-3", named=f"{folder}/lv")
    assert found.name == tag_of(found) == f"{folder}/lv"


# -- commands ----------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1)


def test_words_in_brackets_are_a_command() -> None:
    assert source_of("[ nbdkit -f memory 1G ]") == Source(words=("nbdkit", "-f", "memory", "1G"))
    assert source_of("[ nbdkit memory 1G ]", "disk") == Source(words=("nbdkit", "memory", "1G"), export="disk")


@given(WORDS)
@example(["[", "]"])
@example(["", " ", "'", '"', "\\", "a b", "#", "\n", "\udcff"])
def test_any_words_survive_as_one_text(words: list[str]) -> None:
    assert source_of(one_text(words)) == Source(words=tuple(words))


@given(WORDS.filter(lambda words: "]" not in words), st.lists(st.sampled_from(["nbd0", "-r", "x", "--tag=[ ]"])))
@example(["sh", "-c", "[", "-f", "x"], [])
def test_brackets_on_the_command_line_are_one_word(words: list[str], others: list[str]) -> None:
    found = collapsed([*others, "[", *words, "]", *others])
    assert found == [*others, one_text(words), *others]
    assert shlex.split(found[len(others)])[1:-1] == words


def test_each_list_of_two_is_one_word() -> None:
    assert collapsed(["[", "a", "]", "[", "b", "c", "]", "d"]) == ["[ a ]", "[ b c ]", "d"]


def test_the_first_closing_bracket_closes() -> None:
    assert collapsed(["[", "sh", "[", "]", "]"]) == ["[ sh '[' ]", "]"]


@pytest.mark.parametrize("arguments", [["["], ["[", "a", "b"], ["[", "a]"], ["[", "a", "]", "[", "b"]])
def test_a_bracket_that_is_not_closed_is_said(arguments: list[str]) -> None:
    with pytest.raises(Malformed) as caught:
        collapsed(arguments)
    assert str(caught.value) == "[: the bracket is not closed"
    assert caught.value.hint == "write a blank before the closing one: [ nbdkit memory 1G ]"


@pytest.mark.parametrize("text", ["[ ]", "[  ]", "[ \t ]"])
def test_brackets_need_a_command(text: str) -> None:
    said, hint = refused(text)
    assert said.endswith(": no command in the brackets")
    assert hint == WRITE


@pytest.mark.parametrize("text", ["[ nbdkit 'x ]", '[ nbdkit " ]', "[ nbdkit x\\ ]"])
def test_a_quote_that_is_not_closed_is_a_mistake_of_the_user(text: str) -> None:
    assert main.run(["info", text]) == 2


@pytest.mark.parametrize("text", ["[", "]", "[::1]", "[ nbdkit", "nbdkit ]", "[nbdkit]"])
def test_text_without_both_brackets_and_blanks_is_no_command(text: str) -> None:
    assert source_of(text) is None


# -- the command line --------------------------------------------------------------------------------------------------


def said(capsys: Capture, *arguments: str) -> tuple[int, str]:
    code = main.run([*arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("before", [[], ["--debug"], ["-r", "--tag", "t"]])
@pytest.mark.parametrize("after", [[], ["nbd0"], ["nbd0", "--json"]])
def test_options_in_brackets_are_the_commands(
    monkeypatch: pytest.MonkeyPatch, before: list[str], after: list[str]
) -> None:
    found: list[object] = []

    def attach(*given: object) -> NoReturn:
        found.extend(given)
        raise KernelRefused("it", "no", "try")

    monkeypatch.setattr(api, "attach", attach)
    words = ["nbdkit", "--readonly", "-f", "--json", "--", "memory", "--help"]
    main.run(["connect", *before, "[", *words, "]", *after])
    assert found[0] == Source(words=tuple(words))
    assert found[1] == (Device(0) if after else None)
    assert found[2] == ConnectOptions(read_only="-r" in before, tag="t" if before and before[0] == "-r" else "")


@pytest.mark.parametrize("command", ["connect", "info", "check", "list", "disconnect"])
def test_an_open_bracket_is_a_mistake_of_each_command(capsys: Capture, command: str) -> None:
    code, err = said(capsys, command, "[", "nbdkit", "memory")
    assert (code, err.splitlines()[0]) == (2, "nbdattach: [: the bracket is not closed")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_within_brackets(capsys: Capture, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    """The bracket cannot be closed yet; an error would be written over the command line."""
    monkeypatch.setenv("_NBDATTACH_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "nbdattach connect [ nbdk")
    monkeypatch.setenv("COMP_CWORD", "nbdk" if shell == "fish" else "3")
    with pytest.raises(SystemExit):
        main.run([])
    assert capsys.readouterr().err == ""


# -- the default tag ---------------------------------------------------------------------------------------------------


@given(WORDS.map(lambda words: Source(words=tuple(words))) | st.text().map(lambda text: Source(path=f"/{text}")))
@example(Source(path=f"/{'ä' * 200}.img"))
@example(Source(path="/\udcff\n"))
@example(Source(path=f"/{'x' * 40} {'y' * 300} {'z' * 19}"))
def test_the_default_tag_of_any_source_is_fit_for_one(one: Source) -> None:
    assert ConnectOptions(tag=tag_of(one)).tag == tag_of(one) != ""


@pytest.mark.parametrize("one", [Source(path="/vm/disk 1.img"), Source(words=("nbdkit", "memory", "size=1 G"))])
def test_the_default_tag_is_the_name(one: Source) -> None:
    assert tag_of(one) == one.name


def test_the_name_of_a_command_is_its_text() -> None:
    assert Source(words=("nbdkit", "a b")).name == "[ nbdkit 'a b' ]"
