#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# QEMU as a client takes the size of an export up to the next multiple of 512. With 10.0.13, qemu-img convert of an export
# of 1000 bytes makes a file of 1024, so checksums differ, with exit status 0. A copy of 1000 bytes to that export fails:
# qemu-img sends one write of 1024 bytes, which the server refuses, so nothing is written. nbdcopy copies 1000 bytes in
# both directions. qemu-nbd as a server offers such a file as 1024 bytes, so only two ends by QEMU agree. 7.2 and 11.1.3
# do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
head -c 1000 /dev/urandom >source
truncate -s 1000 target-1 target-2
serve() { nbdkit --unix - file "$1" --run "$2"; }
serve source 'qemu-img convert -O raw "$uri" copy' && echo "qemu-img from the export: $(stat -c %s copy) bytes"
serve source 'nbdcopy "$uri" copy-2' && echo "nbdcopy from the export: $(stat -c %s copy-2) bytes"
serve target-1 'qemu-img convert -n -f raw -O raw source "$uri"' 2>/dev/null || echo 'qemu-img to the export: fails'
[ "$(tr -d '\0' <target-1 | wc -c)" = 0 ] && echo 'qemu-img to the export: nothing is written'
serve target-2 'nbdcopy source "$uri"' && cmp source target-2 && echo 'nbdcopy to the export: all is written'
END
cat "$scratch/found"
expect 'a copy by qemu-img' 'qemu-img from the export: 1024 bytes' "$(grep 'qemu-img from' "$scratch/found")"
expect 'a copy by nbdcopy' 'nbdcopy from the export: 1000 bytes' "$(grep 'nbdcopy from' "$scratch/found")"
expect 'back by qemu-img' 'qemu-img to the export: fails' "$(grep 'qemu-img to.*fails' "$scratch/found")"
expect 'and' 'qemu-img to the export: nothing is written' "$(grep 'qemu-img to.*nothing' "$scratch/found")"
expect 'back by nbdcopy' 'nbdcopy to the export: all is written' "$(grep 'nbdcopy to' "$scratch/found")"
