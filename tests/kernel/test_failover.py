# SPDX-License-Identifier: GPL-2.0-or-later
"""Several servers of the same data: the device moves to the next one, and never to one whose data is older."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from disks import KINDS, used
from load import Load
from test_content import remembered
from test_restart import Place, nothing_goes_wrong, place, state_of, trouble_of
from tool import attached, connect, digest_of, eventually, fill_with_noise, nbd, shell

from nbdattach.attached import memory, state
from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor.places import OTHER_SERVERS

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor, pytest.mark.timeout(300)]
DEVICE = Device(0)


def uri(one: Place) -> str:
    return f"nbd://127.0.0.1:{one.port}"


def in_use() -> str:
    record = state.load(DEVICE)
    return record.uri if record else ""


def knows_place() -> bool:
    """Whether a look was made since the device was moved last."""
    record, found = state.load(DEVICE), memory.load(DEVICE)
    return record is not None and found is not None and found.place == memory.place_of(record)


def is_in_use(wanted: str) -> bool:
    return in_use() == wanted


def three(folder: Path) -> tuple[Path, list[Place]]:
    """An image, and three places that serve it."""
    first = place(folder, "image", mebibytes=64)
    return first.image, [first, *(place(folder, name, mebibytes=64) for name in ("second", "third"))]


@pytest.mark.essential
@pytest.mark.parametrize("connections", [1, pytest.param(3, marks=pytest.mark.rare)])
def test_the_device_moves_to_the_next_server_of_the_same_data(tmp_path: Path, connections: int) -> None:
    """One dies, two die, the first returns; all have the same storage. There is data that the load leaves alone."""
    image, places = three(tmp_path)
    fill_with_noise(image, 16)
    load = Load("/dev/nbd0", writers=2)
    with ExitStack() as others, ExitStack() as end:
        servers = [others.enter_context(one.serve(image=image)) for one in places]
        uris = [uri(one) for one in places]
        end.enter_context(attached(uris[0], "nbd0", also=uris[1:], connections=connections))
        end.enter_context(nothing_goes_wrong(load, image))
        load.see_it_run()
        (status,) = nbd("status", "--json").json()
        assert (status["target"], status["also"]) == (uris[0], uris[1:])
        for server, there in ((0, 1), (1, 2)):
            eventually(knows_place, 120)
            gone = time.monotonic()
            servers[server].kill()
            eventually(partial(is_in_use, uris[there]))
            assert time.monotonic() - gone >= OTHER_SERVERS - 1
            load.see_it_run()
        (status,) = nbd("status", "--json").json()
        assert (status["target"], status["also"]) == (uris[2], uris[:2])
        eventually(knows_place, 120)
        others.enter_context(places[0].serve(image=image))
        load.see_it_run()
        assert in_use() == uris[2]  # it does not move back by itself
        servers[2].kill()
        eventually(lambda: in_use() == uris[0])
        load.see_it_run()
        assert nbd("disconnect", "--tag", uris[0]).code == 7  # the load has it open


@pytest.mark.rare
def test_a_server_that_restarts_soon_keeps_the_device(tmp_path: Path) -> None:
    image, places = three(tmp_path)
    with ExitStack() as others, ExitStack() as end:
        server = others.enter_context(places[0].serve(image=image))
        others.enter_context(places[1].serve(image=image))
        end.enter_context(attached(uri(places[0]), "nbd0", also=[uri(places[1])]))
        load = Load("/dev/nbd0", writers=2)
        end.enter_context(nothing_goes_wrong(load, image))
        load.see_it_run()
        server.kill()
        time.sleep(3)
        others.enter_context(places[0].serve(image=image))
        load.see_it_run()
        assert in_use() == uri(places[0])


def test_a_server_with_older_data_is_passed_over(tmp_path: Path) -> None:
    """All return, one of them stale: it gets no byte, and the one with the data gets the device."""
    image, places = three(tmp_path)
    kind = KINDS["ext4"]
    with ExitStack() as others, ExitStack() as end:
        server = others.enter_context(places[0].serve(image=image))
        end.enter_context(attached(uri(places[0]), "nbd0", also=[uri(one) for one in places[1:]]))
        shell(kind.make)
        with used(kind):
            shell(kind.change)
            shell("sync")
            stale = places[1].image
            shutil.copyfile(image, stale)
            before = digest_of(stale)
            for _ in range(3):
                shell(kind.change)
            shell("sync")
            eventually(remembered, 120)
            server.kill()
            others.enter_context(places[1].serve(image=stale))
            eventually(lambda: f"{uri(places[1])}: this is another disk: it is an older state" in trouble_of("nbd0"))
            writer = subprocess.Popen(["sh", "-c", kind.change], stderr=subprocess.DEVNULL)
            time.sleep(2)
            assert digest_of(stale) == before
            others.enter_context(places[2].serve(image=image))
            eventually(lambda: state_of("nbd0") == "connected")
            assert in_use() == uri(places[2])
            assert writer.wait(120) == 0
            assert digest_of(stale) == before
            shell(kind.change)


def test_the_first_server_may_be_down_when_the_device_is_attached(tmp_path: Path) -> None:
    image, places = three(tmp_path)
    with places[1].serve(image=image):
        done = nbd("connect", "--backend", "netlink", uri(places[0]), "nbd0", "--also", uri(places[1]))
        assert (done.code, done.out) == (0, "/dev/nbd0\n")
        assert f"it cannot be reached; the device is attached to {uri(places[1])}" in done.err
        again = nbd("connect", "--backend", "netlink", uri(places[0]), "nbd0", "--also", uri(places[1]))
        assert (again.code, again.out) == (0, "/dev/nbd0\n")
        assert in_use() == uri(places[1])
        assert nbd("disconnect", "nbd0").code == 0


def test_a_server_that_was_left_gets_nothing_back_without_what_it_missed(tmp_path: Path) -> None:
    """The first dies, the second has a copy and goes on; it dies; the first comes back without the writes between."""
    image, places = three(tmp_path)
    kind = KINDS["ext4"]
    with ExitStack() as others, ExitStack() as end:
        first = others.enter_context(places[0].serve(image=image))
        end.enter_context(attached(uri(places[0]), "nbd0", also=[uri(places[1])], on_loss=None))
        shell(kind.make)
        with used(kind):
            shell(kind.change)
            shell("sync")
            eventually(remembered, 120)
            first.kill()
            second_image = Path(shutil.copyfile(image, tmp_path / "copy"))
            second = others.enter_context(places[1].serve(image=second_image))
            eventually(lambda: in_use() == uri(places[1]))
            shell(kind.change)
            second.kill()
            before = digest_of(image)
            others.enter_context(places[0].serve(image=image))
            eventually(lambda: f"{uri(places[0])}: " in trouble_of("nbd0") and "connect:" not in trouble_of("nbd0"))
            time.sleep(3)
            assert digest_of(image) == before
            others.enter_context(places[1].serve(image=second_image))
            eventually(lambda: state_of("nbd0") == "connected")
            assert in_use() == uri(places[1])
            shell(kind.change)


def test_a_server_that_dies_at_once_leaves_the_way_back(tmp_path: Path) -> None:
    image, places = three(tmp_path)
    with ExitStack() as others, ExitStack() as end:
        first = others.enter_context(places[0].serve(image=image))
        end.enter_context(attached(uri(places[0]), "nbd0", also=[uri(places[1])]))
        eventually(knows_place)
        first.kill()
        second = others.enter_context(places[1].serve(image=image))
        eventually(lambda: in_use() == uri(places[1]))
        second.kill()
        others.enter_context(places[0].serve(image=image))
        eventually(lambda: in_use() == uri(places[0]) and state_of("nbd0") == "connected")


def test_another_disk_is_no_way_out_though_a_program_writes_to_the_device(tmp_path: Path) -> None:
    image, places = three(tmp_path)
    other = places[1].image
    for one in (image, other):
        shell(f"mkfs.ext4 -q -F {one}")
    before = digest_of(other)
    with ExitStack() as others, ExitStack() as end:
        first = others.enter_context(places[0].serve(image=image))
        others.enter_context(places[1].serve(image=other))
        end.enter_context(attached(uri(places[0]), "nbd0", also=[uri(places[1])]))
        eventually(knows_place)
        load = Load("/dev/nbd0", writers=1)
        end.enter_context(load)
        load.see_it_run()
        first.kill()
        eventually(lambda: "this is another disk" in trouble_of("nbd0"))
        time.sleep(2)
        assert digest_of(other) == before
        others.enter_context(places[0].serve(image=image))
        load.see_it_run()


def test_an_ordered_move_to_one_of_the_servers_keeps_the_others(tmp_path: Path) -> None:
    image, places = three(tmp_path)
    with ExitStack() as others, ExitStack() as end:
        for one in places[:2]:
            others.enter_context(one.serve(image=image))
        uris = [uri(one) for one in places[:2]]
        end.enter_context(attached(uris[0], "nbd0", also=uris[1:]))
        assert nbd("reconnect", "nbd0", uris[1]).code == 0
        (status,) = nbd("status", "--json").json()
        assert (status["target"], status["also"]) == (uris[1], uris[:1])
        again = nbd("connect", "--backend", "netlink", uris[0], "nbd0", "--also", uris[1])
        assert (again.code, again.out) == (0, "/dev/nbd0\n")


def test_another_attachment_of_the_same_process_gets_no_connection_of_the_old_one(tmp_path: Path) -> None:
    """A foreign tool detaches the device, and this process attaches another server's disk there, within a second."""
    image, places = three(tmp_path)
    shell(f"dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\\\0' A >{image}")
    other = places[1].image
    shell(f"dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\\\0' B >{other}")
    with ExitStack() as others:
        others.enter_context(places[0].serve(image=image))
        second = others.enter_context(places[1].serve(image=other))
        connect(uri(places[0]), "nbd0", tag="t")
        shell("nbd-client -d /dev/nbd0")
        eventually(lambda: not Kernel(DEVICE).attached)
        with connect(uri(places[1]), "nbd0", tag="t", reconnect=False):
            second.kill()
            reader = subprocess.Popen(
                ["dd", "if=/dev/nbd0", "bs=4k", "count=1", "iflag=direct"], stdout=subprocess.PIPE
            )
            time.sleep(5)
            assert reader.poll() is None  # it waits, because no monitor reconnects the device
            others.enter_context(places[1].serve(image=other))
            assert nbd("disconnect", "--force", "nbd0").code == 0
            out, _ = reader.communicate(timeout=60)
            assert b"A" not in out
