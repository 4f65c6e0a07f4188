# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to servers: sockets, TLS, requests without the driver; and duplicates of sockets that the kernel has.

May import: content, host, protocol.
"""
