# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD protocol, as the specification has it, without I/O: handshake, options, transmission, export, target.

May import: nothing else of ours.
"""
