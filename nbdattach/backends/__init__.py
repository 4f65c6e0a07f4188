# SPDX-License-Identifier: GPL-2.0-or-later
"""How the kernel is given connections: by netlink or by ioctl, and which of both.

May import: attached, connection, host, kernel, protocol.
"""
