# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: commands and usage errors, results as tables and JSON, the live view, completion.

May import: api, attached, backends, boot, connection, doctor, host, kernel, monitor, operations, own_server,
protocol.
"""
