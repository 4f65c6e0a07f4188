#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# libblkid of util-linux 2.41.5 does not read a disk again that it has read in the last 2 seconds (BLKID_PROBE_MIN), unless
# the time of the device's node has changed, and an attach changes no time. If another server's disk gets the same nbd
# device within that time, blkid prints the former label and UUID, finds the new label nowhere, and "mount LABEL=former"
# mounts the new disk. Seen without udev, as in an initramfs. "blkid -p" reads the disk. 2.38.1 and 2.42.4 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 \
    mount=2.41.5-0+deb13u1 util-linux=2.41.5-0+deb13u1 e2fsprogs=1.47.2-3+b12
in_guest >"$scratch/found" <<'END'
mkdir /run/files
put() { # NAME: that disk at nbd0
    nbd-client -unix "/run/$1" /dev/nbd0 >/dev/null 2>&1
    until [ "$(cat /sys/block/nbd0/size)" = 2048 ]; do sleep 0.02; done
}
remove() {
    nbd-client -d /dev/nbd0 >/dev/null 2>&1
    until [ "$(cat /sys/block/nbd0/size)" = 0 ]; do sleep 0.02; done
}
for name in first second; do
    nbdkit --unix /run/$name memory 1M
    put $name
    mkfs.ext4 -q -F -O ^has_journal -L $name /dev/nbd0
    remove
done
tried() { # NAME
    put first
    echo "$1: first disk $(blkid -o value -s LABEL /dev/nbd0)"
    remove
    put second
    [ "$1" = 'at once' ] || sleep 3
    echo "$1: then $(blkid -o value -s LABEL /dev/nbd0)"
    echo "$1: search for second: $(blkid -L second || echo none)"
    mount LABEL=first /run/files 2>/dev/null && umount /run/files && echo "$1: mount LABEL=first succeeds"
    echo "$1: blkid -p: $(blkid -p -o value -s LABEL /dev/nbd0)"
    remove
}
tried 'at once'
tried '3 s later'
END
cat "$scratch/found"
expect 'with the first disk' 'at once: first disk first' "$(grep 'at once: first disk' "$scratch/found")"
expect 'with the second one, at once' 'at once: then first' "$(grep 'at once: then' "$scratch/found")"
expect 'a search for its label' 'at once: search for second: none' "$(grep 'at once: search' "$scratch/found")"
expect 'a mount by the label of the first' 'at once: mount LABEL=first succeeds' "$(grep 'at once: mount' "$scratch/found")"
expect 'what the disk has' 'at once: blkid -p: second' "$(grep 'at once: blkid -p' "$scratch/found")"
expect '3 seconds after the second one came' '3 s later: then second' "$(grep '3 s later: then' "$scratch/found")"
expect 'the mount then' '' "$(grep '3 s later: mount' "$scratch/found" || :)"
