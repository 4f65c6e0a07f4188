# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# What the findings share: a Debian root of pinned packages in a temporary folder, and a guest that boots from it.
# Must not know nbdattach. Needs root and mmdebstrap; takes the archive of this machine's own apt sources.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
root=$scratch/root
trap 'rm -rf --one-file-system "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

make_root() { # SUITE PACKAGE=VERSION...
    suite=$1
    shift
    mmdebstrap --quiet --mode=root --variant=minbase --include="$(echo "$*" | tr ' ' ,)" \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
        "$suite" "$root" "$("$here/../tests/lab/archive" source "$suite")" || fail 'a pinned package is not there any more'
    echo "pinned: $suite $*"
}

# Runs a script of standard input there, in namespaces of its own: what it leaves running ends with it.
in_root() {
    cat >"$root/script"
    unshare --mount --pid --fork --kill-child --net sh -euc '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        ip link set lo up 2>/dev/null || :
        exec chroot "$1" sh -eu /script' sh "$root"
}

# The same in a guest of the user-mode Linux that is installed there, as its first process, with nbd loaded.
in_guest() {
    {
        echo 'export PATH=/usr/sbin:/usr/bin:/sbin:/bin'
        echo 'mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp; mount -t proc proc /proc; mount -t sysfs sysfs /sys'
        echo 'mkdir -p /lib/modules; mount -t tmpfs tmpfs /mnt; ip link set lo up'
        echo 'mount --bind "/usr/lib/uml/modules" /lib/modules; modprobe nbd'
        cat
    } >"$root/script"
    printf '#!/bin/sh\nsh -eu /script >/dev/ttyS0 2>&1\necho "exit $?" >/dev/ttyS0\necho o >/proc/sysrq-trigger; sleep 60\n' >"$root/first"
    chmod 755 "$root/first"
    mkdir -p "$root/lib/modules"
    timeout -k 5 120 unshare --mount --pid --fork --kill-child sh -euc '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/tmp"
        exec chroot "$1" linux.uml mem=512M uml_dir=/tmp umid=finding root=/dev/root rootfstype=hostfs rootflags=/ ro \
            init=/first con=null con0=null,null ssl=null ssl0=null,fd:1 quiet' sh "$root" </dev/null 2>/dev/null |
        tr -d '\r' >"$scratch/said" || :
    grep -v '^exit ' "$scratch/said"
    grep -q '^exit 0$' "$scratch/said" || fail 'the script in the guest failed'
}

expect() { # WHAT WANTED FOUND
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
    echo "as found: $1: $3"
}

fail() {
    echo "changed: $*" >&2
    exit 1
}
