#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# connect(2) to an address of the family AF_UNSPEC ends a TCP connection at once, with an RST, and drops all that it has
# not delivered. With TLS in the kernel (the upper layer protocol "tls") Linux answers ENOTSUP, and the connection goes
# on. SO_LINGER with 0 seconds, set before the last close, makes that close an RST with both.
# Tried with user-mode Linux 6.12.113.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 python3=3.13.5-1 kmod iproute2
cat >"$root/reset.py" <<'PY'
import ctypes, errno, os, socket, struct, sys

TCP_ULP = 31
libc = ctypes.CDLL(None, use_errno=True)


def pair(protocol):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    if protocol:
        ours.setsockopt(socket.IPPROTO_TCP, TCP_ULP, protocol)
    return ours, theirs


def end(sock):
    try:
        return "end" if not sock.recv(1) else "data"
    except ConnectionResetError:
        return "reset"


for name, protocol in ("plain", b""), ("tls", b"tls"):
    ours, theirs = pair(protocol)
    failed = libc.connect(ours.fileno(), bytes(16), 16)
    print(f"{name}: connect {errno.errorcode[ctypes.get_errno()] if failed else 'succeeds'}")
    if failed:
        ours.sendall(b"x")
    print(f"{name}: the peer then sees {end(theirs)}")
    ours, theirs = pair(protocol)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    print(f"{name}: the peer of a close that does not linger sees {end(theirs)}")
PY
in_guest >"$scratch/found" <<'END'
modprobe tls
uname -r
python3 /reset.py
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'without TLS' 'plain: connect succeeds' "$(grep 'plain: connect' "$scratch/found")"
expect 'with TLS' 'tls: connect ENOTSUP' "$(grep 'tls: connect' "$scratch/found")"
expect 'then' 'plain: the peer then sees reset' "$(grep 'plain: the peer then' "$scratch/found")"
expect 'then' 'tls: the peer then sees data' "$(grep 'tls: the peer then' "$scratch/found")"
for kind in plain tls; do
    expect "$kind" "$kind: the peer of a close that does not linger sees reset" "$(grep "$kind: the peer of" "$scratch/found")"
done
