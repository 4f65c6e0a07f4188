#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit 1.32.5 in the foreground ends as soon as the process that started it has ended, or just the thread: it asks for a
# SIGTERM then (prctl PR_SET_PDEATHSIG). Its manual names that for --exit-with-parent only, "which implies --foreground";
# here --foreground implies it as well. As a SIGTERM is a polite stop, clients get ESHUTDOWN for requests. 1.42.3 stays.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

after_its_parent() { # OPTION: what has become of it, a second after the shell that started it has ended
    in_root <<END
mkdir -p /run; rm -f /run/pid /run/sock
sh -c 'nbdkit $1 --unix /run/sock --pidfile /run/pid memory 1M & until [ -s /run/pid ]; do sleep 0.1; done'
sleep 1
if kill -0 "\$(cat /run/pid)" 2>/dev/null; then echo there; else echo gone; fi
END
}

make_root bookworm nbdkit=1.32.5-1
expect 'nbdkit 1.32.5 --foreground' gone "$(after_its_parent --foreground)"
expect 'nbdkit 1.32.5 in the background' there "$(after_its_parent "")"
rm -rf --one-file-system "$root"
make_root trixie nbdkit=1.42.3-1
expect 'nbdkit 1.42.3 --foreground' there "$(after_its_parent --foreground)"
expect 'nbdkit 1.42.3 --exit-with-parent' gone "$(after_its_parent --exit-with-parent)"
