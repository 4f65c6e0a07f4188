#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.24 with "maxconnections = 2" refuses the third client, also when the first two have left: it counts clients
# when they come, and never when they leave. A client that only looks at an export counts if it enters it (NBD_OPT_GO), and
# not if it asks by NBD_OPT_INFO; but nbd-server answers that with a size of 0.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm nbd-server=1:3.24-1.1 libnbd-bin=1.14.2-1 python3-libnbd=1.14.2-1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 1M disk
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[disk]
    exportname = /tmp/disk
    maxconnections = 2
INI
nbd-server -C /tmp/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
cat >clients.py <<'PY'
import nbd

def client(look):
    one = nbd.NBD()
    one.set_export_name("disk")
    one.set_opt_mode(True)
    one.connect_tcp("127.0.0.1", "10809")
    if look:
        one.opt_info()
        size = one.get_size()
        one.opt_abort()
    else:
        one.opt_go()
        size = one.get_size()
        one.shutdown()
    return size

print("looks", [client(look=True) for _ in range(3)])
print("enters", [client(look=False) for _ in range(2)])
try:
    print("third", client(look=False))
except nbd.Error:
    print("third refused")
PY
python3 clients.py
END
cat "$scratch/found"
expect 'three clients that only look, and the size that they are told' 'looks [0, 0, 0]' "$(grep looks "$scratch/found")"
expect 'two clients that enter and leave' 'enters [1048576, 1048576]' "$(grep enters "$scratch/found")"
expect 'the third one' 'third refused' "$(grep third "$scratch/found")"
