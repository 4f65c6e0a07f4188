#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A peer that reads nothing closes its TCP window, and Linux asks it again and again whether it can receive more. Linux
# as that peer answers at most one such question in half a second (net.ipv4.tcp_invalid_ratelimit), so one that is asked
# sooner stays without an answer until the next: tcpi_probes of struct tcp_info is 1 for as long as that takes, though
# the peer is alive. It takes 2 without an answer to tell a peer that is gone. With the limit at 0 each one is answered.
# Tried with user-mode Linux 6.12.113.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 python3-minimal=3.13.5-1 kmod iproute2
cat >"$root/probes.py" <<'PY'
import socket, time

with socket.create_server(("127.0.0.1", 0)) as server:
    ours = socket.create_connection(server.getsockname())
    theirs, _ = server.accept()
ours.setblocking(False)
refused = 0
while refused < 20:
    try:
        ours.send(bytes(1 << 16))
        refused = 0
    except BlockingIOError:
        refused += 1
        time.sleep(0.005)
most, one, end = 0, 0, time.monotonic() + 6
while time.monotonic() < end:
    probes = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[3]
    most, one = max(most, probes), one + (probes == 1)
    time.sleep(0.01)
print("most", most)
print("for long" if one > 30 else "for a moment at most")
PY
in_guest >"$scratch/found" <<'END'
python3 /probes.py | sed 's/^/by default: /'
echo 0 >/proc/sys/net/ipv4/tcp_invalid_ratelimit
python3 /probes.py | sed 's/^/without the limit: /'
END
cat "$scratch/found"
expect 'questions without an answer, at most' 'by default: most 1' "$(grep 'by default: most' "$scratch/found")"
expect 'how long one stays so' 'by default: for long' "$(grep 'by default: for' "$scratch/found")"
expect 'the same' 'without the limit: for a moment at most' "$(grep 'without the limit: for' "$scratch/found")"
