#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# qemu-nbd 10.0.13 with a qcow2 image and --discard=unmap frees whole clusters (64 KiB) within one TRIM only. If each 4 KiB
# of a cluster is trimmed by a request of its own, each one succeeds, nothing is freed, and the old data stays readable.
# Zeroes in such pieces are written, and the image shrinks as little. The server announces a preferred block size of 4096,
# so a client does not learn of the 64 KiB. A file system that is mounted with "discard" sends small pieces for small
# files. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
mount -t tmpfs tmpfs /mnt # its count of blocks is exact at once
cd /mnt
cat >trim.py <<'PY'
import os
import nbd

KIB = 1024
MIB = 1024 * KIB
client = nbd.NBD()
client.connect_unix("/mnt/socket")
print("preferred", client.get_block_size(nbd.SIZE_PREFERRED))

def tried(what, size, request):
    client.pwrite(b"data" * (MIB // 4), 0)
    client.flush()
    before = os.stat("/mnt/image").st_blocks
    for offset in range(0, MIB, size):
        request(size, offset)
    freed = (before - os.stat("/mnt/image").st_blocks) // 2
    print(f"{what}: freed {freed} KiB, read {bytes(client.pread(4, 0))}")

tried("trim by 4 KiB", 4 * KIB, client.trim)
tried("zero by 4 KiB", 4 * KIB, client.zero)
tried("trim by 64 KiB", 64 * KIB, client.trim)
PY
qemu-img create -q -f qcow2 image 4M
qemu-nbd --socket=/mnt/socket --format=qcow2 --discard=unmap image &
until [ -S socket ]; do sleep 0.1; done
python3 trim.py
END
cat "$scratch/found"
expect 'block size' 'preferred 4096' "$(grep preferred "$scratch/found")"
expect '1 MiB in requests of 4 KiB' "trim by 4 KiB: freed 0 KiB, read b'data'" "$(grep 'trim by 4 ' "$scratch/found")"
expect 'zeroes' "zero by 4 KiB: freed 0 KiB, read b'\\x00\\x00\\x00\\x00'" "$(grep 'zero by 4 ' "$scratch/found")"
expect 'in requests of 64 KiB' "trim by 64 KiB: freed 1024 KiB, read b'\\x00\\x00\\x00\\x00'" \
    "$(grep 'trim by 64 ' "$scratch/found")"
