# SPDX-License-Identifier: GPL-2.0-or-later
"""This machine, as any program sees it: processes, system calls, systemd, udev, LVM, logs. Nothing here knows of NBD.

May import: nothing else of ours.
"""
