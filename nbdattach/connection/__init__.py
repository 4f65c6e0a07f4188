# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to servers: sockets, TLS, requests without the kernel's driver; and sockets that the kernel has.

May import: host, protocol.
"""
