#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: a partition table of DOS counts sectors and does not say how large they are. If an image that was
# partitioned with sectors of 512 bytes is attached with 4096, as for a server whose smallest block that is, the first
# partition is 8 times as far inside and 8 times as large. Here /dev/nbd0p1 reads as the second partition, and mkfs there
# would destroy that. The second one is behind the end, and is left out. Nothing fails; only parted finds no table. A GPT
# is not found at all, so no partition is wrong. 7.2.7 does the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 fdisk=2.41.5-0+deb13u1 parted=3.6-5+deb13u1
in_guest >"$scratch/found" <<'END'
uname -r
mount -t devtmpfs dev /dev
for label in dos gpt; do
    rm -f /run/image
    truncate -s 32M /run/image
    printf 'label: %s\nstart=2048, size=4096\nstart=16384, size=16384\n' $label | sfdisk -q /run/image
    printf first | dd of=/run/image bs=512 seek=2048 conv=notrunc 2>/dev/null
    printf other | dd of=/run/image bs=512 seek=16384 conv=notrunc 2>/dev/null
    for block in 512 4096; do
        rm -f /run/sock
        nbdkit --unix /run/sock --pidfile /run/pid --filter=blocksize-policy file /run/image blocksize-minimum=$block
        nbd-client -b $block -unix /run/sock /dev/nbd0 >/dev/null 2>&1
        until [ "$(cat /sys/block/nbd0/size)" = 65536 ]; do sleep 0.1; done
        sync /dev/nbd0 # the partitions are there after the first open
        sleep 0.3
        echo "$label $block: $(ls /sys/block/nbd0 | grep -c nbd0p || :) partitions"
        if [ -e /dev/nbd0p1 ]; then
            place=$(($(cat /sys/block/nbd0/nbd0p1/start) * 512))
            echo "$label $block: the first is at $place, has $(blockdev --getsize64 /dev/nbd0p1) bytes, reads '$(head -c 5 /dev/nbd0p1)'"
        fi
        parted -s /dev/nbd0 print >/run/parted 2>&1 || :
        echo "$label $block: parted: $(sed -n 's/^Partition Table: //p' /run/parted)"
        nbd-client -d /dev/nbd0 >/dev/null 2>&1
        until [ "$(cat /sys/block/nbd0/size)" = 0 ]; do sleep 0.1; done
        kill "$(cat /run/pid)"
    done
done
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'sectors as they were' 'dos 512: 2 partitions' "$(grep 'dos 512: .* partitions' "$scratch/found")"
expect 'the first' "dos 512: the first is at 1048576, has 2097152 bytes, reads 'first'" "$(grep 'dos 512: the' "$scratch/found")"
expect 'larger sectors' 'dos 4096: 1 partitions' "$(grep 'dos 4096: .* partitions' "$scratch/found")"
expect 'the first' "dos 4096: the first is at 8388608, has 16777216 bytes, reads 'other'" "$(grep 'dos 4096: the' "$scratch/found")"
expect 'parted' 'dos 4096: parted: unknown' "$(grep 'dos 4096: parted' "$scratch/found")"
expect 'a GPT' 'gpt 512: 2 partitions' "$(grep 'gpt 512: .* partitions' "$scratch/found")"
expect 'larger sectors' 'gpt 4096: 0 partitions' "$(grep 'gpt 4096: .* partitions' "$scratch/found")"
