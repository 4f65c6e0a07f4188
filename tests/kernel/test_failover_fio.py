# SPDX-License-Identifier: GPL-2.0-or-later
"""Three servers of the same data under verified fio: one dies, two die, the first returns, all return, one is stale.

fio works on a file, as the file system shows which states are older.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from test_events import Verified
from test_failover import is_in_use, knows_place, uri
from test_restart import place, state_of, trouble_of
from tool import attached, digest_of, eventually, shell

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor, pytest.mark.rare, pytest.mark.timeout(900)]


@pytest.mark.parametrize("connections", [1, 3])
def test_no_death_of_a_server_costs_an_error_or_a_byte(tmp_path: Path, connections: int) -> None:
    places = [place(tmp_path, name, mebibytes=192) for name in ("image", "second", "third")]
    image, stale = places[0].image, places[1].image
    uris = [uri(one) for one in places]
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    work = Verified("/mnt/verified")
    with ExitStack() as others, ExitStack() as end:
        servers = [others.enter_context(one.serve(image=image)) for one in places]
        end.enter_context(attached(uris[0], "nbd0", also=uris[1:], connections=connections, on_loss=600, io_timeout=60))
        shell("mount /dev/nbd0 /mnt")
        end.callback(shell, "umount /mnt")
        end.enter_context(work.running())

        def moves(dead: int, there: int) -> None:
            eventually(knows_place, 120)
            time.sleep(5)
            servers[dead].kill()
            eventually(partial(is_in_use, uris[there]), 120)
            goes_on(work)

        moves(0, 1)
        moves(1, 2)
        servers[0] = others.enter_context(places[0].serve(image=image))
        goes_on(work)
        moves(2, 0)

        shell(f"sync -f /mnt; cp --sparse=always {image} {stale}")
        before = digest_of(stale)
        goes_on(work)
        shell("echo new >/mnt/new; sync -f /mnt")
        eventually(knows_place, 120)
        time.sleep(5)
        servers[0].kill()
        others.enter_context(places[1].serve(image=stale))
        eventually(lambda: f"{uris[1]}: this is another disk" in trouble_of("nbd0"), 120)
        time.sleep(3)
        assert digest_of(stale) == before
        others.enter_context(places[2].serve(image=image))
        eventually(partial(is_in_use, uris[2]), 120)
        goes_on(work)
        assert digest_of(stale) == before
    assert work.failures == []
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def goes_on(work: Verified) -> None:
    """fio ends the pass under way and a whole one after it, of which the verification is a part."""
    eventually(lambda: state_of("nbd0") == "connected", 120)
    passes = work.passes
    eventually(lambda: work.failures or work.passes >= passes + 2, 300)
    assert work.failures == []
