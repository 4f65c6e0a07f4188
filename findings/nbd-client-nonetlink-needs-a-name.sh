#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-client 3.27.1 takes no host, port and device beside -nonetlink (or -L) unless -name is given as well, be it an
# empty one: it prints "argument didn't look like an nbd device" and its usage. 3.26.1 takes the same command line. The
# usage text of 3.27.1 still shows both as they were.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

refusal='look like an nbd device'
tried() { # ARGUMENT...: whether the command line is understood; nothing listens at that port
    in_root >"$scratch/said" <<END
nbd-client $* 127.0.0.1 1 /dev/nbd0 2>&1 || :
END
    if grep -q "$refusal" "$scratch/said"; then echo refused; else echo understood; fi
}

make_root trixie nbd-client=1:3.26.1-6.1
expect 'nbd-client 3.26.1 -nonetlink HOST PORT DEVICE' understood "$(tried -nonetlink)"
rm -rf --one-file-system "$root"
make_root sid nbd-client=1:3.27.1-4
expect 'nbd-client 3.27.1 HOST PORT DEVICE' understood "$(tried '')"
expect 'nbd-client 3.27.1 -nonetlink HOST PORT DEVICE' refused "$(tried -nonetlink)"
expect 'nbd-client 3.27.1 -L HOST PORT DEVICE' refused "$(tried -L)"
expect 'nbd-client 3.27.1 -nonetlink -name "" HOST PORT DEVICE' understood "$(tried -nonetlink -name "''")"
