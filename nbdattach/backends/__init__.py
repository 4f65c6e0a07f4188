# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ways to give the kernel connections, netlink and ioctl, and the choice between them.

May import: attached, connection, content, host, kernel, protocol.
"""
