#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The show itself, as root: demo.sh [DEVICE]
# Serves an image, attaches it (at DEVICE, else at a free one), uses it, detaches it, looks at the image. Each step is
# printed as the command a user types. Ends at the first step that fails, and takes everything away however it ends.
set -eu
exec 2>&1

wanted=${1-}
device=
host=localhost
port=10809
here=$(mktemp -d)
had_driver=no
[ ! -e /sys/block/nbd0 ] || had_driver=yes
had_state=no
[ ! -d /run/nbdattach ] || had_state=yes

# The process that listens to commands there; nothing where there is none.
monitor() {
    ss -Hxlp | sed -n 's|.* /run/nbdattach/monitor .*[(,]pid=\([0-9]*\),.*|\1|p'
}

had_monitor=$(monitor)

clean_up() {
    status=$?
    trap - EXIT HUP INT TERM
    set +e # one thing that cannot be taken away must not keep the others
    [ "$status" -eq 0 ] || printf '\ndemo: failed (exit status %s)\n' "$status"
    cd "$here"
    ! mountpoint -q mnt || umount mnt
    [ -z "$device" ] || nbdattach disconnect "$device"
    [ ! -s nbdkit.pid ] || stop "$(cat nbdkit.pid)"
    ours=$(monitor)
    [ -n "$had_monitor" ] || [ -z "$ours" ] || stop "$ours" # connect has started it
    cd /
    rm -rf --one-file-system "$here"
    if [ "$had_state" = no ] && [ -d /run/nbdattach ]; then
        rm -f /run/nbdattach/lock /run/nbdattach/monitor
        rmdir /run/nbdattach
    fi
    [ "$had_driver" = yes ] || [ ! -e /sys/block/nbd0 ] || modprobe -r nbd
    exit "$status"
}

# A server waits for its clients, and one may be left when a step has failed.
stop() { # PID
    kill "$1"
    tries=100
    while kill -0 "$1" 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || kill -KILL "$1"
        sleep 0.05
    done
}

# shellcheck disable=SC2317 # called by the traps
interrupted() { exit 130; }

say() { printf '\n# %s\n' "$*"; }

# The command as the user types it, then what it prints.
step() { # COMMAND
    printf '$ %s\n' "$1"
    eval "$1"
}

# A step that must be refused with this status.
refused() { # STATUS COMMAND
    printf '$ %s\n' "$2"
    status=0
    eval "$2" || status=$?
    [ "$status" -eq "$1" ] || exit 1
    printf '(exit status %s)\n' "$status"
}

# Another server may have NBD's own port on a machine that is in use.
find_port() {
    while [ -n "$(ss -Hltn "sport = :$port")" ]; do port=$((port + 1)); done
}

trap clean_up EXIT
trap interrupted HUP INT TERM
cd "$here"
mkdir mnt
# A machine made by debootstrap has no /etc/hosts.
getent hosts localhost >/dev/null || host=127.0.0.1
find_port

say 'A server, with an image of 64 MiB.'
step 'truncate -s 64M disk.img'
step "nbdkit -i $host -p $port -P nbdkit.pid file disk.img"
step "nbdattach check $host:$port"

say 'Attach it: the device is ready when the command returns.'
printf '$ %s\n' "nbdattach connect $host:$port${wanted:+ $wanted}"
# shellcheck disable=SC2086 # none or one
device=$(nbdattach connect "$host:$port" $wanted)
echo "$device"

say 'Use it.'
step "mkfs.ext4 -q $device"
step "mount $device mnt"
step 'echo "hello from the other end" >mnt/hello'
step 'head -c 16M /dev/urandom >mnt/noise'
step '(cd mnt && sha256sum hello noise) >sums'
step 'nbdattach status'

say 'It cannot be pulled away while it is in use.'
refused 7 "nbdattach disconnect $device"

say 'Read it back, past the caches.'
step 'umount mnt'
step "mount -o ro $device mnt"
step 'cat mnt/hello'
step '(cd mnt && sha256sum -c ../sums)'

say 'Detach it. What was written is on the server when the command returns.'
step 'umount mnt'
step "nbdattach disconnect $device"
gone=$device
device=
refused 8 "nbdattach status $gone"

say "On the server's side: the image is whole, and so is the data."
step 'e2fsck -fn disk.img'
step "debugfs -R 'cat /hello' disk.img"
step "debugfs -R 'rdump / mnt' disk.img"
step '(cd mnt && sha256sum -c ../sums)'

say 'nbdattach can start the server itself: for a command in brackets, which ends with info...'
step 'nbdattach info [ nbdkit file disk.img ]'

say '... and for an image. That server ends with disconnect.'
stop "$(cat nbdkit.pid)"
rm -f nbdkit.pid
printf '$ %s\n' "nbdattach connect disk.img${wanted:+ $wanted}"
# shellcheck disable=SC2086 # none or one
device=$(nbdattach connect disk.img $wanted)
echo "$device"
step "mount $device mnt"
step 'cat mnt/hello'
step 'umount mnt'
step 'nbdattach disconnect disk.img'
device=

say 'Done: attached, written, read back, detached, compared on the server, and attached as an image.'
