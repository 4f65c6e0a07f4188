#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Sourced with the other hooks of mount: mounts what was attached, where root= names no device and nothing else did.
# shellcheck disable=SC2154 # NEWROOT, of dracut

if [ "$root" = nbdattach ] && [ -s /tmp/nbdattach.root ] && ! ismounted "$NEWROOT"; then
    # shellcheck disable=SC1091
    . /tmp/nbdattach.root
    mount -t "${ROOTFSTYPE:-$(getarg rootfstype= || echo auto)}" -o "$(cat /tmp/nbdattach.options)" \
        "${ROOT:-$NBDATTACH_DEVICE}" "$NEWROOT"
fi
