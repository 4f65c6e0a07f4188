#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113, nbd: a device that was once attached from a server with NBD_FLAG_SEND_WRITE_ZEROES keeps sending
# NBD_CMD_WRITE_ZEROES to each later server, until the module is loaded anew. One that has not offered the command
# refuses it, and the kernel does not fall back to writing zeroes: fallocate and blkdiscard -z give EIO on a good disk.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
zero() {
    blkdiscard -z /dev/nbd0 2>/run/error && echo "$1: zeroed" || echo "$1: $(sed 's/.*: //' /run/error)"
}
uname -r
attach --filter=nozero memory 1M
zero 'never offered'
detach
attach memory 1M
zero 'offered'
detach
attach --filter=nozero memory 1M
zero 'offered by the last server only'
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'a fresh device' 'never offered: zeroed' "$(grep '^never' "$scratch/found")"
expect 'with the command' 'offered: zeroed' "$(grep '^offered:' "$scratch/found")"
expect 'the first server again' 'offered by the last server only: Input/output error' "$(grep '^offered by' "$scratch/found")"
