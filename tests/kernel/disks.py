# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of content of a disk: how each is made, used, changed and released."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tool import shell

_LUKS = "echo secret | cryptsetup"
_QUICK = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
_LVM = """global { event_activation = 0 } devices { use_devicesfile = 0 filter = [ "a|/dev/nbd|", "r|.*|" ] }
activation { udev_rules = 0 udev_sync = 0 verify_udev_operations = 1 monitoring = 0 }"""


@dataclass(frozen=True)
class Kind:
    """Shell commands. `change` changes the disk while it is in use, in a way that an older state of it shows."""

    make: str
    use: str
    change: str
    release: str
    mebibytes: int = 64


def _mounted(make: str, mebibytes: int = 64, part: str = "") -> Kind:
    change = (
        "for i in $(seq 40); do read -r new </proc/sys/kernel/random/uuid; echo $new >/mnt/$new; done; sync -f /mnt;"
        " dd if=/dev/urandom of=/mnt/data bs=64k count=8 conv=fsync 2>/dev/null; sync -f /mnt"
    )
    return Kind(make, f"mount /dev/nbd0{part} /mnt", change, "umount /mnt", mebibytes)


def _table(label: str) -> str:
    return f"printf 'label: {label}\\nsize=8MiB\\n,\\n' | sfdisk -q --wipe always /dev/nbd0; udevadm settle || true"


KINDS = {
    "ext4": _mounted("mkfs.ext4 -q -F /dev/nbd0"),
    "xfs": _mounted("mkfs.xfs -q -f /dev/nbd0", 320),
    "btrfs": _mounted("mkfs.btrfs -q -f /dev/nbd0", 200),
    "gpt": _mounted(f"{_table('gpt')}; mkfs.ext4 -q -F /dev/nbd0p2", part="p2"),
    "mbr": _mounted(f"{_table('dos')}; mkfs.ext4 -q -F /dev/nbd0p2", part="p2"),
    "luks": Kind(
        f"{_LUKS} luksFormat -q --type luks2 {_QUICK} /dev/nbd0 -",
        f"{_LUKS} open /dev/nbd0 disk -d -",
        f"printf secret >/run/old; printf new >/run/new; {_LUKS} luksAddKey {_QUICK} -q -d - /dev/nbd0 /run/new",
        "cryptsetup close disk",
    ),
    "lvm": Kind(
        f"mkdir -p /etc/lvm; echo '{_LVM}' >/etc/lvm/lvmlocal.conf; pvcreate -q -y -ff /dev/nbd0; vgcreate -q group"
        " /dev/nbd0",
        "lvcreate -q -n first -L 4M -Wn -Zn group",
        "lvcreate -q -n n$(date +%N) -L 4M -Wn -Zn group",
        "vgchange -q -an group",
    ),
    "md": Kind(
        "echo y | mdadm -q --create /dev/md0 --run --metadata=1.2 --level=1 --force --raid-devices=1 /dev/nbd0 2>&1"
        " && mdadm -q --stop /dev/md0",
        "mdadm -q --assemble --run /dev/md0 /dev/nbd0",
        "mdadm -q --stop /dev/md0; mdadm -q --assemble --run /dev/md0 /dev/nbd0; dd if=/dev/urandom of=/dev/md0 bs=64k"
        " count=4 conv=fsync 2>/dev/null; mdadm -q --stop /dev/md0; mdadm -q --assemble --run /dev/md0 /dev/nbd0",
        "mdadm -q --stop /dev/md0",
    ),
    "swap": Kind("mkswap /dev/nbd0", "swapon /dev/nbd0", "true", "swapoff /dev/nbd0"),
    "raw": Kind(
        "dd if=/dev/urandom of=/dev/nbd0 bs=1M count=64 conv=fsync 2>/dev/null",
        "true",
        "dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 conv=fsync 2>/dev/null",
        "true",
    ),
}


@contextlib.contextmanager
def used(kind: Kind) -> Iterator[None]:
    shell(kind.use)
    try:
        yield
    finally:
        shell(kind.release)
