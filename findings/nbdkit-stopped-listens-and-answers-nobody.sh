#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit 1.42.3 that gets SIGTERM while a client is connected and silent stays until that client leaves. Meanwhile it keeps
# its listening socket, though it accepts no more clients: the kernel completes the connection of a new client, which
# then waits for a greeting that never comes. So a client that connects again, as the keeper of a block device does, sees a
# silent server, and not "connection refused". If the SIGTERM comes within the first moments of the client's connection,
# nbdkit ends at once at times. 1.32.5 and 1.48.1 are the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
cat >clients.py <<'PY'
import os, signal, socket, time

import nbd

first = nbd.NBD()
first.connect_tcp("127.0.0.1", "10809")
time.sleep(1)  # until nbdkit waits for its first request
pid = int(open("/tmp/pid").read())
os.kill(pid, signal.SIGTERM)
time.sleep(1)
second = socket.create_connection(("127.0.0.1", 10809), 10)
print("second client: connected")
second.settimeout(5)
try:
    print("second client: greeting of", len(second.recv(18)), "bytes")
except TimeoutError:
    print("second client: no greeting in 5 s")
os.kill(pid, 0)
print("server: still there")
PY
nbdkit -P /tmp/pid -i 127.0.0.1 memory 1M
until [ -s pid ]; do sleep 0.1; done
python3 clients.py
END
cat "$scratch/found"
expect 'a new client' 'second client: connected' "$(grep 'second client: c' "$scratch/found")"
expect 'what it gets' 'second client: no greeting in 5 s' "$(grep 'greeting' "$scratch/found")"
expect 'the server' 'server: still there' "$(grep 'server' "$scratch/found")"
