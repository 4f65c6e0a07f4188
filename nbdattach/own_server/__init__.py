# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that nbdattach starts itself, each for one device: for a disk image, or a command in brackets.

May import: content, host, kernel, protocol.
"""
