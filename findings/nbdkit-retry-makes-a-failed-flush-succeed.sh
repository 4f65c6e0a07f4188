#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's filter "retry" opens the plugin again after an error, and repeats the request that failed. A FLUSH is repeated
# too: in 1.42.3 it succeeds at the server that has started again, though the writes before it are lost, as the former
# server had them in its cache. Without the filter the same FLUSH fails, and the client knows. 1.32.5 and 1.48.1 do the
# same. The filter makes reads reliable, not writes.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 1M disk
cat >behind <<'SH'
rm -f /tmp/behind.sock
nbdkit --unix /tmp/behind.sock --pidfile /tmp/behind.pid --filter=cache file /tmp/disk
SH
cat >client.py <<'PY'
import os, signal, subprocess, sys
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/" + sys.argv[1])
client.pwrite(b"new!" * 128, 0)
print(sys.argv[1] + ": write succeeds", client.pread(4, 0))
os.kill(int(open("/tmp/behind.pid").read()), signal.SIGKILL)
subprocess.run(["sh", "/tmp/behind"], check=True)
try:
    client.flush()
    print(sys.argv[1] + ": flush succeeds,", bytes(client.pread(4, 0)))
except nbd.Error:
    print(sys.argv[1] + ": flush fails")
PY
sh behind
nbdkit --unix /tmp/retry --filter=retry nbd socket=/tmp/behind.sock retry-delay=1
python3 client.py retry
nbdkit --unix /tmp/plain nbd socket=/tmp/behind.sock
python3 client.py plain 2>/dev/null
END
cat "$scratch/found"
expect 'with the filter, before' "retry: write succeeds bytearray(b'new!')" "$(grep 'retry: write' "$scratch/found")"
expect 'after a restart behind it' "retry: flush succeeds, b'\\x00\\x00\\x00\\x00'" "$(grep 'retry: flush' "$scratch/found")"
expect 'without the filter' 'plain: flush fails' "$(grep 'plain: flush' "$scratch/found")"
