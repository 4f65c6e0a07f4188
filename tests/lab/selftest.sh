#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Proves the promises of guest.py on one or more kernels: selftest.sh [6.1|6.12|7.2|6.12-qemu ...]
# shellcheck disable=SC2016 # what is in single quotes is for the shell in the guest
set -u
here=$(dirname "$(readlink -f "$0")")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0

guest() { # [OPTION...] -- COMMAND...: stdout and stderr of the guest in files
    "$here/guest.py" --kernel "$kernel" --timeout 180 "$@" >"$scratch/stdout" 2>"$scratch/stderr"
}

check() { # CLAIM COMMAND...
    claim=$1
    shift
    if "$@"; then
        echo "ok   $kernel: $claim"
        return
    fi
    echo "FAIL $kernel: $claim"
    sed 's/^/     /' "$scratch/stdout" "$scratch/stderr"
    failures=$((failures + 1))
}

within() { # SECONDS COMMAND...: poll
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -le "$end" ] || return 1
    done
}

status_is() { # STATUS COMMAND...
    wanted=$1
    shift
    "$@"
    [ $? -eq "$wanted" ]
}

stdout_is() { # TEXT COMMAND...
    wanted=$1
    shift
    "$@" && [ "$(cat "$scratch/stdout")" = "$wanted" ]
}

# Where user-mode Linux puts its files if it is not told otherwise. Other programs may have left some there.
homes() {
    ls -A "$HOME/.uml" 2>/dev/null
}
homes=$(homes)

# Machines, and all the helpers of UML, carry our scratch folder on their command line.
nothing_left() {
    echo "LAB_CTL=$scratch" >"$scratch/mark"
    ! grep -qsa -F -f "$scratch/mark" /proc/[0-9]*/cmdline &&
        [ "$(homes)" = "$homes" ] && [ -z "$(find "$scratch" -maxdepth 1 -name 'lab-*')" ]
}

big_output_is_whole() {
    "$here/guest.py" --kernel "$kernel" -- seq 1000000 | cmp - "$scratch/numbers"
}

output_is_live() { # it comes while the command still runs
    TMPDIR=$scratch "$here/guest.py" --kernel "$kernel" --timeout 60 -- \
        sh -c 'echo first; exec sleep 1000' >"$scratch/live" 2>/dev/null &
    within 60 grep -qs first "$scratch/live"
    live=$?
    kill $!
    wait $!
    [ $? -eq 143 ] && [ "$live" -eq 0 ] && within 60 nothing_left
}

timeout_kills() {
    TMPDIR=$scratch "$here/guest.py" --kernel "$kernel" --timeout 15 -- sleep 1000 >/dev/null 2>&1
    [ $? -eq 124 ] && within 60 nothing_left
}

sigkill_leaves_no_process() {
    TMPDIR=$scratch "$here/guest.py" --kernel "$kernel" --out "$scratch/k" -- \
        sh -c 'echo up >$LAB_OUT/up; sync; sleep 1000' &
    within 60 test -s "$scratch/k/up" || return 1
    kill -KILL $!
    wait $! 2>/dev/null
    rm -rf "$scratch"/lab-* # all that nobody was left to remove
    within 60 nothing_left
}

panic_is_125() {
    guest --out "$scratch/panic" -- sh -c 'echo c >/proc/sysrq-trigger'
    [ $? -eq 125 ] && grep -q 'sysrq triggered crash' "$scratch/stderr" "$scratch/stdout"
}

writes_stay_inside() {
    guest -- sh -c 'echo x >/lab-probe && echo x >/etc/lab-probe && cat /lab-probe' &&
        [ ! -e /lab-probe ] && [ ! -e /etc/lab-probe ]
}

out_is_writable() {
    guest --out "$scratch/out" -- sh -c 'echo from inside >"$LAB_OUT/file"' &&
        [ "$(cat "$scratch/out/file")" = 'from inside' ] && grep -q 'the job has ended' "$scratch/out/dmesg.log" &&
        [ -s "$scratch/out/console.log" ]
}

fresh_folders() {
    guest -- sh -ec 'grep -q nbdattach.lab=1 /proc/cmdline; ! grep -q ^nbd /proc/modules
        test ! -e /run/udev; test -w /tmp; test -w /dev/shm; ip link show lo | grep -q UP'
}

nbd_works() {
    guest -- sh -ec 'modprobe nbd; test -b /dev/nbd0
        nbdkit --unix /tmp/sock --pidfile /tmp/pid memory 64M
        until test -e /tmp/pid; do :; done
        nbd-client -unix /tmp/sock /dev/nbd0
        dd if=/dev/urandom of=/tmp/data bs=1M count=32
        dd if=/tmp/data of=/dev/nbd0 bs=1M conv=fsync
        dd if=/dev/nbd0 bs=1M count=32 iflag=direct | cmp - /tmp/data
        nbd-client -d /dev/nbd0'
}

tls_modules() {
    guest -- sh -ec 'modprobe tls; modprobe gcm; modprobe chacha20poly1305; grep -q ^tls /proc/modules'
}

two_at_once() {
    for one in a b; do
        "$here/guest.py" --kernel "$kernel" -- sh -c "echo $one" >"$scratch/$one" 2>&1 &
        eval "pid_$one=$!"
    done
    # shellcheck disable=SC2154 # set by eval
    wait "$pid_a" && wait "$pid_b" && [ "$(cat "$scratch/a" "$scratch/b")" = "$(printf 'a\nb')" ]
}

prompt_is_there() {
    grep -q 'lab:.*# ' "$scratch/stdout"
}

shell_works() {
    mkfifo "$scratch/keys"
    script -qec "$here/guest.py --kernel $kernel --timeout 60 --shell" /dev/null \
        <"$scratch/keys" >"$scratch/stdout" 2>"$scratch/stderr" &
    # What is typed before the guest owns the terminal is lost.
    exec 9>"$scratch/keys"
    within 60 prompt_is_there
    printf 'echo $((40+2)) $(tty) $(stty size); exit 5\r' >&9
    wait $!
    shell_status=$?
    exec 9>&-
    rm "$scratch/keys"
    [ "$shell_status" -eq 5 ] && grep -q '42 /dev/.* 24 80' "$scratch/stdout"
}

seq 1000000 >"$scratch/numbers"
for kernel in "${@:-6.1}"; do
    check 'exit status 0' status_is 0 guest -- true
    check 'exit status 7' status_is 7 guest -- sh -c 'exit 7'
    check 'a missing command is 127' status_is 127 guest -- no-such-command
    check 'stdout is clean' stdout_is 'a b' guest -- echo 'a b'
    check 'a variable' stdout_is 'x y' guest --env 'V=x y' -- printenv V
    check 'the working folder' stdout_is "$PWD" guest -- pwd
    check 'long output is whole' big_output_is_whole
    check 'output is live' output_is_live
    check 'a daemon left behind does not hold it' status_is 0 guest -- sh -c 'sleep 1000 &'
    check 'fresh folders, no nbd, no udev' fresh_folders
    check 'udev on request' status_is 0 guest --udev -- test -S /run/udev/control
    check 'DIR is writable and has the logs' out_is_writable
    check 'writes stay inside' writes_stay_inside
    check 'nbd works' nbd_works
    check 'ciphers for TLS' tls_modules
    check 'two at once' two_at_once
    check 'a shell on a terminal' shell_works
    check 'a panic is 125 with the console' panic_is_125
    check '--timeout is 124 and leaves nothing' timeout_kills
    check 'SIGKILL leaves no process' sigkill_leaves_no_process
done
[ "$failures" -eq 0 ]
