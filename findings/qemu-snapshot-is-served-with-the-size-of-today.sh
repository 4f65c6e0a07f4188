#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A snapshot inside of a qcow2 image remembers how large the disk was. If the disk has been resized since, QEMU 10.0.13
# reads the snapshot with the size of today: of a snapshot of 2 MiB in an image that has 1 MiB now, "qemu-img convert -l"
# copies, and "qemu-nbd -l" serves, the first half, with exit status 0. The rest is there: "qemu-img snapshot -a" brings it
# back. After a resize to 4 MiB the copy has zeroes behind its end. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 libnbd-bin=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
head -c 2M /dev/urandom >source
for size in 1M 4M; do
    rm -f image copy socket
    qemu-img convert -f raw -O qcow2 source image
    qemu-img snapshot -c then image
    qemu-img resize -q --shrink -f qcow2 image $size
    qemu-img convert -f qcow2 -O raw -l then image copy && echo "$size: qemu-img convert: $(stat -c %s copy) bytes"
    qemu-nbd --persistent --read-only --format=qcow2 --load-snapshot=then --socket=/tmp/socket --fork --pid-file=/tmp/pid image
    echo "$size: qemu-nbd: $(nbdinfo --size 'nbd+unix:///?socket=/tmp/socket') bytes"
    kill "$(cat pid)"
    while [ -e pid ] && kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.1; done
    qemu-img snapshot -a then image
    qemu-img convert -f qcow2 -O raw image copy
    cmp -s source copy && echo "$size: after qemu-img snapshot -a: all is there"
done
END
cat "$scratch/found"
for size in 1M:1048576 4M:4194304; do
    now=${size%:*} bytes=${size#*:}
    expect "a copy, image of $now" "$now: qemu-img convert: $bytes bytes" "$(grep "^$now: qemu-img" "$scratch/found")"
    expect "an export, image of $now" "$now: qemu-nbd: $bytes bytes" "$(grep "^$now: qemu-nbd" "$scratch/found")"
    expect 'the snapshot' "$now: after qemu-img snapshot -a: all is there" "$(grep "^$now: after" "$scratch/found")"
done
