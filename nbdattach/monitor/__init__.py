# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor, which gives the driver new connections in place of lost ones; and the messages between it and commands.

May import: attached, backends, connection, content, host, kernel, own_server, protocol, relay.
"""
