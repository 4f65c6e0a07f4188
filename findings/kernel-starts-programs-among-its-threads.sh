#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: who has a block device open? A search of /proc may pass over the threads of the kernel, which have no
# files, and the children of process 2 (kthreadd) seem to be just those: /proc/2/task/2/children lists them in one read.
# But a program that the kernel starts is a child of kthreadd as well, and has the device open like any other user: here
# a handler of core dumps (core_pattern with a pipe). It has a /proc/PID/exe, which no thread of the kernel has.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 procps
cat >"$root/handler" <<'END'
#!/bin/sh
exec 3</dev/nbd0
cat >/dev/null
echo $$ >/run/handler
exec sleep 60
END
chmod 755 "$root/handler"
in_guest >"$scratch/found" <<'END'
uname -r
attach memory 1M
echo '|/handler' >/proc/sys/kernel/core_pattern
sh -c 'ulimit -c unlimited; kill -SEGV $$' || :
until [ -s /run/handler ]; do sleep 0.1; done
pid=$(cat /run/handler)
echo "parent: $(ps -o ppid= -p "$pid" | tr -d ' ') $(ps -o comm= -p 2)"
echo "open: $(readlink "/proc/$pid/fd/3")"
echo "program: $(basename "$(readlink "/proc/$pid/exe")")"
echo "children: $(tr ' ' '\n' </proc/2/task/2/children | grep -cx "$pid")"
without=0
for thread in $(cat /proc/2/task/2/children); do
    readlink "/proc/$thread/exe" >/dev/null || without=$((without + 1))
done
[ "$without" -gt 10 ] && echo 'threads: none has a program'
kill "$pid"
while [ -e "/proc/$pid/exe" ]; do sleep 0.1; done
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'its parent' 'parent: 2 kthreadd' "$(grep '^parent' "$scratch/found")"
expect 'what it has open' 'open: /dev/nbd0' "$(grep '^open' "$scratch/found")"
expect 'what it runs' 'program: sleep' "$(grep '^program' "$scratch/found")"
expect 'how often it is among the children' 'children: 1' "$(grep '^children' "$scratch/found")"
expect 'and the threads' 'threads: none has a program' "$(grep '^threads' "$scratch/found")"
