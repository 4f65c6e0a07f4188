#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit 1.32 executes itself once more for a plugin that is a script and is named as any other plugin, as its S3 plugin
# is (nbdkit S3). It has read LISTEN_FDS by then, and closes that socket: the second nbdkit serves its TCP port, as it does
# without socket activation. `nbdkit python SCRIPT` keeps the socket.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm nbdkit=1.32.5-1 nbdkit-plugin-python=1.32.5-1 libnbd-bin=1.14.2-1 python3=3.11.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
plugin=/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-demo-plugin
cat >$plugin <<'SCRIPT'
#!/usr/bin/nbdkit python
API_VERSION = 2
def open(readonly): return 1
def get_size(h): return 1048576
def pread(h, buf, offset, flags): buf[:] = bytes(len(buf))
SCRIPT
chmod +x $plugin
cat >activate.py <<'SCRIPT'
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
SCRIPT
for how in "python $plugin" demo; do
    rm -f socket
    python3 activate.py socket nbdkit --foreground $how 2>said &
    sleep 3
    size=$(nbdinfo --size 'nbd+unix:///?socket=/tmp/socket' 2>/dev/null) || size=refused
    port=no
    ! grep -q ' 00000000:2A39 00000000:0000 0A ' /proc/net/tcp || port=yes
    echo "${how%% *}: by its socket $size, listens on TCP $port"
    kill $!
    wait $! || :
done
END
cat "$scratch/found"
expect 'named as an argument of python' 'python: by its socket 1048576, listens on TCP no' "$(grep '^python' "$scratch/found")"
expect 'named as a plugin' 'demo: by its socket refused, listens on TCP yes' "$(grep '^demo' "$scratch/found")"
