#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# qemu-nbd 7.2 without --discard=unmap offers trim (NBD_FLAG_SEND_TRIM), answers each NBD_CMD_TRIM with success, and frees
# nothing. A client cannot tell it from one that frees the space.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3 libnbd-bin=1.14.2-1 python3-libnbd=1.14.2-1
mkdir -p "$root/mnt"
in_root >"$scratch/found" <<'END'
mount -t tmpfs tmpfs /mnt
cd /mnt
cat >trim.py <<'PY'
import nbd

one = nbd.NBD()
one.connect_unix("/mnt/socket")
offered = one.can_trim()
one.trim(1 << 20, 0)
print("offered", offered, "answered with success")
one.shutdown()
PY
for mode in '' --discard=ignore --discard=unmap; do
    head -c 1M /dev/urandom >disk
    qemu-nbd --format=raw --socket=/mnt/socket $mode disk &
    until [ -S socket ]; do sleep 0.1; done
    echo "with '$mode': $(python3 trim.py)"
    wait
    echo "with '$mode': $(du -k disk | cut -f1) KiB"
done
END
cat "$scratch/found"
for mode in '' --discard=ignore --discard=unmap; do
    expect "trim with '$mode'" "with '$mode': offered True answered with success" "$(grep "with '$mode': off" "$scratch/found")"
done
expect 'without the option the disk keeps' "with '': 1024 KiB" "$(grep "with '': [0-9]" "$scratch/found")"
expect 'with ignore it keeps' "with '--discard=ignore': 1024 KiB" "$(grep "ignore': [0-9]" "$scratch/found")"
expect 'with unmap it keeps' "with '--discard=unmap': 0 KiB" "$(grep "unmap': [0-9]" "$scratch/found")"
