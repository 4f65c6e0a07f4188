# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on a device: attach it, detach it, hand it over to another connection.

May import: attached, backends, connection, host, kernel, monitor, protocol, relay.
"""
