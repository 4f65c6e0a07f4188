# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of other packages that look at each new disk: udisks2, multipathd, smartd, LVM's event activation.

Run by `make neighbours`; their packages are not needed otherwise.
"""

from __future__ import annotations

from pathlib import Path

from guest import HOST, booting
from servers import nbdkit
from test_boot import FSTAB, LOOK, NBDTAB, PORT, WRITE, make_disks, see_all_clean, see_no_trouble

# On each of three attachments all of them look at the disk, and none may keep it.
PROGRAM = f"""{LOOK}{WRITE}
systemctl unmask dbus.socket dbus.service
systemctl start dbus udisks2 multipathd
smartd --no-fork -q never & # its unit starts on no virtual machine
for unit in udisks2 multipathd; do echo $unit is $(systemctl is-active $unit); done
for turn in 1 2 3; do
    nbdattach connect nbd://{HOST}/empty nbd5
    udevadm settle
    [ $turn = 1 ] && pvcreate -qq -y /dev/nbd5 && vgcreate -qq beside /dev/nbd5 && lvcreate -qq -n one -L 8M beside
    [ $turn = 1 ] || vgchange -qq -aay beside
    udevadm settle
    timeout 20 nbdattach disconnect nbd5 2>&1 | sed -n 2p
    timeout 20 nbdattach disconnect --release nbd5 2>&1 && echo turn $turn
done
timeout 10 multipath -ll; timeout 10 udisksctl status; pgrep smartd; pkill smartd
"""


def test_programs_that_look_at_each_disk_keep_none(tmp_path: Path) -> None:
    place = make_disks(tmp_path)
    (place / "empty").touch()
    with (place / "empty").open("ab") as file:
        file.truncate(64 << 20)
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        booting(tmp_path, PROGRAM, {"etc/fstab": FSTAB, "etc/nbdtab": NBDTAB}) as guest,
    ):
        said = guest.wait()
        see_all_clean(place)
    for unit in ("udisks2", "multipathd"):
        assert f"{unit} is active" in said
    assert said.count("(LVM volume beside-one): lvchange -an --select lv_uuid=") == 3
    assert [line for line in said.splitlines() if line.startswith("turn ")] == [f"turn {n}" for n in range(1, 4)]
    see_no_trouble(guest)
