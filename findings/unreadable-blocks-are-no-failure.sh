#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The tools for disks with unreadable blocks exit with 0 when they have met one: badblocks of e2fsprogs 1.47.2, ddrescue
# 1.29, and dd of coreutils 9.7 with conv=noerror,sync. They leave different things in the copy: ddrescue keeps the data
# of before, if it overwrites a file or disk, in the 4096 bytes that it could not read, and dd with bs=64K makes zeroes of
# all 65536 bytes of the request. A script that relies on the exit status goes on with a copy that has a hole: it has to
# read the output, or ddrescue's mapfile. dd without noerror, cp, nbdcopy and qemu-img convert exit with 1.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 \
    coreutils=9.7-3 e2fsprogs=1.47.2-3+b12 gddrescue=1.29-1 libnbd-bin=1.22.2-1+b1 qemu-utils=1:10.0.13+ds-0+deb13u1
in_guest >"$scratch/found" <<'END'
uname -r
tr '\0' s </dev/zero | head -c 1M >/run/image
printf '0x00000000 ? 1\n0x00000000 0x00080000 +\n0x00080000 0x00001000 -\n0x00081000 0x0007F000 +\n' >/run/bad
attach --filter=ddrescue file /run/image ddrescue-mapfile=/run/bad
uri='nbd+unix:///?socket=/run/sock'
tried() { # WHAT COMMAND...
    what=$1
    shift
    tr '\0' o </dev/zero | head -c 1M >/run/copy
    "$@" >/run/output 2>&1 && status=0 || status=$?
    echo "$what: exit $status"
}
bytes() { tr -dc "$1" </run/copy | wc -c; }
copied() { # WHAT COMMAND...
    tried "$@"
    echo "$1: source $(bytes s), as before $(bytes o), zeroes $(bytes '\0')"
}
tried badblocks badblocks -b 4096 /dev/nbd0
echo "badblocks: bad is $(cat /run/output)"
copied ddrescue ddrescue --force /dev/nbd0 /run/copy
copied 'dd noerror' dd if=/dev/nbd0 of=/run/copy bs=64K conv=noerror,sync
tried dd dd if=/dev/nbd0 of=/run/copy bs=64K
tried cp cp /dev/nbd0 /run/copy
tried nbdcopy nbdcopy "$uri" /run/copy
tried qemu-img qemu-img convert -n -f raw -O raw "$uri" /run/copy
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'what badblocks prints' 'badblocks: bad is 128' "$(grep 'bad is' "$scratch/found")"
for tool in badblocks ddrescue 'dd noerror'; do
    expect 'says success' "$tool: exit 0" "$(grep "^$tool: exit" "$scratch/found")"
done
expect 'the copy' 'ddrescue: source 1044480, as before 4096, zeroes 0' "$(grep 'ddrescue: source' "$scratch/found")"
expect 'the copy' 'dd noerror: source 983040, as before 0, zeroes 65536' "$(grep 'dd noerror: source' "$scratch/found")"
for tool in dd cp nbdcopy qemu-img; do
    expect 'says failure' "$tool: exit 1" "$(grep "^$tool: exit" "$scratch/found")"
done
