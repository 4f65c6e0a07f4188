#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# "qemu-img dd" has the operands of dd and another meaning of two of them: count=N is where the copy ends in the source, so
# skip=M takes M blocks off its length. With 10.0.13, "bs=4096 skip=2 count=3" copies one block, and "skip=3 count=3" makes
# an empty file. A length that is no multiple of 512 is rounded up, so a copy has up to 511 bytes more. The exit status is
# 0, and there is no message. "skip" alone is right. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1
in_root >"$scratch/found" <<'END'
cd /tmp
head -c 1M /dev/urandom >source
for operands in 'bs=4096 skip=2' 'bs=4096 count=3' 'bs=4096 skip=2 count=3' 'bs=4096 skip=3 count=3' 'bs=1000 count=3'; do
    dd if=source of=by-dd $operands 2>/dev/null
    qemu-img dd -f raw -O raw if=source of=by-qemu $operands && echo "$operands: dd $(stat -c %s by-dd), qemu-img $(stat -c %s by-qemu)"
done
END
cat "$scratch/found"
expect 'skip alone' 'bs=4096 skip=2: dd 1040384, qemu-img 1040384' "$(sed -n 1p "$scratch/found")"
expect 'count alone' 'bs=4096 count=3: dd 12288, qemu-img 12288' "$(sed -n 2p "$scratch/found")"
expect 'both' 'bs=4096 skip=2 count=3: dd 12288, qemu-img 4096' "$(sed -n 3p "$scratch/found")"
expect 'both' 'bs=4096 skip=3 count=3: dd 12288, qemu-img 0' "$(sed -n 4p "$scratch/found")"
expect 'other blocks' 'bs=1000 count=3: dd 3000, qemu-img 3072' "$(sed -n 5p "$scratch/found")"
