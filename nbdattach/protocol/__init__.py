# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD protocol as specified, without I/O: handshake, options, transmission, export, target.

May import: nothing else of ours.
"""
