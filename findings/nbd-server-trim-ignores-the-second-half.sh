#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 answers each NBD_CMD_TRIM with success. Behind the middle of the export it frees nothing, because it
# subtracts the request's offset twice from the size of the file (exptrim in nbdsrv.c), and does not look at the error of
# fallocate. A request before the middle that reaches far is cut short. blkdiscard of a small disk is one request from 0,
# so a first try frees all. The packages 3.24 and 3.27.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
mount -t tmpfs tmpfs /mnt
cd /mnt
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[disk]
    exportname = /mnt/disk
    trim = true
INI
cat >trim.py <<'PY'
import os
import nbd

MIB = 1 << 20

def trim(what, offset, length):
    with open("/mnt/disk", "r+b") as disk:
        disk.write(os.urandom(8 * MIB))
    client.trim(length, offset)
    print(f"{what}: success, freed {8 * MIB - 512 * os.stat('/mnt/disk').st_blocks}")

open("/mnt/disk", "wb").write(bytes(8 * MIB))
client = nbd.NBD()
client.set_export_name("disk")
client.connect_tcp("127.0.0.1", "10809")
trim("all", 0, 8 * MIB)
trim("MiB 2", 2 * MIB, MIB)
trim("MiB 2 to 7", 2 * MIB, 6 * MIB)
trim("MiB 4", 4 * MIB, MIB)
trim("MiB 7", 7 * MIB, MIB)
PY
head -c 8M /dev/zero >disk
nbd-server -C /mnt/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
python3 trim.py
END
cat "$scratch/found"
expect 'all 8 MiB' 'all: success, freed 8388608' "$(grep '^all' "$scratch/found")"
expect '1 MiB before the middle' 'MiB 2: success, freed 1048576' "$(grep '^MiB 2:' "$scratch/found")"
expect '6 MiB across the middle' 'MiB 2 to 7: success, freed 4194304' "$(grep '^MiB 2 to' "$scratch/found")"
expect '1 MiB at the middle' 'MiB 4: success, freed 0' "$(grep '^MiB 4' "$scratch/found")"
expect '1 MiB at the end' 'MiB 7: success, freed 0' "$(grep '^MiB 7' "$scratch/found")"
