#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit 1.42.3 with --oldstyle offers FLUSH, FUA, TRIM and WRITE_ZEROES in its handshake, and refuses each of them with
# EINVAL ("flush operation not supported"), though the same plugin does them in new style. Plain writes succeed. So each
# fsync of a block device that is attached there fails. 1.32.5 and 1.48.1 are the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
cat >requests.py <<'PY'
import sys

import nbd

client = nbd.NBD()
client.connect_unix(sys.argv[2])
offers = [client.can_flush(), client.can_fua(), client.can_trim(), client.can_zero()]
print(sys.argv[1], "offers", offers)
for name, request in (
    ("write", lambda: client.pwrite(bytes(512), 0)),
    ("flush", client.flush),
    ("fua", lambda: client.pwrite(bytes(512), 0, nbd.CMD_FLAG_FUA)),
    ("trim", lambda: client.trim(4096, 0)),
    ("zero", lambda: client.zero(4096, 0)),
):
    try:
        request()
        print(sys.argv[1], name, "succeeds")
    except nbd.Error as error:
        print(sys.argv[1], name, error.errno)
PY
for style in newstyle oldstyle; do
    nbdkit --$style --unix /tmp/$style memory 1M 2>/dev/null
    python3 requests.py $style /tmp/$style
done
END
cat "$scratch/found"
expect 'offered in old style' 'oldstyle offers [True, True, True, True]' "$(grep 'oldstyle offers' "$scratch/found")"
expect 'a write' 'oldstyle write succeeds' "$(grep 'oldstyle write' "$scratch/found")"
for request in flush fua trim zero; do
    expect 'in new style' "newstyle $request succeeds" "$(grep "newstyle $request" "$scratch/found")"
    expect 'in old style' "oldstyle $request EINVAL" "$(grep "oldstyle $request" "$scratch/found")"
done
