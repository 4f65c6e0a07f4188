# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's nbd driver: its ioctls, its netlink messages, /sys, the device node, and the worker that blocks in
NBD_DO_IT.

May import: host, protocol.
"""
